"""Coloured texts as a picture: words wrapped into lines, of too many lines the last ones, and one line at the bottom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.missing import LibraryMissingError
from rlhf_gym.text import visible

Frame = NDArray[np.uint8]
Colour = tuple[int, int, int]
Span = tuple[str, Colour]

WIDTH, HEIGHT, MARGIN, FONT_SIZE = 640, 240, 12, 16
_BACKGROUND = (24, 24, 28)


def picture(spans: Sequence[Span], bottom: Span | None) -> Frame:
    """uint8 ``[240, 640, 3]``: coloured texts one after the other, with hidden characters spelled out.

    Args:
        spans: texts with their colours; of more lines than there is room for, the last are shown.
        bottom: the last line, with its colour; None leaves it empty.

    Raises:
        LibraryMissingError: Pillow is not installed.
    """
    image_module, draw_module = _pillow()
    image = image_module.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    draw = draw_module.Draw(image)
    font = _font()
    shown = [(visible(text), colour) for text, colour in spans]
    lines = _wrap(shown, lambda text: float(draw.textlength(text, font=font)), WIDTH - 2 * MARGIN)
    line_height = FONT_SIZE + 6
    room = (HEIGHT - 2 * MARGIN) // line_height - 1  # without the bottom line
    for row, line in enumerate(lines[-room:]):
        for x, text, colour in line:
            draw.text((MARGIN + x, MARGIN + row * line_height), text, fill=colour, font=font)
    if bottom is not None:
        draw.text((MARGIN, HEIGHT - MARGIN - line_height), bottom[0], fill=bottom[1], font=font)
    return np.array(image, dtype=np.uint8)


def _wrap(
    spans: Sequence[Span], measure: Callable[[str], float], width: float
) -> list[list[tuple[float, str, Colour]]]:
    """Lines of (x, text, colour) no wider than ``width``, broken before words where that helps, else inside them."""
    lines: list[list[tuple[float, str, Colour]]] = [[]]
    x = 0.0
    for text, colour in spans:
        for word in _words(text):
            if word == "\n":
                lines.append([])
                x = 0.0
                continue
            if x and x + measure(word) > width:
                lines.append([])
                x, word = 0.0, word.lstrip(" ")
            while len(word) > 1 and measure(word) > width:
                fits = next((n for n in range(len(word) - 1, 1, -1) if measure(word[:n]) <= width), 1)
                lines[-1].append((0.0, word[:fits], colour))
                lines.append([])
                word = word[fits:]
            lines[-1].append((x, word, colour))
            x += measure(word)
    return lines


def _words(text: str) -> list[str]:
    """Words with the space before them; a line break by itself."""
    words: list[str] = []
    for char in text:
        if char == "\n" or not words or words[-1] == "\n" or (char == " " and words[-1].strip(" ")):
            words.append(char)
        else:
            words[-1] += char
    return words


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise LibraryMissingError("render_mode 'rgb_array' needs Pillow: pip install 'rlhf-gym[render]'") from error
    return Image, ImageDraw


@cache
def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size=FONT_SIZE)
