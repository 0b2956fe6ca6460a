"""Needs of built-in rewards that a user may have to meet: a library to install, a column of the data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rlhf_gym.errors import ConfigError, RewardError


def library(module: str, package: str, reward: str) -> Any:
    """Import a library that only some rewards need.

    Args:
        module: the module to import.
        package: the package that has it, for the message.
        reward: the reward's name, for the message.

    Raises:
        ConfigError: it is not installed; the message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"reward {reward!r} needs {package}: pip install 'rlhf-gym[metrics]'") from error


def column_of(columns: Mapping[str, list[Any]], column: str, reward: str) -> list[Any]:
    """The values of a column that a reward needs.

    Args:
        columns: the data set's columns.
        column: the column's name.
        reward: the reward's name, for the message.

    Raises:
        RewardError: the data have no such column.
    """
    if column not in columns:
        raise RewardError(
            f"reward {reward!r} needs the column {column!r}; the data have {', '.join(map(repr, columns)) or 'no columns'}"
        )
    return columns[column]
