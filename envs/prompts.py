"""A task's prompts for environments: their token ids in one table, and the draws of every slot.

Every slot draws from random numbers of its own, a block of prompts at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.token_rows import Ids, Slots
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.prompt_ids import prompt_ids
from rlhf_gym.tasks.samples import column_names

AHEAD = 128
"""Prompts that a slot draws at once: one call for a block costs little more than one for a single number."""


class PromptTable:
    """The ids of all prompts, one behind the other: as large as the prompts, however uneven they are.

    Args:
        task: the task.
        tokenizer: gives the ids.
        max_prompt_tokens: refuse prompts longer than this; None takes the task's longest.

    Attributes:
        sizes: int64 ``[P]``, tokens of each prompt.
        longest: the most tokens that a prompt may have.

    Raises:
        TaskError: a prompt without tokens, with an id outside the vocabulary, or longer than allowed.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, max_prompt_tokens: int | None = None) -> None:
        rows = [prompt_ids(p, tokenizer) for p in task.prompts]
        self.sizes: Ids = np.array([len(row) for row in rows], dtype=np.int64)
        if not self.sizes.all():
            empty = int(np.argmin(self.sizes))
            raise TaskError(
                f"the tokenizer {tokenizer.name!r} gives no ids for prompt {empty} of task {task.name!r}; expected at least one"
            )
        most = int(np.argmax(self.sizes))
        if max_prompt_tokens is not None and self.sizes[most] > max_prompt_tokens:
            raise TaskError(
                f"prompt {most} of task {task.name!r} has {self.sizes[most]} tokens, more than "
                f"max_prompt_tokens={max_prompt_tokens}; shorten it, leave it out, or raise max_prompt_tokens"
            )
        self.longest = max_prompt_tokens or int(self.sizes[most])
        self._flat: Ids = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
        if self._flat.min() < 0 or self._flat.max() >= tokenizer.vocab_size:
            wrong = int(np.argmax((self._flat < 0) | (self._flat >= tokenizer.vocab_size)))
            raise TaskError(
                f"the tokenizer {tokenizer.name!r} gives the id {self._flat[wrong]} in a prompt of task {task.name!r}; "
                f"expected 0..{tokenizer.vocab_size - 1}"
            )
        self._starts: Ids = np.cumsum(self.sizes) - self.sizes
        # The last prompt's row reaches beyond its end.
        self._flat = np.concatenate([self._flat, np.zeros(self.longest, dtype=np.int64)])
        self._places: Ids = np.arange(self.longest)
        self._texts = _objects(p.text for p in task.prompts)
        self._columns = {
            name: _objects(p.columns.get(name) for p in task.prompts) for name in column_names(task.prompts)
        }

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def numbers(self) -> dict[tuple[int, ...], list[int]]:
        """The numbers of the prompts with these ids."""
        found: dict[tuple[int, ...], list[int]] = {}
        for index in range(len(self)):
            found.setdefault(tuple(self.one(index).tolist()), []).append(index)
        return found

    def one(self, index: int) -> Ids:
        """The ids of one prompt, a view."""
        start = self._starts[index]
        return self._flat[start : start + self.sizes[index]]

    def rows(self, indices: Ids, pad_id: int) -> Ids:
        """int64 ``[n, longest]``, prompts padded on the right.

        Args:
            indices: int64 ``[n]``, the prompts' numbers.
            pad_id: fills the rest of each row.
        """
        rows = self._flat.take(self._starts.take(indices)[:, None] + self._places)
        rows[self._places >= self.sizes.take(indices)[:, None]] = pad_id
        return rows

    def texts(self, indices: Ids) -> list[str]:
        """The texts of some prompts."""
        texts: list[str] = self._texts.take(indices).tolist()
        return texts

    def columns(self, indices: Ids) -> dict[str, list[Any]]:
        """The columns of some prompts by name, as :func:`~rlhf_gym.tasks.samples.columns_of` gives them."""
        return {name: values.take(indices).tolist() for name, values in self._columns.items()}


def _objects(values: Iterable[Any]) -> NDArray[np.object_]:
    """One object a place: lists of equal lengths must not become a matrix."""
    return np.fromiter(values, dtype=np.object_)


class PromptDraws:
    """The random streams of ``N`` slots; each draws from ``P`` prompts what a single environment with its seed draws.

    Args:
        num_slots: ``N``.
        num_prompts: ``P``.

    Attributes:
        seeded: False before the first :meth:`seed`.
    """

    def __init__(self, num_slots: int, num_prompts: int) -> None:
        self.num_prompts = num_prompts
        self.seeded = False
        self._generators: list[np.random.Generator] = []
        self._block: NDArray[np.int64] = np.zeros((num_slots, AHEAD), dtype=np.int64)
        # Each generator's state before its block was drawn.
        self._block_began: list[Mapping[str, Any] | None] = [None] * num_slots
        self._drawn: NDArray[np.int64] = np.full(num_slots, AHEAD, dtype=np.int64)  # of each block

    def seed(self, seed: int | Sequence[int | None] | None, chosen: NDArray[np.bool_]) -> None:
        """Seed some slots anew.

        A number ``s`` gives slot ``i`` the stream ``SeedSequence((s, i))``; a list gives each slot what a single environment
        would have with that seed.

        Args:
            seed: as ``reset`` got it; None, also in a list, goes on with the random numbers there are.
            chosen: bool ``[N]``, the slots that are reset; the others keep their streams.

        Raises:
            ValueError: a list that has not one seed a slot.
        """
        count = len(chosen)
        fresh = [None if one is None else slot_generator(*one) for one in slot_seeds(seed, count)]
        if not self.seeded:  # nothing to keep or to go on with
            self._generators = [slot_generator(None, 0) if g is None else g for g in fresh]
            self._drawn[:] = AHEAD
            self.seeded = True
            return
        for slot in np.flatnonzero(chosen).tolist():
            if (generator := fresh[slot]) is not None:
                self._generators[slot] = generator
                self._drawn[slot] = AHEAD

    def take(self, slots: Slots) -> NDArray[np.int64]:
        """int64 ``[n]``: the number of the next prompt of each of these slots; no slot may be named twice."""
        places = self._drawn.take(slots)
        spent = places == AHEAD
        if np.count_nonzero(spent):
            for slot in slots[spent].tolist():
                self._draw_block(slot)
            places[spent] = 0
        self._drawn[slots] = places + 1
        return self._block.take(slots * AHEAD + places)

    def _draw_block(self, slot: int) -> None:
        generator = self._generators[slot]
        self._block_began[slot] = generator.bit_generator.state
        self._block[slot] = generator.integers(self.num_prompts, size=AHEAD)

    def states(self) -> list[dict[str, Any]]:
        """The state of each slot's generator as if it had drawn one prompt at a time, as JSON values."""
        return [self._state(slot) for slot in range(len(self._generators))]

    def _state(self, slot: int) -> dict[str, Any]:
        generator, began = self._generators[slot], self._block_began[slot]
        if began is None or self._drawn[slot] == AHEAD:
            return dict(generator.bit_generator.state)
        twin = np.random.Generator(type(generator.bit_generator)())
        twin.bit_generator.state = began
        twin.integers(self.num_prompts, size=int(self._drawn[slot]))
        return dict(twin.bit_generator.state)

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore :meth:`states`; the streams must have been seeded before.

        Raises:
            ConfigError: they are of another order of prompts.
        """
        if any("bit_generator" not in state for state in states):
            raise ConfigError(OTHER_ORDER)
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state
        self._drawn[:] = AHEAD


class EpochDraws:
    """The draws of ``N`` slots that go through all ``P`` prompts, in random order, before one comes again.

    Slots of one seed share its epochs: slot with part ``i`` of ``n`` gets the prompts ``i``, ``i + n``, ``i + 2 n``, ... of all
    permutations one behind the other. So ``n`` parts that draw equally often are without replacement together, and slots of the
    same seed and part draw the same prompts.

    Args:
        num_slots: ``N``.
        num_prompts: ``P``.

    Attributes:
        seeded: False before the first :meth:`seed`.
    """

    def __init__(self, num_slots: int, num_prompts: int) -> None:
        self.num_slots, self.num_prompts = num_slots, num_prompts
        self.seeded = False
        self._shared: tuple[Sequence[int], int] | None = None
        # Of each slot: the seed of its permutations, its part and the number of parts, and the prompts drawn so far.
        self._seeds: list[int] = [0] * num_slots
        self._part, self._parts, self._drawn = (np.zeros(num_slots, dtype=np.int64) for _ in range(3))
        self._epoch: NDArray[np.int64] = np.full(num_slots, -1, dtype=np.int64)  # the one whose order is at hand
        self._order: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * num_slots

    def share(self, parts: Sequence[int], of: int) -> None:
        """Say which part of each epoch a slot gets, from the next :meth:`seed` on.

        Args:
            parts: the part of each slot, from 0.
            of: the number of parts.
        """
        self._shared = list(parts), of

    def seed(self, seed: int | Sequence[int | None] | None, chosen: NDArray[np.bool_]) -> None:
        """Seed some slots anew.

        A number gives slot ``i`` part ``i`` of ``N``; a list gives each slot what a single environment would have with that
        seed. :meth:`share` sets other parts.

        Args:
            seed: as ``reset`` got it; None, also in a list, goes on with the streams there are.
            chosen: bool ``[N]``, the slots that are reset; the others keep their streams.

        Raises:
            ValueError: a list that has not one seed a slot.
        """
        if seed is None and self.seeded:
            return
        count = self.num_slots
        seeds: list[int | None]
        if seed is None or isinstance(seed, int | np.integer):
            seeds, (parts, of) = [seed] * count, self._shared or (range(count), count)
        else:
            seeds, (parts, of) = list(seed), self._shared or ([0] * count, 1)
        if len(seeds) != count:
            raise ValueError(f"got {len(seeds)} seeds for {count} environments; expected one each")
        entropy = int(np.random.SeedSequence().generate_state(1)[0])  # for the slots that nobody seeds
        for slot in np.flatnonzero(chosen).tolist() if self.seeded else range(count):
            if (given := seeds[slot]) is not None:
                self._start(slot, int(given), parts[slot], of)
            elif not self.seeded:
                self._start(slot, entropy, slot, count)
        self.seeded = True

    def _start(self, slot: int, seed: int, part: int, parts: int, drawn: int = 0) -> None:
        self._seeds[slot], self._part[slot], self._parts[slot], self._drawn[slot] = seed, part, parts, drawn
        self._epoch[slot] = -1

    def take(self, slots: Slots) -> NDArray[np.int64]:
        """int64 ``[n]``: the number of the next prompt of each of these slots; no slot may be named twice."""
        epochs, places = np.divmod(self._drawn[slots] * self._parts[slots] + self._part[slots], self.num_prompts)
        for i in np.flatnonzero(epochs != self._epoch[slots]).tolist():
            slot, epoch = int(slots[i]), int(epochs[i])
            self._epoch[slot], self._order[slot] = epoch, _permutation(self._seeds[slot], epoch, self.num_prompts)
        self._drawn[slots] += 1
        order = self._order
        return np.array(
            [order[slot][place] for slot, place in zip(slots.tolist(), places.tolist(), strict=True)], np.int64
        )

    def states(self) -> list[dict[str, Any]]:
        """Each slot's place in its epochs, as JSON values."""
        rows = zip(self._seeds, self._part.tolist(), self._parts.tolist(), self._drawn.tolist(), strict=True)
        return [dict(zip(_PLACE, row, strict=True)) for row in rows]

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore :meth:`states`.

        Raises:
            ConfigError: they are of another order of prompts.
        """
        if any(set(state) != set(_PLACE) for state in states):
            raise ConfigError(OTHER_ORDER)
        for slot, state in enumerate(states):
            self._start(slot, *(state[name] for name in _PLACE))
        self.seeded = True


_PLACE = ("seed", "part", "parts", "drawn")
OTHER_ORDER = (
    "the checkpoint's environment drew its prompts in another order: make the environment with its prompt_order"
)


def place_in_epochs(seed: int, number: int, num_prompts: int) -> int:
    """The prompt of draw ``number``, from 0, in the epochs of a seed that :class:`EpochDraws` goes through.

    Args:
        seed: of the epochs.
        number: of the draw.
        num_prompts: ``P``.
    """
    epoch, place = divmod(number, num_prompts)
    return int(_permutation(seed, epoch, num_prompts)[place])


@lru_cache(maxsize=4)  # slots of one seed share it
def _permutation(seed: int, epoch: int, num_prompts: int) -> NDArray[np.int64]:
    return np.random.default_rng(np.random.SeedSequence((seed, epoch))).permutation(num_prompts)


def slot_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[tuple[int, int] | None]:
    """Of each slot the seed and the number that :func:`slot_generator` takes; None goes on with the random numbers there are.

    Args:
        seed: as ``reset`` of a vector environment got it: a number gives slot ``i`` its ``i``-th stream, a list gives each slot
            what a single environment would have with that seed.
        count: number of slots.

    Raises:
        ValueError: a list that has not one seed a slot.
    """
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [(int(seed), slot) for slot in range(count)]
    if len(seed) != count:
        raise ValueError(f"got {len(seed)} seeds for {count} environments; expected one each")
    return [None if s is None else (s, 0) for s in seed]


def slot_generator(seed: int | None, slot: int) -> np.random.Generator:
    """The random numbers of one slot; different seeds and slots give different streams.

    Args:
        seed: as ``reset`` got it; None draws one.
        slot: the slot's number; 0 for a single environment.
    """
    return np.random.default_rng(None if seed is None else np.random.SeedSequence((seed, slot)))
