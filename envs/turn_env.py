"""A task with whole responses as actions: one prompt, one response, one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from rlhf_gym.envs.picture import Frame
from rlhf_gym.envs.rendering import RENDER_MODES
from rlhf_gym.envs.turn_vector_env import TurnVectorEnv
from rlhf_gym.envs.vector_api import slot_info
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.tasks import Task


class TurnEnv(gym.Env[Any, Any]):
    """One prompt, one response, one step: a :class:`~rlhf_gym.envs.turn_vector_env.TurnVectorEnv` of one slot.

    The same tasks and rewards as :class:`~rlhf_gym.envs.token_env.TokenEnv`'s, and the same prompts for the same seeds. Two
    formats:

    - ``"text"``: observation and action are texts (`gymnasium.spaces.Text`). No tokenizer is loaded.
    - ``"tokens"``: observations are those of the token level, ``Dict(ids int64 [L], length int64 [1], prompt_length int64
      [1])``; the action is ``MultiDiscrete([V] * T)``, the ids of a response up to its EOS and anything after it, which is
      ignored. The reward is the token level's for the same ids.

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one.
        tokenizer: as for the token level; only the format ``"tokens"`` uses it.
        format: ``"text"`` or ``"tokens"``.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest response as a text; None allows 16 a token of the task's limit.
        max_prompt_tokens: refuse longer prompts, in the format ``"tokens"``.
        prompt_order: ``"epochs"`` or ``"random"``, as for the token level.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Raises:
        TaskError, ConfigError: the task, the tokenizer or the format cannot be used, with the reason.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        task: Task | str = "sentiment",
        tokenizer: AnyTokenizer | str | None = None,
        *,
        format: Literal["text", "tokens"] = "text",  # noqa: A002 - what Gymnasium's users write
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_characters: int | None = None,
        max_prompt_tokens: int | None = None,
        prompt_order: Literal["random", "epochs"] = "epochs",
        render_mode: str | None = None,
    ) -> None:
        self._vector = TurnVectorEnv(
            1,
            task,
            tokenizer,
            format=format,
            reward=reward,
            task_options=task_options,
            max_characters=max_characters,
            max_prompt_tokens=max_prompt_tokens,
            prompt_order=prompt_order,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
        )
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self.render_mode = render_mode
        self.prompt_order = prompt_order

    @property
    def task(self) -> Task:
        """The task."""
        return self._vector.task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a prompt; ``info["prompt"]`` is its text.

        Args:
            seed: of the prompts from here on; None goes on with the random numbers there are.
            options: ``prompt``, the number of the task's prompt to begin with, in the place of one that is drawn.

        Raises:
            ConfigError: there is no such prompt.
        """
        super().reset(seed=seed)
        observations, infos = self._vector.reset(seed=[seed], options=options)
        return _only(observations), slot_info(infos, 0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Answer the prompt; every step ends its episode.

        Raises:
            ResetNeeded: no episode was started, or it has ended.
            InvalidAction: the action is outside the action space.
            RewardError: the reward failed; the same prompt still waits for a response.
        """
        observations, rewards, _, _, infos = self._vector.step([action])
        return _only(observations), float(rewards[0]), True, False, slot_info(infos, 0)

    def render(self) -> str | Frame | None:
        """Prompt, response and reward: in one line (``ansi``) or a picture; None before the first reset, and for ``human``."""
        if self.render_mode == "human":
            return None  # each step has printed it
        shown = self._vector.render()
        return None if shown is None else shown[0]


def _only(observations: Any) -> Any:
    """The observation of the only slot."""
    if isinstance(observations, dict):
        return {key: rows[0] for key, rows in observations.items()}
    return observations[0]
