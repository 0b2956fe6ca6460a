"""The quality of answers: agreement between raters, with themselves and on check questions; speed; position bias.

Everything is counted from the judgements in the store. Nobody is excluded automatically: the report warns, and a person
decides.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from rlhf_gym.feedback.purposes import expected, is_practice
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.study.agreement import Agreement, Period, agreement, agreement_over_time
from rlhf_gym.study.checks import meets

Answers = Sequence[tuple[Query, Judgement]]
_Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class Share:
    """A proportion.

    Attributes:
        part: its numerator.
        whole: its denominator.
    """

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        """The proportion; None if the denominator is 0."""
        return self.part / self.whole if self.whole else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval (Wilson 1927); (0, 1) if the denominator is 0.

        >>> [round(end, 3) for end in Share(8, 10).interval]
        [0.49, 0.943]
        """
        if not self.whole:
            return 0.0, 1.0
        n, p, z = self.whole, self.part / self.whole, _Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        reach = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class RaterQuality:
    """One rater's answers.

    Attributes:
        rater: the rater's name.
        answered: number of current answers, with skips, without practice and repetitions.
        skipped, flagged: out of those.
        seconds: median time for one; None where none was measured.
        checks: share of check questions that were answered as expected.
        repeated: share of repetitions that were answered as the first time.
        first: out of pairs with a choice, those whose response shown first was chosen; about half without position bias.
        agreed: out of comparisons that others made too, those in which another rater said the same.
        warnings: sentences on what to look at.
    """

    rater: str
    answered: int
    skipped: int
    flagged: int
    seconds: float | None
    checks: Share
    repeated: Share
    first: Share
    agreed: Share
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class QualityReport:
    """All raters' answers.

    Attributes:
        raters: each one's, the busiest first.
        agreed: out of pairs of answers to the same comparison by different raters, those that say the same.
        agreement: the same beyond chance; a unit is a comparison of two responses, labelled first better, second better
            or neither (of a response that stands alone: good or not, accepted or not).
        over_time: agreement as the answers came.
        first: position bias over all raters.
    """

    raters: tuple[RaterQuality, ...]
    agreed: Share
    agreement: Agreement
    over_time: tuple[Period, ...]
    first: Share


def quality(answers: Answers) -> QualityReport:
    """Measure the quality of answers.

    Args:
        answers: current judgements with their queries (``store.answers()``).
    """
    by_rater: dict[str, list[tuple[Query, Judgement]]] = defaultdict(list)
    for query, judgement in answers:
        by_rater[judgement.rater].append((query, judgement))
    units, complete_at = _units(answers)
    raters = [_rater(name, own, units) for name, own in by_rater.items()]
    raters.sort(key=lambda found: (-found.answered, found.rater))
    found = agreement(units)
    first = Share(sum(r.first.part for r in raters), sum(r.first.whole for r in raters))
    over_time = tuple(agreement_over_time(units, complete_at))
    return QualityReport(tuple(raters), Share(found.agreed, found.pairs), found, over_time, first)


Unit = tuple[str, int, int]


def _units(answers: Answers) -> tuple[dict[Unit, dict[str, int]], dict[Unit, datetime]]:
    """Each rater's label of each two responses to a query, and the time of the last label."""
    units: dict[Unit, dict[str, int]] = defaultdict(dict)
    complete_at: dict[Unit, datetime] = {}
    for query, judgement in answers:
        if judgement.details.get("kind") in ("repeat", "practice"):
            continue
        for (i, j), said in _says(query, judgement).items():
            unit = (query.id, i, j)
            units[unit][judgement.rater] = said
            complete_at[unit] = max(judgement.created_at, complete_at.get(unit, judgement.created_at))
    return units, complete_at


def _says(query: Query, judgement: Judgement) -> dict[tuple[int, int], int]:
    """The label that an answer gives each two responses: 0 the first is better, 1 the second, 2 neither; strength is left out.

    The best of many is only compared to the others. Of one response alone: 0 good or accepted as it stands, 1 not.
    """
    if len(query.responses) == 1:
        values = _values(judgement)
        good = "edited" not in judgement.details if judgement.choice is not None else values.get(0, 0.0) > 0
        return {} if judgement.skipped else {(0, 0): int(not good)}
    best = judgement.choice
    if best is not None:
        others = [i for i in range(len(query.responses)) if i != best]
        return {(min(best, i), max(best, i)): int(i < best) for i in others}
    ranked = sorted(_values(judgement).items())
    return {(i, j): 2 if a == b else int(a < b) for (i, a), (j, b) in itertools.combinations(ranked, 2)}


def _values(judgement: Judgement) -> dict[int, float]:
    """A number for each response that was ranked or rated, larger is better."""
    if judgement.tie:
        return {0: 0.0, 1: 0.0}
    if judgement.ranking is not None:
        return {i: -float(place) for place, group in enumerate(judgement.ranking) for i in group}
    found: dict[int, list[float]] = defaultdict(list)
    for values in (judgement.ratings or {}).values():
        for i, value in enumerate(values):
            if value is not None:
                found[i].append(value)
    return {i: sum(values) / len(values) for i, values in found.items()}


def _rater(name: str, own: Answers, units: Mapping[Unit, Mapping[str, int]]) -> RaterQuality:
    kind = {judgement.id: judgement.details.get("kind", "query") for _, judgement in own}
    real = [(q, j) for q, j in own if kind[j.id] not in ("repeat", "practice")]
    known = [(q, j) for q, j in real if expected(q.columns) is not None and not is_practice(q.columns)]
    checks = Share(sum(meets(j, q.columns) for q, j in known), len(known))
    earlier = {q.id: j for q, j in real}
    again = [(q, earlier[q.id], j) for q, j in own if kind[j.id] == "repeat" and q.id in earlier]
    repeated = Share(sum(_says(q, one) == _says(q, other) for q, one, other in again), len(again))
    chosen = [j for q, j in real if q.query_type == "pair" and j.choice is not None and j.order_shown]
    first = Share(sum(j.choice == j.order_shown[0] for j in chosen), len(chosen))
    others = [(said[name], other) for said in units.values() if name in said for r, other in said.items() if r != name]
    agreed = Share(sum(mine == theirs for mine, theirs in others), len(others))
    times = [j.seconds for _, j in real if j.seconds is not None]
    seconds = median(times) if times else None
    warnings = tuple(_warnings(checks, repeated, first, seconds, len(times)))
    skipped = sum(j.skipped for _, j in real)
    flagged = sum(bool(j.details.get("flagged")) for _, j in real)
    return RaterQuality(name, len(real), skipped, flagged, seconds, checks, repeated, first, agreed, warnings)


def _warnings(checks: Share, repeated: Share, first: Share, seconds: float | None, timed: int) -> Iterable[str]:
    """Warnings for measures whose whole interval is worse than a careful rater's value."""
    if checks.whole >= 5 and checks.interval[1] < 0.8:
        yield f"answered {checks.part} of {checks.whole} check questions as expected"
    if repeated.whole >= 5 and repeated.interval[1] < 0.75:
        yield f"gave the same answer again to {repeated.part} of {repeated.whole} repeated questions"
    low, high = first.interval
    if first.whole >= 20 and not low <= 0.5 <= high:
        yield f"chose the response shown first {first.part} of {first.whole} times"
    if seconds is not None and timed >= 10 and seconds < 1.5:
        yield f"takes {seconds:.1f} s for an answer (median)"
