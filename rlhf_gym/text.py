"""Texts for messages and screens: hidden characters made visible, long texts cut, the nearest name; how much texts repeat."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise

# Control, format (bidirectional, zero width), surrogate, private use, unassigned; line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
# Joiners shape letters and emoji in honest text; every other format character can hide or reorder it.
_HARMLESS = frozenset("\n\t\u200c\u200d")


def is_hidden(character: str) -> bool:
    """True for a character that would move the cursor, hide text or reorder it: shown by its code, never as it is."""
    return character not in _HARMLESS and unicodedata.category(character) in _HIDDEN


def visible(text: str, limit: int = 10_000) -> str:
    r"""Spell out every hidden character, and cut, saying so, after ``limit`` characters.

    Args:
        text: text of unknown origin.
        limit: characters that are kept.

    >>> print(visible("a\x1b[31mb"))
    a\x1b[31mb
    """
    shown = "".join(c.encode("unicode_escape").decode("ascii") if is_hidden(c) else c for c in text[:limit])
    return shown if len(text) <= limit else f"{shown} […{len(text) - limit:,} more characters]"


def shorten(text: str, limit: int = 80) -> str:
    """Quote a text for a message: one line, control characters escaped, at most ``limit`` characters.

    Args:
        text: any text.
        limit: characters, quotation marks included.

    >>> shorten("a long text", limit=8)
    "'a lon…'"
    """
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 2] + "…" + shown[-1]


def cut_at_stop(text: str, stop: Iterable[str]) -> str:
    r"""The text before the first stop sequence in it.

    Args:
        text: any text.
        stop: stop sequences.

    >>> cut_at_stop("good.\n\nHuman: why", ["Human:", "\n"])
    'good.'
    """
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return text[: min(places)] if places else text


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the known name that a wrong one was probably meant to be; case, ``-`` and ``_`` make no difference.

    Args:
        name: what was given.
        known: what could have been meant.
        cutoff: how alike they must be, from 0 (any will do) to 1 (the same but for case and dashes).

    >>> closest("PPOO", ["ppo", "a2c"])
    'ppo'
    """
    spelled = {_plain(one): one for one in reversed(list(known))}  # of two that read alike, the first
    found = get_close_matches(_plain(name), reversed(spelled), n=1, cutoff=cutoff)
    return spelled[found[0]] if found else None


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """End the sentence that refuses a name: ``; did you mean 'ppo'?``, or a full stop where nothing known is alike.

    Args:
        name: what was given.
        known: what could have been meant.
        cutoff: see :func:`closest`.

    >>> "there is no agent 'ppoo'" + nearest("ppoo", ["ppo", "a2c"])
    "there is no agent 'ppoo'; did you mean 'ppo'?"
    """
    found = closest(name, known, cutoff)
    return "." if found is None else f"; did you mean {found!r}?"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct word bigrams over all bigrams, of all texts together; NaN if there is none (Li et al. 2016).

    >>> distinct_2(["so good so good", "so good"])
    0.5
    """
    pairs = [pair for words in map(str.split, texts) for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else math.nan
