"""Text generation as a `gymnasium.Env`: an action is a token id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes, Ids, Mask, slot_generator
from rlhf_gym.tasks import Task
from rlhf_gym.tokenizer import Tokenizer

SLOT = np.zeros(1, dtype=np.intp)


class TokenEnv(gym.Env[Any, Any]):
    """One prompt, one response, a token a step.

    Observation: ``Dict(ids int64 [L], length int64 [1], prompt_length int64 [1])``; the ids are the prompt, then the response
    so far, then padding. Action: ``Discrete(vocab_size)``, the next id. The reward is 0 until the episode ends: by EOS, by one
    of the task's stop sequences, or at its length limit. All three *terminate* it, since the reward scores the response as it
    then is; *truncation* comes only from a time limit around the environment and is not scored.

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one.
        tokenizer: a :class:`~rlhf_gym.tokenizer.Tokenizer` or a model's name.
        reward: replaces the task's reward.
        task_options: options of a task given by name, e.g. ``{"max_response_tokens": 24}``.
        render_mode: ``"ansi"`` or ``"human"``.
    """

    metadata = {  # noqa: RUF012 - Gymnasium declares it so
        "render_modes": ["ansi", "human"],
        "render_fps": 10,
    }

    def __init__(
        self,
        task: Task | str = "sentiment",
        tokenizer: Tokenizer | str = "embedded",
        *,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.episodes = Episodes(1, task, tokenizer, reward, task_options)
        self.observation_space = self.episodes.observation_space()
        self.action_space = gym.spaces.Discrete(self.episodes.tokenizer.vocab_size)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise gym.error.UnsupportedMode(
                f"render_mode {render_mode!r} is not known; expected one of {', '.join(self.metadata['render_modes'])}"
            )
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Ids], dict[str, Any]]:
        """Draw a prompt and start an episode."""
        super().reset(seed=seed)
        if seed is not None:
            self.np_random = slot_generator(seed, 0)
        self.episodes.begin(0, self.np_random)
        return self.episodes.observe_one(0), {}

    def step(self, action: np.int64 | int) -> tuple[dict[str, Ids], float, bool, bool, dict[str, Any]]:
        """Write one token."""
        actions = np.array([action], dtype=np.int64)
        self.episodes.check_actions(actions, SLOT)
        reward, info = 0.0, {}
        terminated = len(self.episodes.write(actions, SLOT)) > 0
        if terminated:
            scored, infos = self.episodes.score([0])
            reward, info = float(scored.values[0]), infos[0]
        if self.render_mode == "human":
            self.render()
        return self.episodes.observe_one(0), reward, terminated, False, info

    def action_masks(self) -> Mask:
        """bool ``[V]``, True where a token may be written now (the form that sb3-contrib's MaskablePPO asks for)."""
        masks: NDArray[np.bool_] = self.episodes.action_masks()[0]
        return masks

    def render(self) -> str | None:
        """The prompt and the response so far: returned (``ansi``) or printed (``human``)."""
        if self.render_mode is None or not self.episodes.length[0]:
            return None
        prompt = self.episodes.tokenizer.decode(self.episodes.ids[0, : self.episodes.prompt_length[0]].tolist())
        text = f"{prompt} │{self.episodes.response(0)}"
        if self.render_mode == "ansi":
            return text
        from rich.console import Console
        from rich.text import Text

        Console().print(Text(text))
        return None
