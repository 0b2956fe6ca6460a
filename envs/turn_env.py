"""A task with whole responses as actions: one prompt, one response, one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.episodes import Episodes, Ids, row_of, skipped_column
from rlhf_gym.envs.prompt_draws import slot_generator
from rlhf_gym.envs.prompt_table import column_names, columns_of
from rlhf_gym.envs.rendering import RENDER_MODES, Frame, Painter, turn_frame
from rlhf_gym.envs.text_space import AnyText
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.rewards.base import TermReward, score
from rlhf_gym.rewards.combine import as_term
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.text import visible

CHARACTERS_A_TOKEN = 16
"""How many characters a token may take before a text is refused as too long; words of English text take 4 to 5."""


class TurnEnv(gym.Env[Any, Any]):
    """One prompt, one response, one step: what :class:`~rlhf_gym.envs.token_env.TokenEnv` does in as many steps as tokens.

    The same tasks and rewards, and the same prompts for the same seeds. Two forms:

    - ``"text"``: observation and action are texts (`gymnasium.spaces.Text`). No tokenizer is loaded.
    - ``"tokens"``: observations are those of the token level, ``Dict(ids int64 [L], length int64 [1], prompt_length int64
      [1])``; the action is ``MultiDiscrete([V] * T)``, the ids of a response up to its EOS and anything after it, which is
      ignored. The reward is the token level's for the same ids.

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one.
        tokenizer: as for the token level; only the form ``"tokens"`` uses it.
        form: ``"text"`` or ``"tokens"``.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest response as a text; None allows 16 a token of the task's limit.
        max_prompt_tokens: refuse longer prompts, in the form ``"tokens"``.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Raises:
        TaskError, ConfigError: the task, the tokenizer or the form cannot be used, with the reason.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        task: Task | str = "sentiment",
        tokenizer: Tokenizer | str | None = None,
        *,
        form: Literal["text", "tokens"] = "text",
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_characters: int | None = None,
        max_prompt_tokens: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.form: _Form
        if form == "tokens":
            if max_characters is not None:
                raise ConfigError(
                    "max_characters belongs to the form 'text'; the task's max_response_tokens limits tokens"
                )
            self.form = _TokensForm(Episodes(1, task, tokenizer, reward, task_options, max_prompt_tokens))
        elif form == "text":
            self.form = _TextForm(built(task, task_options), reward, max_characters)
        else:
            raise ConfigError(f"form must be 'text' or 'tokens', got {form!r}")
        self.observation_space, self.action_space = self.form.spaces()
        self.render_mode = render_mode
        self._running = False
        self._painter = Painter()
        self._prompt: str | None = None
        self._response, self._reward = "", 0.0

    @property
    def task(self) -> Task:
        """The task."""
        return self.form.task

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a prompt; ``info["prompt"]`` is its text."""
        super().reset(seed=seed)
        if seed is not None:
            self.np_random = slot_generator(seed, 0)
        observation, prompt = self.form.begin(self.np_random)
        self._running, self._prompt, self._response = True, prompt, ""
        self._print()
        return observation, {"prompt": prompt}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Answer the prompt; every step ends its episode."""
        if not self._running:
            why = "no episode was started" if self._prompt is None else "the episode has ended"
            raise gym.error.ResetNeeded(f"step() where {why}: call reset()")
        observation, reward, info = self.form.answer(action)
        self._running, self._response, self._reward = False, info["response"], reward
        self._painter.note(0, reward)
        self._print()
        return observation, reward, True, False, info

    def render(self) -> str | Frame | None:
        """Prompt, response and reward: in one line (``ansi``) or a picture; None before the first reset and for ``human``."""
        if self._prompt is None or self.render_mode in (None, "human"):
            return None
        if self.render_mode == "ansi":
            return self._line()
        return turn_frame(self._prompt, self._response, None if self._running else self._reward, self._painter)

    def _line(self) -> str:
        reward = "" if self._running else f"  [{self._reward:.3f}]"
        return visible(f"{self._prompt} │{self._response}") + reward

    def _print(self) -> None:
        if self.render_mode == "human":
            print(self._line())


class _Form(Protocol):
    """What actions and observations look like."""

    task: Task

    def spaces(self) -> tuple[gym.spaces.Space[Any], gym.spaces.Space[Any]]: ...

    def begin(self, rng: np.random.Generator) -> tuple[Any, str]: ...

    def answer(self, action: Any) -> tuple[Any, float, dict[str, Any]]: ...


class _TextForm:
    """Texts in, texts out."""

    def __init__(self, task: Task, reward: Callable[..., Any] | None, max_characters: int | None) -> None:
        self.task = task
        self.reward = needed_reward(task, reward)
        self.max_characters = characters(task, max_characters)
        self.columns = column_names(task.prompts)
        self.prompt = task.prompts[0]

    def spaces(self) -> tuple[AnyText, AnyText]:
        longest = max(len(p.text) for p in self.task.prompts)
        return AnyText(longest + self.max_characters), AnyText(self.max_characters)

    def begin(self, rng: np.random.Generator) -> tuple[str, str]:
        self.prompt = self.task.prompts[int(rng.integers(len(self.task.prompts)))]
        return self.prompt.text, self.prompt.text

    def answer(self, action: Any) -> tuple[str, float, dict[str, Any]]:
        response = self.task.cut(as_text_action(action, self.max_characters))
        prompt = self.prompt
        scored = score(self.reward, [prompt.text], [response], columns_of([prompt], self.columns), may_skip=True)
        info = {
            "prompt": prompt.text,
            "response": response,
            "reward_terms": {name: float(values[0]) for name, values in scored.terms.items()},
            **row_of(skipped_column(scored), 0),
        }
        return prompt.text + response, float(scored.values[0]), info


class _TokensForm:
    """Token ids in, token ids out: an episode of the token level, written in one go."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.task = episodes.task

    def spaces(self) -> tuple[gym.spaces.Dict, gym.spaces.MultiDiscrete]:
        size = self.episodes.tokenizer.vocab_size
        actions = gym.spaces.MultiDiscrete(np.full(self.task.max_response_tokens, size, dtype=np.int64))
        return self.episodes.observation_space(), actions

    def begin(self, rng: np.random.Generator) -> tuple[dict[str, Ids], str]:
        self.episodes.begin(0, int(rng.integers(len(self.episodes.prompts))))
        return self.episodes.observe_one(0), self.task.prompts[int(self.episodes.prompt_index[0])].text

    def answer(self, action: Any) -> tuple[dict[str, Ids], float, dict[str, Any]]:
        for token in read_ids(action, self.task.max_response_tokens, self.episodes.tokenizer):
            taken = np.array([token], dtype=np.int64)
            self.episodes.check_actions(taken)
            if len(self.episodes.write(taken)):
                break
        scored, infos = self.episodes.score([0])
        return self.episodes.observe_one(0), float(scored.values[0]), infos[0]


def read_ids(action: Any, limit: int, tokenizer: Tokenizer) -> list[int]:
    """An action's ids; a row shorter than the limit is a response that its writer has ended: EOS follows.

    Raises:
        InvalidAction: not a row of whole numbers, too long, or outside the vocabulary.
    """
    given = np.asarray(action)
    if given.ndim != 1 or not 1 <= len(given) <= limit or given.dtype.kind not in "iu":
        raise gym.error.InvalidAction(
            f"expected a row of 1 to {limit} token ids, got {given.dtype} of shape {given.shape}"
        )
    wrong = (given < 0) | (given >= tokenizer.vocab_size)
    if wrong.any():
        raise gym.error.InvalidAction(
            f"{int(given[np.argmax(wrong)])} is not a token id; expected 0..{tokenizer.vocab_size - 1}"
        )
    ids: list[int] = given.tolist()
    return ids if len(ids) == limit else [*ids, tokenizer.eos_id]


def built(task: Task | str, options: dict[str, Any] | None) -> Task:
    """A task, or the one of that name.

    Raises:
        TaskError: no such task, or options for a task that is already built.
    """
    if isinstance(task, str):
        return load_task(task, **(options or {}))
    if options:
        raise TaskError(f"task_options {options!r} are for a task given by name; task {task.name!r} is already built")
    return task


def needed_reward(task: Task, reward: Callable[..., Any] | None) -> TermReward:
    """The reward given, or the task's own; its signature is read here, once.

    Args:
        task: the environment's task.
        reward: replaces the task's reward; None keeps it.

    Raises:
        TaskError: neither is there.
        RewardError: it is a class, it cannot be called, or its parameters fit no form.
    """
    chosen = reward or task.reward
    if chosen is None:
        raise TaskError(f"task {task.name!r} has no reward of its own; give the environment one: reward=...")
    return as_term(chosen)


def characters(task: Task, max_characters: int | None) -> int:
    """The longest response, in characters.

    Raises:
        ConfigError: below 1.
    """
    if max_characters is not None and max_characters < 1:
        raise ConfigError(f"max_characters must be at least 1, got {max_characters}")
    return max_characters or CHARACTERS_A_TOKEN * task.max_response_tokens


def as_text_action(action: Any, max_characters: int) -> str:
    """An action as a text.

    Raises:
        InvalidAction: it is none, or too long.
    """
    if not isinstance(action, str):
        raise gym.error.InvalidAction(f"expected the response as a text, got {type(action).__name__}")
    if len(action) > max_characters:
        raise gym.error.InvalidAction(
            f"the response has {len(action)} characters, more than the {max_characters} of the action space; shorten it, or "
            "raise max_characters"
        )
    return str(action)


def check_render_mode(mode: str | None, modes: list[str]) -> None:
    """Refuse a render mode that there is not.

    Raises:
        UnsupportedMode: it is so.
    """
    if mode is not None and mode not in modes:
        raise gym.error.UnsupportedMode(f"render_mode {mode!r} is not known; expected one of {', '.join(modes)}")
