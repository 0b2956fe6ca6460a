"""Which prompt each slot of a vector environment draws next: every slot from random numbers of its own, many at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.intp]

AHEAD = 128
"""Prompts that a slot draws at once: one call for a block costs little more than one for a single number."""


class PromptDraws:
    """The random streams of ``N`` slots, each drawing from ``P`` prompts what a single environment of its seed would.

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
        self._block_began: list[Mapping[str, Any] | None] = [
            None
        ] * num_slots  # each generator's state before its block
        self._drawn: NDArray[np.int64] = np.full(num_slots, AHEAD, dtype=np.int64)  # of each block

    def seed(self, seed: int | Sequence[int | None] | None, chosen: NDArray[np.bool_]) -> None:
        """Seed some slots anew.

        A number ``s`` gives slot ``i`` the stream ``SeedSequence((s, i))``; a list gives each slot what a single environment
        would have with that seed.

        Args:
            seed: as ``reset`` got it; None, also in a list, goes on with what there is.
            chosen: bool ``[N]``, the slots that are reset; the others keep their streams.

        Raises:
            ValueError: a list that has not one seed a slot.
        """
        count = len(chosen)
        fresh: list[np.random.Generator | None]
        if isinstance(seed, int | np.integer):
            fresh = [slot_generator(int(seed), slot) for slot in range(count)]
        elif seed is None:
            fresh = [None] * count
        else:
            if len(seed) != count:
                raise ValueError(f"got {len(seed)} seeds for {count} environments; expected one each")
            fresh = [None if s is None else slot_generator(s, 0) for s in seed]
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
        """int64 ``[n]``: the next prompt of each of these slots, all different."""
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
        """The opposite of :meth:`states`, once seeded."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state
        self._drawn[:] = AHEAD


def slot_generator(seed: int | None, slot: int) -> np.random.Generator:
    """The random numbers of one slot: streams of neighbouring seeds and slots never overlap."""
    return np.random.default_rng(None if seed is None else np.random.SeedSequence((seed, slot)))
