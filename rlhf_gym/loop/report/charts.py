"""The report's charts: each function draws values of a run as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from rlhf_gym.loop.intervals import wilson_interval
from rlhf_gym.loop.report.formatting import MINUS, number, percent, signed
from rlhf_gym.loop.report.frontier import Frontier, FrontierPoint
from rlhf_gym.loop.report.run_data import TERM, Iteration, Metric, RewardModelRound, RunData, finite
from rlhf_gym.loop.report.svg import Chart, nice_ticks, padded, spread
from rlhf_gym.loop.report.trust import WinRate

T = TypeVar("T")

_MOST_TARGETS = 150  # hover targets of one chart; more would be narrower than a pointer can hit
_SMOOTH_FROM = 60  # from this many iterations on, a moving mean is drawn, too


def learning_curve(run: RunData, metric: Metric) -> Markup:
    """Draw one metric by iteration, with a dotted line at each new round.

    The gold reward, the KL and a constraint's slack also get a dashed line at the level to compare with.

    Args:
        run: the run's data; at least one iteration has the metric.
        metric: the metric to draw.
    """
    values = run.series(metric.key)
    known = [value for value in values if value is not None]
    count = len(values)
    mark = _mark_of(run, metric)
    y_range = padded([*known, mark[0]] if mark else known, from_zero=metric.from_zero)
    chart = Chart(360, 216, (0.5, count + 0.5), y_range)
    x_ticks = [tick for tick in nice_ticks(1, max(count, 2), 5, whole=True) if 1 <= tick <= count]
    chart.axes("iteration", x_ticks=x_ticks if len(x_ticks) > 1 else range(1, count + 1))
    _rounds(chart, run.iterations)
    if mark:
        chart.segment((chart.left, chart.y(mark[0])), (chart.right, chart.y(mark[0])), "mark-line")
    css = metric.key if metric.key in ("proxy", "gold") else "other"
    points = list(enumerate(values, start=1))
    if metric.sparse:
        points = [point for point in points if point[1] is not None]
    elif count >= _SMOOTH_FROM:
        chart.line(points, f"{css} faint")
        points = list(enumerate(_smoothed(values, max(3, count // 20)), start=1))
    chart.line(points, css)
    last = next((value for _, value in reversed(points) if value is not None), None)
    if last is not None:
        words = [(number(known[-1]), f"end {css}", chart.y(last))]
        if mark:
            words.append((mark[1], "tick", chart.y(mark[0])))
        places = spread([word[2] for word in words], 13)
        for (label, word_css, _), place in zip(words, places, strict=True):
            chart.text((chart.right + 5, min(place + 4, chart.bottom + 2)), label, word_css)
    _strips(chart, run.iterations, [metric.key], {metric.key: metric.title})
    description = f"From {number(known[0])} to {number(known[-1])} {metric.unit}, over {count} iterations."
    return chart.render(metric.title, description)


def frontier_chart(found: Frontier) -> Markup:
    """Draw proxy and gold gain against √KL, with the gap between their trends shaded; best-of-n as rings on dashed lines."""
    held_out = [found.held_out] if found.held_out else []
    everything = [*found.points, *held_out, *found.best_of_n]
    gains = [gain for point in everything for gain in (point.proxy, point.gold)]
    reach = max(point.root_kl for point in everything) or 1.0
    chart = Chart(420, 310, (0, 1.04 * reach), padded([0, *gains]), (14, 60, 44, 56))
    chart.axes("√KL (KL in nats per response)", y_label=f"gain ({found.unit})")
    trend = found.trend
    radius = 2.5 if len(found.points) < _SMOOTH_FROM else 1.6  # a cloud must not hide its trend
    if found.standardised:
        chart.band([(p.root_kl, p.proxy) for p in trend], [(p.root_kl, p.gold) for p in trend], "gap-band")
    for css in ("proxy", "gold"):
        chart.dots([(point.root_kl, _gain(point, css)) for point in found.points], f"{css} faint", radius)
        chart.line([(point.root_kl, _gain(point, css)) for point in trend], css)
        for point in held_out:
            chart.diamond((point.root_kl, _gain(point, css)), css)
        chart.line([(point.root_kl, _gain(point, css)) for point in found.best_of_n], f"{css} best-of-n")
        for point in found.best_of_n:
            chart.ring((point.root_kl, _gain(point, css)), css)
    if found.standardised:
        chart.add(f'<circle class="origin" cx="{chart.x(0)}" cy="{chart.y(0)}" r="4"/>')
        chart.text((chart.x(0) + 7, chart.y(0) + 14), "reference")
    places = spread([chart.y(trend[-1].proxy), chart.y(trend[-1].gold)], 16)
    for css, place in zip(("proxy", "gold"), places, strict=True):
        chart.text((chart.right + 4, place + 4), css, f"end {css}")
    for point in [*_thinned(found.points), *held_out, *found.best_of_n]:
        for css in ("proxy", "gold"):
            numbers = f"proxy {signed(point.proxy)}, gold {signed(point.gold)}, gap {signed(point.gap)}"
            tip = f"{point.label}\nKL {number(point.root_kl**2, 2)} nats\n{numbers}"
            chart.spot((point.root_kl, _gain(point, css)), tip)
    ending = trend[-1]
    description = (
        f"At the largest KL, {number(ending.root_kl**2, 1)} nats, the proxy gained {signed(ending.proxy)} and the gold "
        f"{signed(ending.gold)} ({found.unit})."
    )
    return chart.render("Reward against KL", description)


def gap_chart(found: Frontier) -> Markup:
    """Draw the over-optimisation gap by iteration: proxy gain minus gold gain."""
    gaps = [point.gap for point in found.points]
    count = len(gaps)
    chart = Chart(420, 310, (0.5, count + 0.5), padded([0, *gaps]), (14, 60, 44, 56))
    chart.axes("iteration", y_label=f"proxy {MINUS} gold ({found.unit})", whole=True)
    places = list(enumerate(gaps, start=1))
    chart.band(places, [(x, 0.0) for x, _ in places], "gap-band")
    smooth = _smoothed(gaps, max(3, count // 10)) if count > 6 else gaps
    chart.line(places, "gap faint")
    chart.line(list(enumerate(smooth, start=1)), "gap")
    chart.text((chart.right + 5, chart.y(smooth[-1] or 0.0) + 4), signed(smooth[-1]), "end gap")
    if chart.y(0) - chart.top > 40:
        chart.text((chart.right, chart.top + 6), "proxy ahead of gold ↑", anchor="end")
    for x, point in _thinned(tuple(enumerate(found.points, start=1))):
        half = max(chart.x(1) - chart.x(0), (chart.right - chart.left) / _MOST_TARGETS) / 2
        tip = f"{point.label}\ngap {signed(point.gap)} = proxy {signed(point.proxy)} {MINUS} gold {signed(point.gold)}"
        chart.strip(chart.x(x) - half, chart.x(x) + half, tip)
    return chart.render("Over-optimisation gap", f"From {signed(gaps[0])} to {signed(gaps[-1])} ({found.unit}).")


def calibration_chart(rows: Sequence[Mapping[str, Any]], by: str = "reward model") -> Markup | None:
    """Draw a reliability diagram: the rater's agreement against the confidence of a prediction; None without bins.

    Args:
        rows: bins with ``confidence``, ``accuracy`` and ``count``.
        by: who predicts, in words.
    """
    bins = [
        (confidence, accuracy, int(count))
        for row in rows
        if (confidence := finite(row.get("confidence"))) is not None
        and (accuracy := finite(row.get("accuracy"))) is not None
        and (count := finite(row.get("count"))) is not None
        and count > 0
    ]
    if not bins:
        return None
    # Confidence in the preferred response is at least 0.5; confidence in the first response may be lower.
    low = 0.5 if min(confidence for confidence, _, _ in bins) >= 0.5 else 0.0
    bottom = (
        math.floor(10 * min(low, *(wilson_interval(accuracy * count, count)[0] for _, accuracy, count in bins))) / 10
    )
    chart = Chart(420, 340, (low, 1), (bottom, 1.02), (10, 20, 112, 56))
    ticks, y_ticks = nice_ticks(low, 1, 5), nice_ticks(bottom, 1, 5)
    names, y_names = ([percent(tick, 0) for tick in axis] for axis in (ticks, y_ticks))
    label = f"{by}'s confidence"
    chart.axes(label, y_label="rater agreed", x_ticks=ticks, x_names=names, y_ticks=y_ticks, y_names=y_names)
    chart.segment((chart.x(low), chart.y(low)), (chart.x(1), chart.y(1)), "mark-line")
    most, floor, half = max(count for _, _, count in bins), chart.height - 6, 8.0
    for confidence, accuracy, count in bins:
        low_end, high_end = wilson_interval(accuracy * count, count)
        place = chart.x(confidence)
        chart.segment((place, chart.y(low_end)), (place, chart.y(high_end)), "whisker other")
        height = 40 * count / most
        chart.add(
            f'<rect class="bar" x="{place - half}" y="{floor - height:.1f}" width="{2 * half}" height="{height:.1f}"/>'
        )
        chart.text((place, floor - height - 4), number(count), "count", "middle")
    chart.line([(confidence, accuracy) for confidence, accuracy, _ in bins], "other")
    chart.dots([(confidence, accuracy) for confidence, accuracy, _ in bins], "other", 4)
    chart.text((chart.left - 6, floor), "pairs", anchor="end")
    for confidence, accuracy, count in bins:
        tip = f"{number(count)} pairs\nconfidence {percent(confidence)}\nrater agreed {percent(accuracy)}"
        chart.spot((confidence, accuracy), tip, 12)
    return chart.render(f"Calibration of the {by}", f"{len(bins)} bins of held-out pairs.")


def label_curve_chart(points: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Draw held-out accuracy by number of labels, on a logarithmic axis, with 95% intervals; None without points.

    Args:
        points: with ``n``, ``accuracy``, ``low`` and ``high``.
    """
    values = [[finite(point.get(key)) for key in ("n", "accuracy", "low", "high")] for point in points]
    known = [
        (n, a, low, high) for n, a, low, high in values if n and n > 0 and a and low is not None and high is not None
    ]
    if not known:
        return None
    places = [math.log2(n) for n, *_ in known]
    chart = Chart(420, 340, (min(places) - 0.3, max(places) + 0.3), padded([v for _, *row in known for v in row]))
    ticks = nice_ticks(*chart.y_range, 5)
    # Ticks of 2.5 points are not ticks of 2 and 3.
    decimals = 1 if any(abs(100 * tick - round(100 * tick)) > 1e-6 for tick in ticks) else 0
    chart.axes(
        "comparisons fitted to", y_label="held-out accuracy", x_ticks=places, x_names=[number(n) for n, *_ in known],
        y_ticks=ticks, y_names=[percent(tick, decimals) for tick in ticks],
    )  # fmt: skip
    for place, (n, accuracy, low, high) in zip(places, known, strict=True):
        x = chart.x(place)
        chart.segment((x, chart.y(low)), (x, chart.y(high)), "whisker other")
        tip = f"{number(n)} comparisons\naccuracy {percent(accuracy)}\n95% interval {percent(low)} to {percent(high)}"
        chart.spot((place, accuracy), tip, 12)
    line = [(place, accuracy) for place, (_, accuracy, _, _) in zip(places, known, strict=True)]
    chart.line(line, "other")
    chart.dots(line, "other", 4)
    return chart.render("Accuracy by number of labels", f"{len(known)} parts of the labels.")


def loss_chart(reward_model: RewardModelRound) -> Markup | None:
    """Draw the reward model's training loss and its held-out loss by epoch, with ln 2 (chance) marked; None without losses."""
    epochs = reward_model.rows("epochs")
    held_out = [(float(i), finite(epoch.get("validation_loss"))) for i, epoch in enumerate(epochs, start=1)]
    train = [(finite(row.get("epoch")) or 0.0, finite(row.get("loss"))) for row in reward_model.rows("curve")]
    known = [value for _, value in (*train, *held_out) if value is not None]
    if not known:
        return None
    chart = Chart(420, 340, (0, max(len(epochs), 1)), padded([*known, math.log(2)]), (14, 84, 44, 56))
    chart.axes("epoch", y_label="Bradley-Terry loss (nats)", x_ticks=nice_ticks(0, max(len(epochs), 1), 6, whole=True))
    coin = chart.y(math.log(2))
    chart.segment((chart.left, coin), (chart.right, coin), "mark-line")
    words = [("a coin: ln 2", "tick", coin)]
    for name, curve, css in (("train", train, "other faint-line"), ("held-out", held_out, "other")):
        chart.line(curve, css)
        points = [(epoch, value) for epoch, value in curve if value is not None]
        if points:
            words.append((name, "end other", chart.y(points[-1][1])))
        if name == "held-out":
            chart.dots(points, css, 4)
    for (label, css, _), place in zip(words, spread([word[2] for word in words], 14), strict=True):
        chart.text((chart.right + 5, place + 4), label, css)
    for index, epoch in enumerate(epochs, start=1):
        losses = ", ".join(
            f"{name} {number(finite(epoch.get(key)), 3)}"
            for name, key in (("train", "train_loss"), ("held-out", "validation_loss"))
        )
        accuracy = percent(finite(epoch.get("validation_accuracy")))
        chart.strip(chart.x(index - 1), chart.x(index), f"Epoch {index}\n{losses}\naccuracy {accuracy}")
    return chart.render("Reward model's loss", f"Over {len(epochs)} epochs.")


def win_rate_chart(rates: Sequence[WinRate]) -> Markup:
    """Draw win rates with their intervals on a scale from 0 to 100%, with 50% (chance) marked; a row for each."""
    row = 54
    chart = Chart(420, 70 + row * len(rates), (0, 1), (0, 1), (26, 24, 46, 24))
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    names = [percent(tick, 0) for tick in quarters]
    chart.axes("held-out prompts on which the tuned response won", x_ticks=quarters, x_names=names, y_ticks=[])
    chart.segment((chart.x(0.5), chart.top), (chart.x(0.5), chart.bottom), "mark-line strong")
    chart.text((chart.x(0.5), chart.top - 8), "chance", anchor="middle")
    for index, one in enumerate(rates):
        middle = chart.top + row * (index + 1) - 16
        chart.text((chart.left, middle - 16), one.by)
        chart.text((chart.right, middle - 16), percent(one.rate), f"end other{' big' if index == 0 else ''}", "end")
        if one.low is not None and one.high is not None:
            chart.add(
                f'<rect class="interval" x="{chart.x(one.low)}" y="{middle - 7}" rx="3" height="14" '
                f'width="{max(chart.x(one.high) - chart.x(one.low), 1):.1f}"/>'
            )
        chart.add(f'<circle class="dot other rate" cx="{chart.x(one.rate)}" cy="{middle}" r="6"/>')
    words = "; ".join(
        f"{one.by} {percent(one.rate)}, 95% interval {percent(one.low)} to {percent(one.high)}" for one in rates
    )
    return chart.render("Win rate", f"{words}.")


def _gain(point: FrontierPoint, css: str) -> float:
    return point.proxy if css == "proxy" else point.gold


def _mark_of(run: RunData, metric: Metric) -> tuple[float, str] | None:
    """The level to compare a metric with: the reference's gold score, the target KL, a constraint's level."""
    if metric.key == "gold":
        level, words = run.evaluated("gold_before"), "before"
    elif metric.key == "kl":
        level, words = finite(run.setting("agent.kl_target")), "target"
    elif metric.key.startswith(TERM) and metric.key.endswith("_slack"):
        level, words = 0.0, "level"
    else:
        return None
    return None if level is None else (level, words)


def _rounds(chart: Chart, iterations: tuple[Iteration, ...]) -> None:
    starts = [after for before, after in itertools.pairwise(iterations) if after.round != before.round]
    for start in starts:
        place = round((chart.x(start.index) + chart.x(start.index - 1)) / 2, 1)
        chart.segment((place, chart.top), (place, chart.bottom), "round-line")
        chart.text((place + 4, chart.top - 3), f"round {start.round}" if len(starts) <= 3 else str(start.round))


def _strips(chart: Chart, iterations: tuple[Iteration, ...], keys: list[str], names: dict[str, str]) -> None:
    shown = _thinned(iterations)
    edges = [
        chart.left,
        *((chart.x(a.index) + chart.x(b.index)) / 2 for a, b in itertools.pairwise(shown)),
        chart.right,
    ]
    for iteration, start, end in zip(shown, edges, edges[1:], strict=False):
        tokens = f", {iteration.tokens:,} tokens" if iteration.tokens is not None else ""
        lines = [f"{names[key]}: {number(iteration.values.get(key))}" for key in keys]
        chart.strip(start, end, "\n".join([f"Iteration {iteration.index}, round {iteration.round}{tokens}", *lines]))


def _smoothed(values: list[float | None] | list[float], width: int) -> list[float | None]:
    """A centred moving mean over `width` iterations; missing values stay missing."""
    reach = width // 2
    found: list[float | None] = []
    for index, value in enumerate(values):
        near = [other for other in values[max(0, index - reach) : index + reach + 1] if other is not None]
        found.append(None if value is None else sum(near) / len(near))
    return found


def _thinned(items: Sequence[T]) -> list[T]:
    """At most `_MOST_TARGETS` of the items, evenly spaced."""
    return list(items[:: max(1, math.ceil(len(items) / _MOST_TARGETS))])
