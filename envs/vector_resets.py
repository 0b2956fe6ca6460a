"""Which slots a vector environment resets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Mask


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
