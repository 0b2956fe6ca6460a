"""The docstrings of the public API say no less than they did; see `docstrings.py`."""

from __future__ import annotations

import ast
import json

import pytest
from docstrings import KEPT, KINDS, everything, public, shares


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_does_not_fall_and_is_kept_when_it_rises(kind: str) -> None:
    found = everything()
    now, kept = shares(found)[kind], json.loads(KEPT.read_text())[kind]
    missing = [counted.name for counted in found if counted.has[kind] is False]
    assert now >= kept, f"fewer docstrings with {kind} ({now}% of {kept}%); without: {', '.join(missing)}"
    assert now < kept + 1, f"more docstrings with {kind} ({now}%): keep that by `python tests/docstrings.py --update`"


def test_what_counts() -> None:
    text = '''
class A:
    """One line."""
    def __init__(self, a: Tensor, b: int) -> None:
        raise ValueError
    def _private(self, a: int, b: int) -> None: ...
    def inherited(self, a: int, b: int) -> None: ...
def f(x: Tensor) -> int:
    """Sum ``[batch]``.

    Raises:
        ValueError: never.
    """
    def inner() -> None:
        raise KeyError
def g(x: int, *y: int) -> None:
    """Do.

    Args:
        x: one.
        *y: others.
    """
'''
    a, f, g = public("m", ast.parse(text))
    assert (a.name, a.has) == ("m.A", {"args": False, "raises": False, "shapes": False})
    assert (f.name, f.has) == ("m.f", {"args": None, "raises": None, "shapes": True})
    assert (g.name, g.has) == ("m.g", {"args": True, "raises": None, "shapes": None})
