"""The two formats of the turn level, texts and token ids: one class for each, over any number of slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes
from rlhf_gym.envs.scoring import score_texts
from rlhf_gym.envs.task_parts import reward_of
from rlhf_gym.envs.token_rows import Ids, Slots
from rlhf_gym.envs.turn_spaces import AnyText, as_ids_action, as_text_action, longest_text, with_tokens
from rlhf_gym.envs.vector_api import stack_observations
from rlhf_gym.rewards.base import ScoredBatch
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import column_names, columns_of


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
        """The responses in the actions of these slots; a wrong action is refused before anything changes.

        Args:
            actions: as the environment got them.
            slots: int ``[n]``.

        Raises:
            InvalidAction: an action is outside the action space.
        """
        ...

    def answer(self, responses: Any, slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        """Score the responses of these slots with one call of the reward; returns the scores, and the infos by key.

        If the reward fails, the slots' prompts still wait for a response.

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
        self.reward = reward_of(reward, task)
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
            InvalidAction: the actions are not one text for each slot, or one is too long.
        """
        actions = (
            actions.tolist() if isinstance(actions, np.ndarray) and actions.ndim == 1 else actions
        )  # SB3 gives arrays
        if isinstance(actions, str) or not isinstance(actions, Sequence) or len(actions) != len(self.shown):
            shown = f"{len(actions)} of them" if isinstance(actions, list | tuple) else type(actions).__name__
            raise gym.error.InvalidAction(f"expected a list of {len(self.shown)} responses, got {shown}")
        given = [actions[slot] for slot in slots.tolist()]
        return [with_tokens(one, self.task.cut(as_text_action(one, self.max_characters))) for one in given]

    def answer(self, responses: list[str], slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        """See :class:`TurnFormat`.

        Args:
            responses: as :meth:`read` gives them.
            slots: int ``[n]``.
        """
        prompts = [self.prompts[slot] for slot in slots.tolist()]
        texts = [prompt.text for prompt in prompts]
        scored, infos = score_texts(self.reward, texts, responses, columns_of(prompts, self.columns))
        for slot, text, response in zip(slots.tolist(), texts, responses, strict=True):
            self.shown[slot] = text + response
        return scored, {"prompt": texts, "response": responses, **infos}

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
        return self.episodes.spaces()[0], actions

    def begin(self, slots: Slots, index: Ids) -> list[str]:
        """See :class:`TurnFormat`.

        Args:
            slots: int ``[n]``.
            index: int64 ``[n]``, the prompts' numbers.
        """
        self.episodes.begin_all(slots, index)
        return [self.task.prompts[i].text for i in index.tolist()]

    def read(self, actions: Any, slots: Slots) -> Ids:
        """int64 ``[n, T]``: the responses; a row shorter than ``T`` is filled up with EOS.

        Args:
            actions: as the environment got them.
            slots: int ``[n]``.

        Raises:
            InvalidAction: the actions are not one row for each slot, a row is too long, or an id is outside the vocabulary.
        """
        count, limit, tokenizer = len(self.episodes.length), self.task.max_new_tokens, self.episodes.tokenizer
        try:
            given = len(actions)
        except TypeError:
            raise gym.error.InvalidAction(f"expected {count} rows of token ids, got {actions!r}") from None
        if given != count:
            raise gym.error.InvalidAction(f"expected {count} rows of token ids, got {given}")
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
        try:
            return self.episodes.score_columns(slots)
        except BaseException:  # Ctrl-C, too: the same prompts wait for other responses
            self.episodes.begin_all(slots, self.episodes.prompt_index[slots])
            raise

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
