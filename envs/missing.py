"""The error of environments that need a library which is not installed: Gymnasium's own, and this package's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gymnasium.error import DependencyNotInstalled

from rlhf_gym.errors import ConfigError, RlhfGymError, TaskError


class LibraryMissingError(TaskError, ConfigError, DependencyNotInstalled):
    """An environment needs a library that is not installed; the message says how to install it."""


@contextmanager
def libraries_needed() -> Iterator[None]:
    """In this block, this package's errors about libraries that cannot be imported are Gymnasium's too.

    Raises:
        LibraryMissingError: in the place of such an error, with its message.
    """
    try:
        yield
    except RlhfGymError as error:
        if isinstance(error.__cause__, ImportError):
            raise LibraryMissingError(str(error)) from error.__cause__
        raise
