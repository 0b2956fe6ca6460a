"""Text of unknown origin, made safe to print: what would move the cursor, hide or reorder text shows as an escape."""

from __future__ import annotations

import unicodedata

# Control, format (bidirectional, zero width), surrogate, private use, unassigned; line and paragraph separators.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# Joins letters and emoji in honest text.
_ALLOWED = "\n\t\u200c\u200d"


def visible(text: str, limit: int = 10_000) -> str:
    r"""The text with every hidden character spelled out, and cut, saying so, after ``limit`` characters.

    >>> print(visible("a\x1b[31mb"))
    a\x1b[31mb
    """
    shown = "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _HIDDEN and character not in _ALLOWED
        else character
        for character in text[:limit]
    )
    return shown if len(text) <= limit else f"{shown} […{len(text) - limit:,} more characters]"
