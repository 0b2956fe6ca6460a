"""The parts of Gymnasium's vector API that all vector environments here share: infos, resets, autoreset modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from rlhf_gym.envs.token_rows import Mask, Slots
from rlhf_gym.errors import ConfigError


def stack_infos(columns: Mapping[str, Any], slots: Slots, num_envs: int) -> dict[str, Any]:
    """Infos of some slots in Gymnasium's form: for each key an array over all slots, and ``_key``, True in these slots.

    The result is that of ``VectorEnv._add_info``, slot by slot, at a fraction of its cost.

    Args:
        columns: for each key a list or an array of one value for each slot; mappings are stacked likewise.
        slots: int ``[n]``, the slots of these values.
        num_envs: ``N``.

    Returns:
        Arrays ``[N]`` by key; a mapping becomes a mapping of arrays.
    """
    present = np.zeros(num_envs, dtype=np.bool_)
    present[slots] = True
    out: dict[str, Any] = {}
    for key, values in columns.items():
        if isinstance(values, Mapping):
            out[key] = stack_infos(values, slots, num_envs)
        else:
            numbers = isinstance(values, np.ndarray) and values.dtype != np.object_
            out[key] = np.zeros(num_envs, values.dtype) if numbers else np.empty(num_envs, np.object_)  # of None
            out[key][slots] = values
        out["_" + key] = present.copy()
    return out


def slot_info(infos: Mapping[str, Any], slot: int) -> dict[str, Any]:
    """One slot's part of a vector environment's infos, with Python's own numbers; the opposite of :func:`stack_infos`.

    Args:
        infos: the infos of all slots. A key without a ``_key`` (some wrappers add such) is in every slot; its value may be
            one for all.
        slot: the slot's number.
    """
    out: dict[str, Any] = {}
    for key, value in infos.items():
        if not key.startswith("_") and ("_" + key not in infos or infos["_" + key][slot]):
            of_slots = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)
            out[key] = slot_info(value, slot) if isinstance(value, dict) else _plain(value[slot] if of_slots else value)
    return out


def row_of(columns: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One row of columns, as Python's own numbers where arrays hold NumPy's.

    Args:
        columns: lists or arrays by name; mappings of them.
        row: the row's number.
    """
    return {
        key: row_of(values, row) if isinstance(values, dict) else _plain(values[row]) for key, values in columns.items()
    }


def _plain(value: Any) -> Any:
    """A NumPy number as Python's own; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def stack_observations(batch: Mapping[str, NDArray[Any]], slots: Slots, num_envs: int) -> NDArray[np.object_]:
    """Object array ``[N]``: the observations of some slots, None elsewhere.

    Args:
        batch: these slots' observations, ``[n, ...]`` each; the rows are not copied again.
        slots: int ``[n]``, the slots of these rows.
        num_envs: ``N``.
    """
    out = np.empty(num_envs, dtype=np.object_)  # of None
    for row, slot in enumerate(slots.tolist()):
        out[slot] = {key: rows[row] for key, rows in batch.items()}
    return out


def reset_mask(options: Mapping[str, Any] | None, num_envs: int) -> Mask:
    """The slots to reset, bool ``[N]``: ``options["reset_mask"]``, or all.

    Args:
        options: what ``reset`` was given; left as it is.
        num_envs: ``N``.

    Raises:
        ValueError: the mask is no bool array of that shape, or True nowhere.
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


def chosen_prompt(options: Mapping[str, Any] | None, num_prompts: int) -> int | None:
    """The number of the prompt that ``options["prompt"]`` asks for; None where one is to be drawn.

    Args:
        options: what ``reset`` was given; left as it is.
        num_prompts: of the task.

    Raises:
        ConfigError: the task has no prompt of that number.
    """
    number = (options or {}).get("prompt")
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 0 <= number < num_prompts:
        raise ConfigError(f"options['prompt'] must be the number of a prompt, 0 to {num_prompts - 1}, got {number!r}")
    return int(number)


def note_seed(env: VectorEnv[Any, Any, Any], seed: int | Sequence[int | None] | None) -> None:
    """Have the environment's ``np_random_seed`` say what ``reset`` was given, as Gymnasium's own vector environments do.

    Args:
        env: a vector environment.
        seed: a number, one for each slot (then it is a tuple of them), or None, which leaves it as it is.
    """
    if seed is None:
        return
    if isinstance(seed, int | np.integer):
        VectorEnv.reset(env, seed=int(seed))
    else:
        env._np_random_seed = tuple(seed)  # type: ignore[assignment]  # as SyncVectorEnv has it


def as_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode by its name (``"same_step"``, which JSON can carry) or as it is.

    Raises:
        ValueError: there is no mode of that name.
    """
    if isinstance(mode, AutoresetMode):
        return mode
    known = {m.name.lower(): m for m in AutoresetMode}
    if mode not in known:
        raise ValueError(f"autoreset_mode {mode!r} is not known; expected one of {', '.join(known)}")
    return known[mode]


def check_num_envs(num_envs: int) -> None:
    """Refuse a number of environments below 1.

    Raises:
        ValueError: the number is not a whole number of at least 1.
    """
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
