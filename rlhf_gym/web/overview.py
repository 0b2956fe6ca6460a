"""Numbers and drawings of a study as it stands, for the administration page."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf_gym.feedback import Judgement, Query
from rlhf_gym.feedback.store import StoreCount
from rlhf_gym.loop.report.formatting import number, percent
from rlhf_gym.loop.report.svg import Chart, nice_ticks
from rlhf_gym.study.audit import trail
from rlhf_gym.study.leases import RoundProgress
from rlhf_gym.study.quality import Share, quality
from rlhf_gym.web.agreement_view import agreement_chart, agreement_line, coefficients
from rlhf_gym.web.study import Study

COLUMNS = (
    ("Check questions", "checks"),
    ("Repetitions", "repeated"),
    ("Agreement", "agreed"),
    ("Chose the first shown", "first"),
)
"""Shares in the table of raters: heading, field of :class:`~rlhf_gym.study.quality.RaterQuality`."""
RECENT = timedelta(minutes=15)


def overview(study: Study) -> dict[str, Any]:
    """Everything the page's template is given."""
    answers = study.store.answers()
    found = quality(answers)
    people = {person.name: person for person in study.people.people()}
    rows = {rater.rater: rater for rater in found.raters}
    count = study.store.count()
    fits = reward_models(study.run)
    now = datetime.now(UTC)
    # None of when a clock was ahead.
    recent = [judgement for _, judgement in answers if timedelta(0) <= now - judgement.created_at < RECENT]
    pace = len(recent) / (RECENT.total_seconds() / 60)
    rounds = study.queue.progress()
    return {
        "tiles": _tiles(answers, count, recent, pace, found.agreed, found.agreement.alpha),
        "rounds": [(progress, queue_bar(progress)) for progress in rounds],
        "to_go": to_go(sum(progress.held + progress.left for progress in rounds), pace),
        "raters": [(name, people.get(name), rows.get(name)) for name in _names(list(people), list(rows))],
        "invitations": study.people.invitations()[:50],
        "trail": trail(study.store, 20),
        "now": now,
        "throughput": throughput_chart([judgement.created_at for _, judgement in answers]),
        "agreement": agreement_line(found.agreed, found.first),
        "coefficients": coefficients(found.agreement),
        "over_time": agreement_chart(found),
        "fits": fits,
        "set_aside": study.set_aside(count.queries),
        "place": study.store.place,
        "accuracy": accuracy_chart(fits),
        "share": share,
        # A kind of question without answers has no column.
        "columns": [c for c in COLUMNS if any(getattr(rater, c[1]).whole for rater in found.raters)],
    }


def _names(people: Sequence[str], raters: Sequence[str]) -> list[str]:
    """Raters by how much they answered, then people who have not answered yet."""
    return [*raters, *(name for name in people if name not in set(raters))]


def _tiles(
    answers: Sequence[tuple[Query, Judgement]], count: StoreCount, recent: Sequence[Judgement], pace: float,
    agreed: Share, alpha: float | None,
) -> list[tuple[str, str, str]]:  # fmt: skip
    active = len({j.rater for j in recent})
    flagged = sum(bool(j.details.get("flagged")) for _, j in answers)
    return [
        ("Answered", f"{number(count.answered)} of {number(count.queries)}", "queries with an answer"),
        ("Pace", f"{number(pace, 1)} a minute", f"{active} active in the last 15 minutes"),
        ("Agreement", percent(agreed.value), f"alpha {number(alpha, 2)}" if alpha is not None else "nothing compared twice"),
        ("Skipped, flagged", f"{number(count.skipped - flagged)}, {number(flagged)}", f"{number(count.ties)} ties"),
    ]  # fmt: skip


def share(found: Share) -> str:
    """A share as the tables print it: per cent, and out of how many; empty of nothing."""
    return f"{percent(found.value, 0)} of {number(found.whole)}" if found.whole else ""


def to_go(answers: int, pace: float) -> str:
    """The answers left and the time that they take at this pace, in a sentence.

    Args:
        answers: still to be given.
        pace: answers a minute.
    """
    if not answers:
        return "All queries are answered."
    words = f"{number(answers)} {'answer' if answers == 1 else 'answers'} to go"
    if not pace:
        return f"{words}; nobody has answered in the last 15 minutes."
    minutes = answers / pace
    lasting = f"{number(minutes, 0)} minutes" if minutes < 90 else f"{number(minutes / 60, 1)} hours"
    return f"{words}: about {lasting} at the pace of the last 15 minutes."


def queue_bar(progress: RoundProgress) -> Markup:
    """A round's answers as a bar: given, in hands, left."""
    whole = progress.given + progress.held + progress.left or 1
    shares = [("given", progress.given / whole), ("held", progress.held / whole)]
    parts, x = [], 0.0
    for css, share in shares:
        parts.append(f'<rect class="{css}" x="{300 * x:.1f}" y="0" width="{300 * share:.1f}" height="10"/>')
        x += share
    label = f"{percent(shares[0][1], 0)} answered"
    return Markup(
        f'<svg class="queue-bar" viewBox="0 0 300 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="left" x="0" y="0" width="300" height="10"/>{"".join(parts)}</svg>'
    )


def throughput_chart(times: Sequence[datetime]) -> Markup | None:
    """Answers by the hour (by the day, where there are many days); None where there are none."""
    if not times:
        return None
    first, last = min(times), max(times)
    hours = (last - first).total_seconds() / 3600
    step, unit = (60, "minute") if hours < 2 else (3600, "hour") if hours < 72 else (86_400, "day")
    counts = Counter(int(time.timestamp() // step) for time in times)
    start, end = min(counts), max(counts)
    bars = [(n - start, counts[n]) for n in range(start, end + 1)]
    top = max(counts.values())
    chart = Chart(560, 210, (-0.5, len(bars) - 0.5), (0, top * 1.1), (14, 16, 40, 60))
    ticks = [tick for tick in nice_ticks(0, max(len(bars) - 1, 1), 6, whole=True) if tick <= len(bars) - 1]
    named = "%H:%M" if unit != "day" else "%d %b"
    names = [f"{datetime.fromtimestamp((start + int(tick)) * step, UTC):{named}}" for tick in ticks]
    heights = nice_ticks(0, top * 1.1, 4, whole=True)
    chart.axes(f"{unit}, UTC", y_label="answers", x_ticks=ticks, x_names=names, y_ticks=heights)
    width = min((chart.right - chart.left) / len(bars) * 0.8, 40)
    for place, height in bars:
        if height:
            x, y = chart.x(place) - width / 2, chart.y(height)
            chart.add(f'<rect class="column" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{chart.bottom - y:.1f}"/>')
            chart.strip(x, x + width, f"{datetime.fromtimestamp((start + place) * step, UTC):%d %b %H:%M}: {height}")
    return chart.render("Throughput", f"{len(times)} answers; at most {top} in one {unit}.")


def reward_models(run: Path | None) -> list[dict[str, Any]]:
    """Every reward model that a run has fitted: its round, its accuracy on held-out comparisons, and how many it saw."""
    found = []
    for file in run.glob("round-*/reward_models.jsonl") if run else []:
        try:
            for line in file.read_text(encoding="utf-8").splitlines():
                fit = json.loads(line)
                row = {key: fit[key] for key in ("accuracy", "standard_error", "n_train", "n_validation", "iteration")}
                found.append({"round": int(file.parent.name.removeprefix("round-")), **row})
        except (ValueError, KeyError, TypeError, OSError):
            continue  # from elsewhere
    return sorted(found, key=lambda row: (int(row["round"]), int(row["iteration"])))


def accuracy_chart(fits: Sequence[dict[str, Any]]) -> Markup | None:
    """The reward models' accuracy as comparisons arrive; None where no model is fitted."""
    points = [(float(fit["n_train"]), float(fit["accuracy"])) for fit in fits if fit["accuracy"] is not None]
    if not points or not all(math.isfinite(x) and math.isfinite(y) for x, y in points):
        return None
    most = max(x for x, _ in points)
    spans = [(float(f["accuracy"]), float(f["standard_error"] or 0)) for f in fits if f["accuracy"] is not None]
    low = 0.1 * math.floor(10 * min(0.5, *(value - error for value, error in spans)) + 1e-9)
    low = max(0.0, low)
    chart = Chart(380, 190, (0, most * 1.08 or 1), (low, 1.02), (14, 52, 40, 60))
    chart.axes("comparisons fitted on", y_label="accuracy", y_ticks=nice_ticks(low, 1.0, 5))
    chart.segment((chart.left, chart.y(0.5)), (chart.right, chart.y(0.5)), "mark-line")
    chart.text((chart.right + 6, chart.y(0.5) + 4), "chance", "tick")
    for (x, _), (value, error) in zip(points, spans, strict=True):
        ends = chart.y(min(1.02, value + error)), chart.y(max(low, value - error))
        chart.segment((chart.x(x), ends[0]), (chart.x(x), ends[1]), "whisker")
    chart.line([(x, y) for x, y in sorted(points)], "other")
    chart.dots(points, "other", 4)
    for fit in fits:
        at = (float(fit["n_train"]), float(fit["accuracy"]))
        chart.spot(at, f"round {fit['round']}: {fit['accuracy']:.1%} ± {fit['standard_error']:.1%}")
    return chart.render("Accuracy", f"Of {len(points)} reward models on held-out comparisons; 0.5 is chance.")
