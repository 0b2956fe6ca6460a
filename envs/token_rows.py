"""The token ids of many slots as arrays, one padded row a slot: what masks, observations and language models read."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
Slots = NDArray[np.intp]


def token_spaces(vocab_size: int, capacity: int, longest_prompt: int) -> tuple[spaces.Dict, spaces.Discrete]:
    """One slot's observation (its row of ids, the length of prompt and response, that of the prompt), and its next token.

    Args:
        vocab_size: ``V``.
        capacity: ``L``, the most ids of a row.
        longest_prompt: the most ids of a prompt.
    """
    observation = spaces.Dict(
        ids=spaces.Box(0, vocab_size - 1, (capacity,), np.int64),
        length=spaces.Box(0, capacity, (1,), np.int64),
        prompt_length=spaces.Box(0, longest_prompt, (1,), np.int64),
    )
    return observation, spaces.Discrete(vocab_size)


class TokenRows:
    """The arrays of ``N`` slots.

    Args:
        num_slots: ``N``.
        capacity: ``L``, the longest prompt plus the longest response.
        pad_id: fills the unused places.

    Attributes:
        ids: int64 ``[N, L]``, prompt and response, padded on the right.
        prompt_length: int64 ``[N]``.
        length: int64 ``[N]``, prompt and response so far.
        running: bool ``[N]``, False before the first reset and after the end.
    """

    def __init__(self, num_slots: int, capacity: int, pad_id: int) -> None:
        self.ids: Ids = np.full((num_slots, capacity), pad_id, dtype=np.int64)
        self.prompt_length: Ids = np.zeros(num_slots, dtype=np.int64)
        self.length: Ids = np.zeros(num_slots, dtype=np.int64)
        self.running: Mask = np.zeros(num_slots, dtype=np.bool_)

    def observe(self, slots: Slots | None = None) -> dict[str, Ids]:
        """A copy of the observations of some slots, or of all: ``ids [n, L]``, ``length [n, 1]``, ``prompt_length [n, 1]``."""
        if slots is None:
            return {
                "ids": self.ids.copy(),
                "length": self.length[:, None].copy(),
                "prompt_length": self.prompt_length[:, None].copy(),
            }
        return {
            "ids": self.ids[slots],
            "length": self.length[slots, None],
            "prompt_length": self.prompt_length[slots, None],
        }

    def observe_one(self, slot: int) -> dict[str, Ids]:
        """A copy of one slot's observation: ``ids [L]``, ``length [1]``, ``prompt_length [1]``."""
        return {
            "ids": self.ids[slot].copy(),
            "length": self.length[slot : slot + 1].copy(),
            "prompt_length": self.prompt_length[slot : slot + 1].copy(),
        }

    def look(self) -> dict[str, Ids]:
        """All slots' observations as read-only views, which change with the next step."""
        views = {"ids": self.ids[:], "length": self.length[:, None], "prompt_length": self.prompt_length[:, None]}
        for view in views.values():
            view.flags.writeable = False
        return views
