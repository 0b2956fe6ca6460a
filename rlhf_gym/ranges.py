"""Ranges of settings: declared with a dataclass's field, checked and put into words in one place."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import field
from typing import Any

_WITHIN = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word of argparse and of the documentation
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Declare a field with its help and its bounds.

    Args:
        default: the field's default; a dictionary is copied for each instance.
        help: one sentence for ``--help`` and the documentation.
        at_least: smallest value; None sets no bound, here and below.
        above: the value must be larger.
        at_most: largest value.
        below: the value must be smaller.
    """
    metadata = {"help": help, "at_least": at_least, "above": above, "at_most": at_most, "below": below}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def bounds_of(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The bounds in a field's metadata by their names: ``at_least``, ``above``, ``at_most``, ``below``."""
    return {name: metadata[name] for name in _WITHIN if metadata.get(name) is not None}


def is_within(value: float, bounds: Mapping[str, float]) -> bool:
    """True if a number keeps all bounds.

    Args:
        value: the number.
        bounds: as :func:`bounds_of` gives them.
    """
    return all(_WITHIN[name](value, bound) for name, bound in bounds.items())


def bounds_in_words(bounds: Mapping[str, float]) -> str:
    """Write bounds in words; empty where there are none.

    >>> bounds_in_words({"at_least": 0, "below": 1})
    'at least 0 and below 1'
    """
    return " and ".join(f"{name.replace('_', ' ')} {bound}" for name, bound in bounds.items())
