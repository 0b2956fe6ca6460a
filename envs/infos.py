"""What happened in some slots, as vector environments report it: arrays over all slots, with a mask for each key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.intp]


def stack_infos(infos: Sequence[Mapping[str, Any]], slots: Slots, num_envs: int) -> dict[str, Any]:
    """Infos of some slots in Gymnasium's form: for each key an array over all slots, and ``_key`` for where it is meant.

    The same as ``VectorEnv._add_info`` gives slot by slot, at a fraction of its cost.

    Args:
        infos: one a slot, all with the same keys; mappings in them are stacked likewise.
        slots: int ``[n]``, which slots.
        num_envs: ``N``.
    """
    out: dict[str, Any] = {}
    for key, first in infos[0].items():
        values = [info[key] for info in infos]
        present = np.zeros(num_envs, dtype=np.bool_)
        present[slots] = True
        if isinstance(first, dict):
            out[key] = stack_infos(values, slots, num_envs)
        elif isinstance(first, bool | int | float):
            out[key] = np.zeros(num_envs, dtype=type(first))
            out[key][slots] = values
        else:
            out[key] = np.full(num_envs, None, dtype=object)
            for slot, value in zip(slots.tolist(), values, strict=True):
                out[key][slot] = value
        out["_" + key] = present
    return out


def stack_observations(batch: Mapping[str, NDArray[Any]], slots: Slots, num_envs: int) -> NDArray[np.object_]:
    """Object array ``[N]``: the observations of some slots, None elsewhere.

    Args:
        batch: these slots' observations, ``[n, ...]`` each; the rows are not copied again.
        slots: int ``[n]``, which slots.
        num_envs: ``N``.
    """
    out = np.full(num_envs, None, dtype=object)
    for row, slot in enumerate(slots.tolist()):
        out[slot] = {key: rows[row] for key, rows in batch.items()}
    return out
