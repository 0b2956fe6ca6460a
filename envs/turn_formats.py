"""Observations and actions of the turn level: texts, or token ids; one class for each, over any number of slots."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Text
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes, needed_reward, skipped_column
from rlhf_gym.envs.token_rows import Ids, Slots
from rlhf_gym.envs.vector_api import stack_observations
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.rewards.base import ScoredBatch, score
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import column_names, columns_of

CHARACTERS_A_TOKEN = 16
"""Characters that a token may take before a text is refused as too long; words of English text take 4 to 5."""

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " \n"


class TurnFormat(Protocol):
    """Presents prompts and responses of ``N`` slots as observations and actions, and has responses scored."""

    task: Task

    def spaces(self) -> tuple[gym.spaces.Space[Any], gym.spaces.Space[Any]]:
        """One slot's observation space and action space."""
        ...

    def begin(self, slots: Slots, index: Ids) -> list[str]:
        """Start an episode in each of these slots with the prompts of these numbers; returns the prompts' texts.

        Args:
            slots: int ``[n]``.
            index: int64 ``[n]``, the prompts' numbers.
        """
        ...

    def read(self, actions: Any, slots: Slots) -> Any:
        """The responses in the actions of these slots; refuses what is none, before anything changes.

        Args:
            actions: as the environment got them.
            slots: int ``[n]``.
        """
        ...

    def answer(self, responses: Any, slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        """Score the responses of these slots with one call of the reward; also their infos, by key.

        Args:
            responses: as :meth:`read` gives them.
            slots: int ``[n]``.
        """
        ...

    def observe(self) -> Any:
        """The observations of all slots, batched."""
        ...

    def final(self, slots: Slots) -> NDArray[np.object_]:
        """Object array ``[N]``: the observations of these slots, None elsewhere."""
        ...


class TextFormat:
    """Observations and actions are texts.

    Args:
        num_slots: ``N``.
        task: the task.
        reward: replaces the task's reward.
        max_characters: longest response; None allows 16 characters a token of the task's limit.

    Raises:
        TaskError: there is no reward.
        ConfigError: ``max_characters`` is below 1.
    """

    def __init__(
        self, num_slots: int, task: Task, reward: Callable[..., Any] | None, max_characters: int | None
    ) -> None:
        self.task = task
        self.reward = needed_reward(task, reward)
        self.max_characters = longest_text(task, max_characters)
        self.columns = column_names(task.prompts)
        self.prompts = [task.prompts[0]] * num_slots
        self.shown = [""] * num_slots

    def spaces(self) -> tuple[AnyText, AnyText]:
        """``Text`` for a prompt with its response, and ``Text`` for a response."""
        longest = max(len(p.text) for p in self.task.prompts)
        return AnyText(longest + self.max_characters), AnyText(self.max_characters)

    def begin(self, slots: Slots, index: Ids) -> list[str]:
        """See :class:`TurnFormat`.

        Args:
            slots: int ``[n]``.
            index: int64 ``[n]``, the prompts' numbers.
        """
        for slot, i in zip(slots.tolist(), index.tolist(), strict=True):
            self.prompts[slot] = self.task.prompts[i]
            self.shown[slot] = self.prompts[slot].text
        return [self.shown[slot] for slot in slots.tolist()]

    def read(self, actions: Any, slots: Slots) -> list[str]:
        """The responses, cut at the task's stop sequences.

        Args:
            actions: as the environment got them.
            slots: int ``[n]``.

        Raises:
            InvalidAction: not one text for each slot, or one too long.
        """
        if isinstance(actions, str) or not isinstance(actions, Sequence) or len(actions) != len(self.shown):
            shown = f"{len(actions)} of them" if isinstance(actions, list | tuple) else type(actions).__name__
            raise gym.error.InvalidAction(f"expected a list of {len(self.shown)} responses, got {shown}")
        return [self.task.cut(as_text_action(actions[slot], self.max_characters)) for slot in slots.tolist()]

    def answer(self, responses: list[str], slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        """See :class:`TurnFormat`.

        Args:
            responses: as :meth:`read` gives them.
            slots: int ``[n]``.
        """
        prompts = [self.prompts[slot] for slot in slots.tolist()]
        texts = [prompt.text for prompt in prompts]
        scored = score(self.reward, texts, responses, columns_of(prompts, self.columns), may_skip=True)
        for slot, text, response in zip(slots.tolist(), texts, responses, strict=True):
            self.shown[slot] = text + response
        return scored, {"prompt": texts, "response": responses, "reward_terms": scored.terms, **skipped_column(scored)}

    def observe(self) -> tuple[str, ...]:
        """A tuple of ``N`` texts: each the prompt, or prompt and response once the episode has ended."""
        return tuple(self.shown)

    def final(self, slots: Slots) -> NDArray[np.object_]:
        """The observations of these slots, None elsewhere.

        Args:
            slots: int ``[n]``.

        Returns:
            Object array ``[N]``.
        """
        out = np.full(len(self.shown), None, dtype=object)
        for slot in slots.tolist():
            out[slot] = self.shown[slot]
        return out


class TokensFormat:
    """Observations and actions are token ids: episodes of the token level, with a whole response in one step.

    Args:
        episodes: the episodes of ``N`` slots.
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.task = episodes.task

    def spaces(self) -> tuple[gym.spaces.Dict, gym.spaces.MultiDiscrete]:
        """The token level's ``Dict``, and ``MultiDiscrete([V] * T)``."""
        size = self.episodes.tokenizer.vocab_size
        actions = gym.spaces.MultiDiscrete(np.full(self.task.max_new_tokens, size, dtype=np.int64))
        return self.episodes.observation_space(), actions

    def begin(self, slots: Slots, index: Ids) -> list[str]:
        """See :class:`TurnFormat`.

        Args:
            slots: int ``[n]``.
            index: int64 ``[n]``, the prompts' numbers.
        """
        self.episodes.begin_all(slots, index)
        return [self.task.prompts[i].text for i in index.tolist()]

    def read(self, actions: Any, slots: Slots) -> Ids:
        """int64 ``[n, T]``: the responses, each with EOS after its end.

        Args:
            actions: as the environment got them.
            slots: int ``[n]``.

        Raises:
            InvalidAction: not one row for each slot, a row too long, or an id outside the vocabulary.
        """
        count, limit, tokenizer = len(self.episodes.length), self.task.max_new_tokens, self.episodes.tokenizer
        if len(actions) != count:
            raise gym.error.InvalidAction(f"expected {count} rows of token ids, got {len(actions)}")
        out: Ids = np.full((len(slots), limit), tokenizer.eos_id, dtype=np.int64)
        for row, slot in enumerate(slots.tolist()):
            ids = as_ids_action(actions[slot], limit, tokenizer)
            out[row, : len(ids)] = ids
        return out

    def answer(self, responses: Ids, slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        """See :class:`TurnFormat`.

        Args:
            responses: int64 ``[n, T]``, as :meth:`read` gives them.
            slots: int ``[n]``.
        """
        every: Ids = np.zeros((len(self.episodes.length), responses.shape[1]), dtype=np.int64)
        every[slots] = responses
        for column in every.T:
            live = slots[self.episodes.running[slots]]
            if not len(live):
                break
            self.episodes.append(column, live)
        return self.episodes.score_columns(slots)

    def observe(self) -> dict[str, Ids]:
        """The token level's observations, batched."""
        return self.episodes.observe()

    def final(self, slots: Slots) -> NDArray[np.object_]:
        """The observations of these slots, None elsewhere.

        Args:
            slots: int ``[n]``.

        Returns:
            Object array ``[N]``.
        """
        return stack_observations(self.episodes.observe(slots), slots, len(self.episodes.length))


class AnyText(Text):
    """Texts of 0 to ``max_length`` characters of any script; samples are drawn from printable ASCII.

    A `gymnasium.spaces.Text` whose ``charset`` says what samples are made of, not what is contained: a character set that
    holds all of Unicode would have 1.1 million entries.

    Args:
        max_length: most characters.
        charset: characters of samples.
        seed: of the samples.
    """

    def __init__(
        self, max_length: int, *, charset: str = PRINTABLE, seed: int | np.random.Generator | None = None
    ) -> None:
        super().__init__(max_length, min_length=0, charset=charset, seed=seed)

    def contains(self, x: Any) -> bool:
        """True for a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as Text: spaces are compared, not hashed

    @property
    def is_np_flattenable(self) -> bool:
        """False: characters outside the character set have no number."""
        return False


def longest_text(task: Task, max_characters: int | None) -> int:
    """The longest response, in characters.

    Args:
        task: the task, whose limit counts if no other is given.
        max_characters: the limit, if one is given.

    Raises:
        ConfigError: ``max_characters`` is below 1.
    """
    if max_characters is not None and max_characters < 1:
        raise ConfigError(f"max_characters must be at least 1, got {max_characters}")
    return max_characters or CHARACTERS_A_TOKEN * task.max_new_tokens


def as_text_action(action: Any, max_characters: int) -> str:
    """An action as a text.

    Args:
        action: as the environment got it.
        max_characters: the longest text allowed.

    Raises:
        InvalidAction: the action is no text, or too long.
    """
    if not isinstance(action, str):
        raise gym.error.InvalidAction(f"expected the response as a text, got {type(action).__name__}")
    if len(action) > max_characters:
        raise gym.error.InvalidAction(
            f"the response has {len(action)} characters, more than the {max_characters} of the action space; shorten it, or "
            "raise max_characters"
        )
    return str(action)


def as_ids_action(action: Any, limit: int, tokenizer: Tokenizer) -> list[int]:
    """An action as token ids; EOS is added to a row shorter than the limit.

    Args:
        action: as the environment got it, ``[1..limit]``.
        limit: the most ids of a response.
        tokenizer: the environment's.

    Raises:
        InvalidAction: not a row of whole numbers, too long, or an id outside the vocabulary.
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


def check_format(format: str) -> None:  # noqa: A002 - the environments' argument
    """Refuse a format that is neither texts nor token ids.

    Raises:
        ConfigError: ``format`` is neither ``"text"`` nor ``"tokens"``.
    """
    if format not in ("text", "tokens"):
        raise ConfigError(f"format must be 'text' or 'tokens', got {format!r}")
