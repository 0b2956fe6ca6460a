"""The token-level MDP itself, for any number of slots at once; the single and the vector environment both step it.

A slot holds one episode: the prompt's ids and the ids generated so far in one padded row. A step stores one id in place, so its
cost depends neither on the length so far nor on the number of steps taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.masks import Masks, TokenMask
from rlhf_gym.envs.prompt_weights import WeightedDraws, prompt_draws
from rlhf_gym.envs.prompts import OTHER_ORDER, EpochDraws, PromptTable
from rlhf_gym.envs.scoring import EndedEpisodes, score_episodes
from rlhf_gym.envs.task_parts import as_task, as_tokenizer, reward_of
from rlhf_gym.envs.token_rows import Ids, Mask, Slots, TokenRows, token_spaces
from rlhf_gym.envs.token_rules import PromptOrder, TokenRules
from rlhf_gym.envs.vector_api import row_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.tokenizer import AnyTokenizer, end_ids
from rlhf_gym.rewards.adaptive import restore_reward, reward_state
from rlhf_gym.rewards.base import ScoredBatch
from rlhf_gym.rewards.token_values import ENDS, IDS, wants_token_ids
from rlhf_gym.tasks import Task

Infos = Literal["texts", "numbers"]
"""What infos hold.

``"texts"``: a step that ends an episode says all of it, texts too, and other steps say nothing. ``"numbers"``, for clients that
keep infos in arrays: every step, and every reset, says ``ended`` (bool) and ``response_length`` (int), and nothing else.
"""
_KEPT = ("ids", "prompt_length", "length", "prompt_index", "running")


class Episodes(TokenRows):
    """``N`` slots of one task.

    Args:
        num_slots: ``N``.
        task: a task or the name of one.
        tokenizer: a tokenizer, ours or a transformers one, or the name of a model; None takes the task's own, or else the
            embedded model's.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_prompt_tokens: longest prompt allowed; None takes the task's longest.
        mask: the tokens that are allowed.
        infos: see :data:`Infos`.
        prompt_order: see :data:`~rlhf_gym.envs.token_rules.PromptOrder`.
        difficulty_every: see :class:`~rlhf_gym.envs.prompt_weights.LevelDraws`.

    Attributes:
        draws: the draws of the slots' prompts.
        ids: int64 ``[N, L]``, prompt and response, padded on the right; ``L`` is the longest prompt plus the longest response.
        prompt_length: int64 ``[N]``.
        length: int64 ``[N]``, prompt and response so far.
        eos_ids: all ids that end a response, the tokenizer's ``eos_id`` first.
        running: bool ``[N]``, False before the first reset and after the end.
        reward_seconds: seconds that calls of the reward have taken so far.

    Raises:
        TaskError: no reward, a prompt longer than allowed, a tokenizer without EOS or padding, or a mask that allows nothing.
        ConfigError: options of the mask that contradict one another.
    """

    def __init__(
        self,
        num_slots: int,
        task: Task | str,
        tokenizer: AnyTokenizer | str | None = None,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_prompt_tokens: int | None = None,
        mask: TokenMask | Mapping[str, Any] | None = None,
        infos: Infos = "texts",
        prompt_order: PromptOrder = "epochs",
        difficulty_every: int | None = None,
    ) -> None:
        if infos not in get_args(Infos):
            raise ConfigError(f"infos must be one of {', '.join(get_args(Infos))}, got {infos!r}")
        self.infos = infos
        self.task = as_task(task, task_options)
        self.tokenizer = as_tokenizer(tokenizer, self.task)
        self.reward = reward_of(reward, self.task)
        self._wants_ids, self._wants_ends = (wants_token_ids(self.reward, a) for a in ("per_token", "per_step"))
        self.prompts = PromptTable(self.task, self.tokenizer, max_prompt_tokens)
        difficulties = [prompt.columns.get("difficulty") for prompt in self.task.prompts]
        self.prompt_order = prompt_order
        self.draws = prompt_draws(prompt_order, num_slots, len(self.prompts), difficulties, difficulty_every)
        self.max_prompt_tokens = self.prompts.longest
        self.capacity = self.max_prompt_tokens + self.task.max_new_tokens
        self.reward_seconds = 0.0
        self._text = ResponseText(self.tokenizer, self.task.stop)
        self.eos_ids = end_ids(self.tokenizer)
        self.masks = Masks(num_slots, self.task, self.tokenizer, mask)
        self.suppress_tokens = self.masks.suppress_tokens
        super().__init__(num_slots, self.capacity, self.tokenizer.pad_id)
        self.prompt_index: Ids = np.zeros(num_slots, dtype=np.int64)
        self._limit: Ids = np.zeros(num_slots, dtype=np.int64)  # the length that ends a slot's episode
        self._rows: Slots = np.arange(num_slots)
        self._starts: Slots = self._rows * self.capacity

    def spaces(self) -> tuple[gym.spaces.Dict, gym.spaces.Discrete]:
        """One slot's observations and actions; see :func:`~rlhf_gym.envs.token_rows.token_spaces`."""
        return token_spaces(self.tokenizer.vocab_size, self.capacity, self.max_prompt_tokens)

    @property
    def rules(self) -> TokenRules:
        """The fixed rules of the episodes, for agents."""
        task, tokenizer = self.task, self.tokenizer
        return TokenRules(
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            suppress_tokens=self.suppress_tokens,
            min_new_tokens=task.min_new_tokens,
            max_new_tokens=task.max_new_tokens,
            stop=task.stop,
            more_eos_ids=self.eos_ids[1:],
            infos=self.infos,
            prompt_order=self.prompt_order,
        )

    def share_prompts(self, parts: Sequence[int], of: int) -> None:
        """With ``prompt_order="epochs"``, say which part of each epoch a slot gets from the next seed on.

        Args:
            parts: the part of each slot, from 0.
            of: the number of parts.
        """
        if isinstance(self.draws, EpochDraws):
            self.draws.share(parts, of)

    def note_outcomes(
        self, prompts: Sequence[Sequence[int]], scores: Sequence[float], advantages: Sequence[float]
    ) -> None:
        """See :meth:`TokenVectorEnv.note_outcomes <rlhf_gym.envs.token_vector_env.TokenVectorEnv.note_outcomes>`.

        Args:
            prompts: ids of each response's prompt.
            scores: of each response.
            advantages: the mean size of each response's advantages.
        """
        if not isinstance(self.draws, WeightedDraws):
            return
        known = [
            (self.prompts.numbers.get(tuple(ids)), s, a) for ids, s, a in zip(prompts, scores, advantages, strict=True)
        ]
        rows = [(number, s, a) for numbers, s, a in known for number in numbers or ()]
        if rows:
            self.draws.note(*zip(*rows, strict=True))
            # Stepping draws an episode's prompt when the one before ends, decoding when it begins: both by these weights.
            waiting = np.flatnonzero(self.unbegun & self.draws.has_drawn)
            self.begin_all(waiting, self.draws.last_by_new_weights(waiting))

    def draws_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the draws of prompts, as JSON values."""
        memory = {"prompt_memory": self.draws.memory()} if isinstance(self.draws, WeightedDraws) else {}
        return {"generators": self.draws.states(), **memory}

    def restore_draws(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`draws_state`.

        Raises:
            ConfigError: it is of another order of prompts.
        """
        memory = state.get("prompt_memory")
        if (memory is not None) != isinstance(self.draws, WeightedDraws):
            raise ConfigError(OTHER_ORDER)
        self.draws.restore(state["generators"])
        if isinstance(self.draws, WeightedDraws) and memory is not None:
            self.draws.remember(memory)

    @property
    def unbegun(self) -> Mask:
        """bool ``[N]``, True where an episode runs that has no token of its response yet."""
        unbegun: Mask = self.running & (self.length == self.prompt_length)
        return unbegun

    def begin(self, slot: int, index: int) -> Ids:
        """Start an episode with the prompt of this number; returns the prompt's ids.

        Args:
            slot: the slot's number.
            index: the prompt's number.
        """
        prompt = self.prompts.one(index)
        self.ids[slot] = self.tokenizer.pad_id
        self.ids[slot, : len(prompt)] = prompt
        self.prompt_index[slot] = index
        self.prompt_length[slot] = self.length[slot] = len(prompt)
        self._limit[slot] = len(prompt) + self.task.max_new_tokens
        self.running[slot] = True
        self.masks.begin(slot)
        return prompt

    def begin_all(self, slots: Slots, index: Ids) -> None:
        """Start an episode in each of these slots, with the prompts of these numbers, int64 ``[n]``.

        Args:
            slots: int ``[n]``.
            index: int64 ``[n]``, the prompts' numbers.
        """
        if not len(slots):
            return
        self.ids[slots] = self.tokenizer.pad_id
        self.ids[slots, : self.max_prompt_tokens] = self.prompts.rows(index, self.tokenizer.pad_id)
        self.prompt_index[slots] = index
        self.prompt_length[slots] = self.length[slots] = sizes = self.prompts.sizes[index]
        self._limit[slots] = sizes + self.task.max_new_tokens
        self.running[slots] = True
        self.masks.begin(slots)

    def check_actions(self, actions: Ids, slots: Slots | None = None, idle: Slots | None = None) -> None:
        """Refuse ids outside the vocabulary, and steps of slots without a running episode.

        Args:
            actions: int64 ``[N]``.
            slots: int ``[n]``, where they are to be appended; None: in all slots.
            idle: with ``slots`` None, the slots whose action does not count; none of them is running.

        Raises:
            ResetNeeded: a slot has no running episode.
            InvalidAction: an id is outside the vocabulary, or outside a strict mask.
        """
        taken, running = (actions, self.running) if slots is None else (actions[slots], self.running[slots])
        # Here and below: counting is several times faster than any() and all() on arrays of this size.
        stopped = len(running) - np.count_nonzero(running)
        # As unsigned numbers, negative ids are larger than any vocabulary: one comparison for both bounds.
        strange = np.count_nonzero(taken.view(np.uint64) >= self.tokenizer.vocab_size)
        if stopped > (0 if idle is None else len(idle)) or strange:
            self._refuse(actions, self._counting(slots, idle))
        if self.masks.options.strict:
            self.masks.check(self, actions, self._counting(slots, idle))

    def _counting(self, slots: Slots | None, idle: Slots | None) -> Slots:
        """The slots whose actions count."""
        if slots is not None:
            return slots
        return self._rows if idle is None else np.delete(self._rows, idle)

    def _refuse(self, actions: Ids, slots: Slots) -> None:
        """Say what is wrong with these slots' actions, if anything is."""
        running, taken = self.running[slots], actions[slots]
        if not running.all():
            stuck = int(slots[int(np.argmin(running))])
            never = self.length[stuck] == 0
            raise gym.error.ResetNeeded(
                f"step() in slot {stuck}, where {'no episode was started' if never else 'the episode has ended'}: call reset()"
            )
        outside = (taken < 0) | (taken >= self.tokenizer.vocab_size)
        if outside.any():
            wrong = int(slots[int(np.argmax(outside))])
            raise gym.error.InvalidAction(
                f"action {int(actions[wrong])} in slot {wrong} is not a token id; expected 0..{self.tokenizer.vocab_size - 1}"
            )

    def append(self, actions: Ids, slots: Slots | None = None, idle: Slots | None = None) -> Slots:
        """Append one id in some slots.

        Args:
            actions: int64 ``[N]``.
            slots: int ``[n]``, where; None: in all slots.
            idle: with ``slots`` None, the slots whose action does not count. They are few, so it is far cheaper to append
                there too and to undo it than to index all others.

        Returns:
            int ``[m]``, the slots whose episode has now ended.
        """
        if slots is None:
            taken, rows = actions, self._rows
            self.ids.ravel()[self._starts + self.length] = taken
            self.length += 1
            ends = self.length >= self._limit
        else:
            taken, rows = actions[slots], slots
            self.ids[rows, self.length[rows]] = taken
            self.length[rows] += 1
            ends = self.length[rows] >= self._limit[rows]
        for end in self.eos_ids:
            ends |= taken == end
        if idle is not None:
            self.length[idle] -= 1
            self.ids[idle, self.length[idle]] = self.tokenizer.pad_id
            ends[idle] = False
        if self.masks.follows or self.task.stop:
            self._follow(actions, ends, self._counting(slots, idle))
        if not np.count_nonzero(ends):
            return rows[:0]
        ended: Slots = rows[ends]
        self.running[ended] = False
        return ended

    def _follow(self, actions: Ids, ends: Mask, slots: Slots) -> None:
        """Advance the grammar's state, and note in ``ends`` where a stop sequence has appeared."""
        if self.masks.follows:
            self.masks.advance(slots, actions[slots])
        if self.task.stop:
            rows = slots if len(ends) == len(self.length) else np.arange(len(slots))
            for row, slot in zip(rows.tolist(), slots.tolist(), strict=True):
                ends[row] = ends[row] or self._text.stopped(*self._ids(slot))

    def response(self, slot: int) -> str:
        """The response so far, cut before a stop sequence."""
        return self.text_of(*self._ids(slot))

    def text_of(self, ids: Sequence[int], prompt_ids: Sequence[int]) -> str:
        """The text of a response, cut before a stop sequence.

        Args:
            ids: ids of the response.
            prompt_ids: ids of its prompt.
        """
        return self._text.read(ids, prompt_ids)[0]

    def _ids(self, slot: int) -> tuple[list[int], list[int]]:
        """The ids of a slot's response and of its prompt."""
        start, row = int(self.prompt_length[slot]), self.ids[slot, : self.length[slot]].tolist()
        return row[start:], row[:start]

    def score(self, slots: Sequence[int]) -> tuple[ScoredBatch, list[dict[str, Any]]]:
        """Score the episodes in these slots with one call of the reward.

        Returns:
            The scores, and an ``info`` for each slot, with the keys of :func:`~rlhf_gym.envs.scoring.score_episodes`.
        """
        scored, columns = self.score_columns(np.asarray(slots, dtype=np.intp))
        return scored, [row_of(columns, i) for i in range(len(slots))]

    def score_columns(self, slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        """The same as :meth:`score`, with the infos by key: lists or arrays of one value for each slot."""
        return self.score_ended(self.read_ended(slots))

    def read_ended(self, slots: Slots) -> EndedEpisodes:
        """Read the episodes in these slots; the slots' next episodes may begin before they are scored."""
        # take() is several times faster than indexing by so few numbers.
        starts, lengths = self.prompt_length.take(slots), self.length.take(slots)
        responses, stopped = self._responses(slots, starts, lengths)
        index = self.prompt_index.take(slots)
        texts, extra = self.prompts.texts(index), self.prompts.columns(index)
        if self._wants_ids:
            extra[IDS] = [self.ids[slot, a:b].tolist() for slot, a, b in zip(slots, starts, lengths, strict=True)]
        if self._wants_ends:
            extra[ENDS] = [self._text.ends(*self._ids(slot)) for slot in slots.tolist()]
        ended = stopped | np.isin(self.ids.take(self._starts.take(slots) + lengths - 1), self.eos_ids)
        return EndedEpisodes(texts, responses, extra, ended, lengths - starts)

    def score_ended(self, episodes: EndedEpisodes) -> tuple[ScoredBatch, dict[str, Any]]:
        """Score episodes with one call of the reward, and count its seconds.

        It touches nothing here but the reward, so it may run in another thread while the slots go on.

        Returns:
            See :func:`~rlhf_gym.envs.scoring.score_episodes`.
        """
        began = perf_counter()
        scored = score_episodes(self.reward, episodes)
        self.reward_seconds += perf_counter() - began
        return scored

    def _responses(self, slots: Slots, starts: Ids, lengths: Ids) -> tuple[list[str], Mask]:
        """The responses of some slots, decoded at once; and bool ``[n]``, True where a stop sequence cut them."""
        sizes = lengths - starts
        # No row is left: the longest response fits behind the longest prompt.
        places = (self._starts.take(slots) + starts)[:, None] + np.arange(sizes.max())
        prompts = lambda: [self._ids(slot)[1] for slot in slots.tolist()]  # noqa: E731
        return self._text.read_all(self.ids.take(places), sizes, prompts)

    def numbers(self, slots: Slots) -> dict[str, Any]:
        """The infos that are numbers: bool ``ended`` and int64 ``response_length``, ``[n]`` each, of the episodes as they are.

        Args:
            slots: int ``[n]``.
        """
        ended: Mask = ~self.running[slots]
        if ended.any():
            ended &= self.read_ended(slots).ended
        return {"ended": ended, "response_length": self.length[slots] - self.prompt_length[slots]}

    def action_masks(self) -> Mask:
        """bool ``[N, V]``, True where a token is allowed now; every row allows at least one."""
        return self.masks.rows(self)

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, as JSON values: running episodes, and an adaptive reward's state."""
        rows = {name: getattr(self, name).tolist() for name in _KEPT}
        return {**rows, "reward": reward_state(self.reward)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state`, taken from episodes of the same task and number of slots."""
        for name in _KEPT:
            array = getattr(self, name)
            array[...] = np.array(state[name], dtype=array.dtype)
        self._limit[...] = self.prompt_length + self.task.max_new_tokens
        restore_reward(self.reward, state["reward"])
        self.masks.replay(self)
