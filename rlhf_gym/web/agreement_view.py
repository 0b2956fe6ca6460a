"""Agreement on the administration page: a sentence, the three coefficients, and a chart over time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

from rlhf_gym.loop.report.formatting import number, percent
from rlhf_gym.loop.report.svg import Chart, spread
from rlhf_gym.study.agreement import MANY_DAYS, Agreement, Period
from rlhf_gym.study.quality import QualityReport, Share

FEW = 10
"""With fewer comparisons, a period's alpha is too noisy and is not drawn."""


def agreement_line(agreed: Share, first: Share) -> str:
    """Agreement and position bias in a sentence each.

    Args:
        agreed: pairs of answers that agree.
        first: pairs whose response shown first was chosen.
    """
    said = []
    if agreed.whole:
        low, high = agreed.interval
        said.append(
            f"Two raters agree on {percent(agreed.value)} of {number(agreed.whole)} comparisons made twice "
            f"(95%: {percent(low)} to {percent(high)})."
        )
    if first.whole:
        low, high = first.interval
        said.append(
            f"The response shown first was chosen in {percent(first.value)} of {number(first.whole)} pairs "
            f"(95%: {percent(low)} to {percent(high)}; 50% without position bias)."
        )
    return " ".join(said) or "Nothing to compare yet: agreement needs queries that several raters answer (overlap)."


def coefficients(found: Agreement) -> list[tuple[str, str, str]]:
    """Rows of a table of agreement beyond chance: name, value, what it is computed on; none where none is defined."""
    units = f"{number(found.units)} comparisons"
    rows = [
        ("Krippendorff's alpha", found.alpha, f"all {units} that two raters or more have answered"),
        (
            "Fleiss' kappa",
            found.fleiss,
            f"the comparisons that {number(found.fleiss_raters)} raters have answered, the most frequent number",
        ),
        ("Cohen's kappa", found.cohen, "the mean over pairs of raters"),
    ]
    return [(name, number(value, 2), of_what) for name, value, of_what in rows if value is not None]


def agreement_chart(report: QualityReport) -> Markup | None:
    """A chart of agreement, with its interval, and of alpha over time; None where there are fewer than two periods."""
    periods = report.over_time
    if len(periods) < 2:
        return None
    shares = [Share(period.found.agreed, period.found.pairs) for period in periods]
    alphas = [period.found.alpha if period.found.units >= FEW else None for period in periods]
    lowest = min([0.0, *(alpha for alpha in alphas if alpha is not None)])
    low = -1.0 if lowest < -0.5 else -0.5 if lowest < 0 else 0.0
    chart = Chart(560, 210, (-0.5, len(periods) - 0.5), (low, 1.04), (14, 66, 40, 60))
    ticks, names, label = _times(periods)
    step = 0.5 if low else 0.25
    scale = [low + i * step for i in range(round((1 - low) / step) + 1)]
    chart.axes(label, y_label="share, alpha", x_ticks=ticks, x_names=names, y_ticks=scale)
    for place, share in enumerate(shares):
        bottom, top = share.interval
        chart.segment((chart.x(place), chart.y(bottom)), (chart.x(place), chart.y(top)), "whisker")
    ends = []
    for words, css, values in (("agree", "agreed", [share.value for share in shares]), ("alpha", "beyond", alphas)):
        chart.line([(float(place), value) for place, value in enumerate(values)], css)
        known = [(float(place), value) for place, value in enumerate(values) if value is not None]
        chart.dots(known, css, 3.5)
        ends += [(words, css, chart.y(value)) for _, value in known[-1:]]
    for (words, css, _), y in zip(ends, spread([y for _, _, y in ends], 14), strict=True):
        chart.text((chart.right + 8, y + 4), words, f"end {css}")
    half = (chart.right - chart.left) / len(periods) / 2
    for place, (period, share) in enumerate(zip(periods, shares, strict=True)):
        chart.strip(chart.x(place) - half, chart.x(place) + half, _tip(period, share))
    first, last = percent(shares[0].value), percent(shares[-1].value)
    return chart.render(
        "Agreement over time", f"From {first} in the first of {len(periods)} periods to {last} in the last."
    )


def _times(periods: Sequence[Period]) -> tuple[list[float], list[str], str]:
    """The time axis: its ticks, their names, its label."""
    days = [period.end.date() for period in periods]
    step = -(-len(periods) // 7)
    ticks = [float(place) for place in range(0, len(periods), step)]
    if len(periods) >= MANY_DAYS and len(set(days)) == len(days):
        return ticks, [f"{days[int(tick)]:%d %b}" for tick in ticks], "day on which the comparisons were complete, UTC"
    done, ends = 0, []
    for period in periods:
        done += period.found.units
        ends.append(number(done))
    return ticks, [ends[int(tick)] for tick in ticks], "comparisons complete"


def _tip(period: Period, share: Share) -> str:
    low, high = share.interval
    values = ", ".join(f"{name} {value}" for name, value, _ in coefficients(period.found))
    return (
        f"{_between(period.start, period.end)}: {percent(share.value)} of {number(share.whole)} "
        f"(95%: {percent(low)} to {percent(high)}){'; ' if values else ''}{values}"
    )


def _between(start: datetime, end: datetime) -> str:
    if start.date() == end.date():
        return f"{start:%d %b %H:%M} to {end:%H:%M}"
    return f"{start:%d %b %H:%M} to {end:%d %b %H:%M}"
