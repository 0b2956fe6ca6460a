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
    """Raise :class:`LibraryMissingError` in the place of this package's errors about libraries that cannot be imported."""
    try:
        yield
    except LibraryMissingError:
        raise
    except RlhfGymError as error:
        if isinstance(error.__cause__, ImportError):
            raise LibraryMissingError(str(error)) from error.__cause__
        raise
