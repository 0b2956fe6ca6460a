"""A small chart on the server side: axes, lines, bands, dots, direct labels and hover titles, as inline SVG.

Colours and type come from the page's style sheet through class names, so that one drawing serves light, dark and
print. No drawing carries a `style` attribute: the page's content security policy forbids them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from rlhf_gym.loop.report.formatting import number, plain

Point = tuple[float, float]


def nice_ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round values (multiples of 1, 2, 2.5 or 5 times a power of ten) between low and high, both included.

    Args:
        low: lower end of the axis.
        high: upper end, above `low`.
        count: number of ticks to aim for.
        whole: True if only whole numbers make sense (an iteration, a count).
    """
    rough = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(size * magnitude for size in (1, 2, 2.5, 5, 10) if size * magnitude >= rough * 0.8)
    if whole:
        step = max(1.0, float(math.ceil(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with the same number of decimals, as many as the step needs."""
    if len(ticks) < 2:
        return [number(tick) for tick in ticks]
    step = ticks[1] - ticks[0]
    if max(map(abs, ticks)) >= 10_000:
        return [f"{number(tick / 1000, 0 if step >= 1000 else 1)}k" if tick else "0" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, decimals) != round(step, decimals + 1):
        decimals += 1  # a step of 2.5 or 0.25
    return [number(tick, decimals) for tick in ticks]


def padded(values: Iterable[float], *, from_zero: bool = False) -> tuple[float, float]:
    """The range of an axis that holds these values, with air around them; never empty.

    Args:
        values: the values to hold; without any, the range is around 0.
        from_zero: True for a range that includes 0, with no space below it where no value is negative.
    """
    found = list(values) or [0.0]
    low, high = min(found), max(found)
    if from_zero:
        low = min(low, 0.0)
    span = high - low or abs(high) * 0.2 or 1.0
    return (low if from_zero and low == 0 else low - 0.08 * span), high + 0.1 * span


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions apart until adjacent ones are at least `gap` apart; their order and mean stay.

    Args:
        positions: in SVG units, in any order.
        gap: least distance between two, in SVG units.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = list(positions)
    for before, after in itertools.pairwise(order):
        short = gap - (moved[after] - moved[before])
        if short > 0:
            moved[after] += short
    shift = sum(moved) / len(moved) - sum(positions) / len(positions) if positions else 0.0
    return [position - shift for position in moved]


class Chart:
    """One drawing. Marks are drawn in the order they are added, the hover targets above them all.

    Args:
        width: width of the drawing in SVG units; the page scales it to its column.
        height: its height.
        x: range of the horizontal axis.
        y: range of the vertical axis.
        margins: space for labels around the plot: top, right, bottom, left.
    """

    def __init__(
        self,
        width: float,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
        margins: tuple[float, float, float, float] = (14, 56, 40, 52),
    ) -> None:
        self.width, self.height = width, height
        # Wide drawings are scaled more from phone to desk, so the style sheet sets their type apart.
        self.css = "chart wide" if width > 400 else "chart"
        self.x_range, self.y_range = x, y
        self.top, self.left = margins[0], margins[3]
        self.right, self.bottom = width - margins[1], height - margins[2]
        self._marks: list[str] = []
        self._targets: list[str] = []

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        low, high = self.x_range
        return round(self.left + (value - low) / (high - low) * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        """Vertical place of a value (SVG counts downwards)."""
        low, high = self.y_range
        return round(self.bottom - (value - low) / (high - low) * (self.bottom - self.top), 2)

    def add(self, element: str) -> None:
        """Add an SVG element as it is; texts in it must be escaped already."""
        self._marks.append(element)

    def segment(self, start: Point, end: Point, css: str) -> None:
        """Add a straight line between two places of the drawing.

        Args:
            start: one end, in SVG units.
            end: the other end.
            css: class names of the style sheet.
        """
        self.add(f'<line class="{css}" x1="{start[0]}" y1="{start[1]}" x2="{end[0]}" y2="{end[1]}"/>')

    def text(self, at: Point, words: str, css: str = "tick", anchor: str = "start") -> None:
        """Add words at a place of the drawing.

        Args:
            at: the place, in SVG units.
            words: plain text; it is escaped here.
            css: class names of the style sheet.
            anchor: which end of the words is at the place: start, middle or end.
        """
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"'
        self.add(f'<text class="{css}" {place}>{escape(plain(words))}</text>')

    def axes(
        self,
        x_label: str,
        *,
        y_label: str = "",
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        x_names: Sequence[str] | None = None,
        y_names: Sequence[str] | None = None,
        whole: bool = False,
    ) -> None:
        """Add grid, ticks and axis labels.

        Args:
            x_label: words under the horizontal axis.
            y_label: words along the vertical axis; empty: none.
            x_ticks: horizontal ticks in data units; None chooses round values, here and below.
            y_ticks: vertical ticks.
            x_names: a label for each horizontal tick; None prints the values.
            y_names: a label for each vertical tick; None prints the values.
            whole: True if only whole numbers make sense as horizontal ticks.
        """
        xs = nice_ticks(*self.x_range, 5, whole=whole) if x_ticks is None else list(x_ticks)
        ys = nice_ticks(*self.y_range, 4) if y_ticks is None else list(y_ticks)
        for tick, name in zip(ys, y_names or tick_labels(ys), strict=True):
            place = self.y(tick)
            self.segment((self.left, place), (self.right, place), "grid zero" if tick == 0 else "grid")
            self.text((self.left - 6, place + 4), name, anchor="end")
        self.segment((self.left, self.bottom), (self.right, self.bottom), "axis")
        for tick, name in zip(xs, x_names or tick_labels(xs), strict=True):
            place = self.x(tick)
            self.segment((place, self.bottom), (place, self.bottom + 4), "axis")
            self.text((place, self.bottom + 17), name, anchor="middle")
        self.text(((self.left + self.right) / 2, self.bottom + 34), x_label, "label", "middle")
        if y_label:
            middle = (self.top + self.bottom) / 2
            self.add(f'<g transform="translate(12 {middle:.1f}) rotate(-90)">')
            self.text((0, 0), y_label, "label", "middle")
            self.add("</g>")

    def line(self, points: Sequence[tuple[float, float | None]], css: str) -> None:
        """Add a line through points in data units.

        Args:
            points: x and y; a y of None breaks the line, and a single point between breaks is drawn as a dot.
            css: class names of the style sheet.
        """
        for known, run in itertools.groupby(points, key=lambda point: point[1] is not None):
            places = [(self.x(x), self.y(y)) for x, y in run if y is not None]
            if known and len(places) == 1:
                self.add(f'<circle class="dot {css}" cx="{places[0][0]}" cy="{places[0][1]}" r="3"/>')
            elif known:
                self.add(f'<polyline class="line {css}" points="{_join(places)}"/>')

    def band(self, upper: Sequence[Point], lower: Sequence[Point], css: str) -> None:
        """Add the area between two lines.

        Args:
            upper: points of the upper line, in data units.
            lower: points of the lower one.
            css: class names of the style sheet.
        """
        places = [(self.x(x), self.y(y)) for x, y in [*upper, *reversed(lower)]]
        self.add(f'<polygon class="{css}" points="{_join(places)}"/>')

    def dots(self, points: Sequence[Point], css: str, radius: float = 2.5) -> None:
        """Add dots.

        Args:
            points: their centres, in data units.
            css: class names of the style sheet.
            radius: in SVG units.
        """
        for x, y in points:
            self.add(f'<circle class="dot {css}" cx="{self.x(x)}" cy="{self.y(y)}" r="{radius:g}"/>')

    def diamond(self, at: Point, css: str, radius: float = 6) -> None:
        """Add a diamond, for the one point that stands for the whole run.

        Args:
            at: its centre, in data units.
            css: class names of the style sheet.
            radius: half its width, in SVG units.
        """
        x, y = self.x(at[0]), self.y(at[1])
        corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
        self.add(f'<polygon class="diamond {css}" points="{_join(corners)}"/>')

    def ring(self, at: Point, css: str, radius: float = 4) -> None:
        """Add a ring, for a point that is not of the run's own training.

        Args:
            at: its centre, in data units.
            css: class names of the style sheet.
            radius: in SVG units.
        """
        self.add(f'<circle class="ring {css}" cx="{self.x(at[0])}" cy="{self.y(at[1])}" r="{radius}"/>')

    def strip(self, start: float, end: float, tip: str) -> None:
        """Add a hover target over the whole height.

        Args:
            start: its left end, in SVG units.
            end: its right end.
            tip: the text to show; it is escaped here.
        """
        box = f'x="{start:.1f}" y="{self.top}" width="{end - start:.1f}" height="{self.bottom - self.top:.1f}"'
        self._targets.append(f'<rect class="hit" {box}><title>{escape(plain(tip))}</title></rect>')

    def spot(self, at: Point, tip: str, radius: float = 8) -> None:
        """Add a round hover target.

        Args:
            at: its centre, in data units.
            tip: the text to show; it is escaped here.
            radius: in SVG units.
        """
        place = f'cx="{self.x(at[0])}" cy="{self.y(at[1])}" r="{radius:g}"'
        self._targets.append(f'<circle class="hit" {place}><title>{escape(plain(tip))}</title></circle>')

    def render(self, title: str, description: str) -> Markup:
        """The drawing as SVG, with a label for screen readers.

        Args:
            title: what is drawn.
            description: a sentence on what it shows.
        """
        # A label, not a <title>: a root title would pop up over every mark of the drawing.
        label = escape(plain(f"{title}. {description}"))
        head = f'<svg class="{self.css}" viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{label}">'
        return Markup("\n".join([head, *self._marks, *self._targets, "</svg>"]))


def _join(places: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
