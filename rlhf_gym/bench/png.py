"""Plots as PNG, for slides and texts that take no SVG. Needs ``pip install 'rlhf-gym[bench]'``."""

from __future__ import annotations

from functools import cache

from rlhf_gym.errors import ConfigError

FAMILIES = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans", "Noto Sans", "FreeSans")
"""Fonts without serifs that systems come with; the first that is there is taken."""
ZOOM = 2.0
"""Pixels for each unit of the plots, so that they stay sharp on paper and on dense screens."""


def png(svg: str) -> bytes:
    """A plot's picture on white.

    Args:
        svg: the plot, a document of its own.

    Raises:
        ConfigError: the machine has none of the fonts of :data:`FAMILIES`, without which a plot would have no words.
    """
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", zoom=ZOOM, sans_serif_family=_family()))


@cache
def _family() -> str:
    """The first font that draws something: one that is missing leaves its text out without a word."""
    import resvg_py

    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20">{}</svg>'
    letter = box.format('<text y="15" font-family="sans-serif">M</text>')
    empty = resvg_py.svg_to_bytes(svg_string=box.format(""))
    for family in FAMILIES:
        if resvg_py.svg_to_bytes(svg_string=letter, sans_serif_family=family) != empty:
            return family
    raise ConfigError(
        f"--png needs a font for the plots' words, and none of {', '.join(FAMILIES)} is on this machine: install one "
        "(Debian: apt install fonts-dejavu-core); the plots stand as SVG in the report's folder"
    )
