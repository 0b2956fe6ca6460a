"""Any text up to a length as a Gymnasium space: language has no fixed character set."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from gymnasium.spaces import Text

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " \n"


class AnyText(Text):
    """Texts of 0 to ``max_length`` characters of any script; samples are drawn from printable ASCII.

    A `gymnasium.spaces.Text` whose ``charset`` says what samples are made of, not what is contained: a character set that
    holds all of Unicode would have 1.1 million entries.

    Args:
        max_length: most characters.
        charset: characters of samples.
        seed: of the samples.
    """

    def __init__(
        self, max_length: int, *, charset: str = PRINTABLE, seed: int | np.random.Generator | None = None
    ) -> None:
        super().__init__(max_length, min_length=0, charset=charset, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as Text: spaces are compared, not hashed

    @property
    def is_np_flattenable(self) -> bool:
        """False: characters outside the character set have no number."""
        return False
