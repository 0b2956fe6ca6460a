"""Which slots a vector environment resets, and with whose random numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Mask, slot_generator


def reset_mask(options: Mapping[str, Any] | None, num_envs: int) -> Mask:
    """The slots to reset, bool ``[N]``: ``options["reset_mask"]``, or all; the caller's ``options`` are left as they are.

    Raises:
        ValueError: it is no bool array of that shape, or True nowhere.
    """
    mask = (options or {}).get("reset_mask")
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_:
        shown = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"options['reset_mask'] must be a bool array of shape ({num_envs},), got {shown}")
    if not mask.any():
        raise ValueError("options['reset_mask'] must be True somewhere; it is False for every environment")
    chosen: NDArray[np.bool_] = mask
    return chosen


def seeded_generators(
    seed: int | Sequence[int | None] | None, current: Sequence[np.random.Generator] | None, mask: Mask
) -> list[np.random.Generator]:
    """The generators of all slots after a reset with this seed.

    A number ``s`` gives slot ``i`` the stream ``SeedSequence((s, i))``; a list gives each slot what a single environment would
    have with that seed.

    Args:
        seed: as ``reset`` got it; None, also in a list, goes on with what there is.
        current: the generators so far; None before the first reset.
        mask: bool ``[N]``, the slots that are reset; the others keep theirs.

    Raises:
        ValueError: a list that has not one seed a slot.
    """
    count = len(mask)
    if isinstance(seed, int | np.integer):
        fresh = [slot_generator(int(seed), slot) for slot in range(count)]
    elif seed is None:
        if current is not None:
            return list(current)
        fresh = [slot_generator(None, slot) for slot in range(count)]
    else:
        if len(seed) != count:
            raise ValueError(f"got {len(seed)} seeds for {count} environments; expected one each")
        old: Sequence[np.random.Generator | None] = current or [None] * count
        fresh = [g if s is None and g is not None else slot_generator(s, 0) for s, g in zip(seed, old, strict=True)]
    if current is None:
        return fresh
    return [new if chosen else old for new, old, chosen in zip(fresh, current, mask, strict=True)]
