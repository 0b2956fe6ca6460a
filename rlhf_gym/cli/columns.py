"""The option ``--columns``: which column of a file is what."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rlhf_gym.errors import ConfigError

COLUMNS_HELP = (
    "which column is what, where it has another name: prompt=... chosen=... rejected=..., or prompt=... response_a=... "
    "response_b=... choice=..., or prompt=... completion=... label=..., or prompt=... response=... "
    "rating=...; also rater=, margin=, and any field of the format "
    "that --format names. Dots lead into mappings and lists: prompt=data.question"
)


def add_columns(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--columns`` to a command that reads a file of judgements."""
    parser.add_argument("--columns", metavar="NAME=COLUMN", nargs="+", action="extend", default=[], help=COLUMNS_HELP)


def columns_of(given: Sequence[str]) -> dict[str, str]:
    """``NAME=COLUMN`` as a mapping.

    Raises:
        ConfigError: something that is not of that form, or a name twice.
    """
    found: dict[str, str] = {}
    for one in given:
        name, equals, column = one.partition("=")
        if not (name and equals and column) or name in found:
            raise ConfigError(f"--columns takes NAME=COLUMN, each name once, e.g. prompt=question; got {one!r}")
        found[name] = column
    return found
