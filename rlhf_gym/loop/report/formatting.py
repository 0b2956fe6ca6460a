"""Text and numbers as the report prints them.

What a language model wrote is not trusted: it may hold markup, control characters, or bidirectional overrides that
make a line read as something else. Jinja2 escapes the markup; the rest is replaced here by its visible code point.
"""

from __future__ import annotations

import math
import unicodedata

from markupsafe import Markup, escape

from rlhf_gym.text import is_hidden

MINUS = "\N{MINUS SIGN}"
MISSING = "\N{EN DASH}"


def plain(text: object) -> str:
    """Write each hidden character of a text as its code point, for attributes and titles."""
    return "".join(f"[U+{ord(char):04X}]" if is_hidden(char) else char for char in str(text))


def visible(text: object, limit: int = 4000) -> Markup:
    """Write a text as safe HTML: escaped, hidden characters as marked code points, line ends shown, cut at `limit`.

    Args:
        text: anything; its ``str`` is shown.
        limit: most characters to show; a note says how many more there are.
    """
    whole = str(text)
    parts: list[str] = []
    for char in whole[:limit]:
        if char == "\n":
            parts.append('<span class="mark" aria-hidden="true">↵</span>\n')
        elif is_hidden(char):
            code = f"U+{ord(char):04X}"
            name = unicodedata.name(char, "control character")
            parts.append(f'<span class="mark" title="{code} {escape(name)}">{code}</span>')
        else:
            parts.append(str(escape(char)))
    if len(whole) > limit:
        parts.append(f'<span class="mark">… {len(whole) - limit:,} more characters</span>')
    # Every part above is either escaped or ours.
    return Markup("".join(parts))


def turns(text: object) -> Markup:
    """Write a conversation as safe HTML, a line a turn; those of the environment, with ``> `` before them, are set back.

    Args:
        text: as :func:`~rlhf_gym.tasks.chat.shown_turns` writes it.
    """
    lines = str(text).split("\n")
    sides = ("theirs" if line.startswith("> ") else "ours" for line in lines)
    return Markup("").join(
        Markup('<div class="{}">{}</div>').format(side, visible(line)) for side, line in zip(sides, lines, strict=True)
    )


def number(value: float | None, decimals: int | None = None) -> str:
    """Write a number with a true minus sign and about three significant digits; `MISSING` for None, NaN and infinity.

    Args:
        value: the number.
        decimals: digits after the point; None chooses them by the number's size.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if decimals is None:
        size = abs(value)
        if value == int(value) and size < 1e15:
            decimals = 0
        elif size < 1e-3:
            return f"{value:.1e}".replace("-", MINUS)
        else:
            decimals = max(0, 2 - math.floor(math.log10(size)))
    printed = f"{value:,.{decimals}f}"
    if float(printed.replace(",", "")) == 0:
        printed = printed.lstrip("-")  # not "-0.00"
    return printed.replace("-", MINUS)


def signed(value: float | None, decimals: int = 2) -> str:
    """Write a difference with its sign.

    Args:
        value: the difference; None, NaN and infinity print `MISSING`.
        decimals: digits after the point.
    """
    printed = number(value, decimals)
    return f"+{printed}" if value is not None and math.isfinite(value) and value > 0 else printed


def percent(value: float | None, decimals: int = 1) -> str:
    """Write a share between 0 and 1 as a percentage.

    Args:
        value: the share; None, NaN and infinity print `MISSING`.
        decimals: digits after the point.
    """
    return MISSING if value is None or not math.isfinite(value) else f"{number(100 * value, decimals)}%"


def duration(seconds: float | None) -> str:
    """Write seconds in the two largest of hours, minutes and seconds."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return MISSING
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours:,} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
