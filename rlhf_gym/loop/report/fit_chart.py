"""The over-optimisation plot: gains of proxy and gold against √KL, of one run or several, with the curves fitted to them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from rlhf_gym.loop.report.formatting import number
from rlhf_gym.loop.report.frontier import Frontier
from rlhf_gym.loop.report.scaling_laws import Fit, mean_over_runs
from rlhf_gym.loop.report.svg import Chart, Point, padded, spread

_REWARDS = ("proxy", "gold")
_STEPS = 60  # of a curve
_FEWEST_RUNS = 3  # a band between two runs would fill the plot
Curve = list[tuple[float, float, tuple[float, float]]]


def fit_chart(runs: Sequence[tuple[Frontier, Sequence[Fit]]]) -> Markup | None:
    """Draw points and fitted curves, each as far as its points reach, with 95% bands; None where nothing is fitted.

    Dots and solid lines are training, rings and dashed lines best-of-n. Of several runs each has a thin line, and their mean a
    thick one, as far as all of them reach; its band is a t-interval between runs, from three runs on.

    Args:
        runs: for each run its frontier, standardised, and its fits.
    """
    found = [(frontier, laws) for frontier, laws in runs if laws]
    if not found:
        return None
    alike: dict[tuple[str, str], list[Fit]] = defaultdict(list)
    for _, laws in found:
        for law in laws:
            alike[law.reward, law.form].append(law)
    curves = {key: _curve(laws) for key, laws in alike.items()}
    points = [p for frontier, _ in found for p in (*frontier.points, *frontier.best_of_n)]
    heights = [gain for p in points for gain in (p.proxy, p.gold)]
    heights += [gain for curve in curves.values() for _, gain, _ in curve]
    reach = max(p.root_kl for p in points)
    chart = Chart(420, 310, (0, 1.04 * reach), padded([0, *heights]), (14, 60, 44, 56))
    chart.axes("√KL (KL in nats per response)", y_label=f"gain ({found[0][0].unit})")
    for (reward, _), curve in curves.items():
        banded = [(d, band) for d, _, band in curve if not math.isinf(band[1])]
        if banded:
            upper, lower = ([(d, _within(chart, band[end])) for d, band in banded] for end in (1, 0))
            chart.band(upper, lower, f"fit-band {reward}")
    radius = 2.5 if len(points) < 120 else 1.6
    for reward in _REWARDS:
        for frontier, laws in found:
            chart.dots([(p.root_kl, getattr(p, reward)) for p in frontier.points], f"{reward} faint", radius)
            for p in frontier.best_of_n:
                chart.ring((p.root_kl, getattr(p, reward)), f"{reward} small", 2.5)
            if len(found) > 1:
                for law in laws:
                    if law.reward == reward:
                        chart.line([(d, gain) for d, gain, _ in _curve([law])], f"{reward} thin{_dashed(law.form)}")
    for (reward, form), curve in curves.items():
        chart.line([(d, gain) for d, gain, _ in curve], f"{reward}{_dashed(form)}")
    _names(
        chart, {name: [curve[-1][:2] for (n, _), curve in curves.items() if n == name and curve] for name in _REWARDS}
    )
    if len(found) > 1:
        return chart.render("Over-optimisation, fitted", f"{len(found)} runs and their mean.")
    for p in points:
        for gain in (p.proxy, p.gold):
            chart.spot((p.root_kl, gain), f"{p.label}\nKL {number(p.root_kl**2, 2)} nats")
    words = "; ".join(f"{law.reward}, {law.form}: {law.peak}" for law in found[0][1])
    return chart.render("Over-optimisation, fitted", f"{words}.")


def _curve(laws: Sequence[Fit]) -> Curve:
    """Roots of the KL with the fitted gain and the ends of its interval, where all fits have points; the mean of several."""
    low = math.sqrt(max(law.nearest_kl for law in laws))
    high = math.sqrt(min(law.farthest_kl for law in laws))
    curve: Curve = []
    for step in range(_STEPS + 1) if low < high else ():
        d = low + (high - low) * step / _STEPS
        if len(laws) == 1:
            curve.append((d, laws[0](d), laws[0].interval(d)))
        else:
            mean = mean_over_runs([law(d) for law in laws])
            band = (mean.low, mean.high) if len(laws) >= _FEWEST_RUNS else (-math.inf, math.inf)
            curve.append((d, mean.value, band))
    return curve


def _within(chart: Chart, gain: float) -> float:
    return min(max(gain, chart.y_range[0]), chart.y_range[1])


def _dashed(form: str) -> str:
    return " best-of-n" if form == "best-of-n" else ""


def _names(chart: Chart, ends: dict[str, list[Point]]) -> None:
    """Write the rewards' names at the right edge, at the heights where their farthest curves end."""
    known = {name: max(places) for name, places in ends.items() if places}
    places = spread([chart.y(end[1]) for end in known.values()], 16)
    for name, place in zip(known, places, strict=True):
        chart.text((chart.right + 4, place + 4), name, f"end {name}")
