"""Agreement between raters against published worked examples and numbers worked by hand; and how it is taken from answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pytest

from rlhf_gym.feedback import Judgement, Query
from rlhf_gym.study.agreement import (
    Labels,
    agreement,
    agreement_over_time,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
)
from rlhf_gym.study.quality import Share, quality

START = datetime(2026, 11, 2, 9, tzinfo=UTC)


def labels_of(**raters: str) -> Labels:
    """Each rater's labels of units 0, 1, ... as a row of signs; a dot where there is none."""
    signs = sorted({sign for row in raters.values() for sign in row if sign not in ". "})
    rows = {name: row.replace(" ", "") for name, row in raters.items()}
    return {
        unit: {name: signs.index(row[unit]) for name, row in rows.items() if row[unit] != "."}
        for unit in range(len(next(iter(rows.values()))))
    }


def from_counts(counts: Sequence[Sequence[int]]) -> Labels:
    """So many labels of each kind a unit; who gave them does not matter."""
    return {
        unit: {f"rater {n}": label for n, label in enumerate([k for k, many in enumerate(row) for _ in range(many)])}
        for unit, row in enumerate(counts)
    }


def from_table(table: Sequence[Sequence[int]]) -> Labels:
    """Two raters' contingency table."""
    cells = [(a, b) for a, row in enumerate(table) for b, many in enumerate(row) for _ in range(many)]
    return {unit: {"one": a, "two": b} for unit, (a, b) in enumerate(cells)}


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), examples A, B and C.
BINARY = labels_of(meg="0 1 0 0 0 0 0 0 1 0", owen="1 1 1 0 0 1 0 0 0 0")
NOMINAL = labels_of(ben="a a b b d c c c e d d a", gerry="b a b b b c c c e d d d")
MISSING = labels_of(
    a="1 2 3 3 2 1 4 1 2 . . .", b="1 2 3 3 2 2 4 1 2 5 . 3", c=". 3 3 3 2 3 4 2 2 5 1 .", d="1 2 3 3 2 4 4 1 2 5 1 ."
)


@pytest.mark.parametrize(("labels", "published"), [(BINARY, 0.095), (NOMINAL, 0.692), (MISSING, 0.743)])
def test_krippendorff_s_own_examples(labels: Labels, published: float) -> None:
    assert krippendorff_alpha(labels) == pytest.approx(published, abs=5e-4)
    assert krippendorff_alpha(labels) == pytest.approx(float(alpha_by_hand(labels)), abs=1e-12)


def alpha_by_hand(labels: Labels) -> Fraction:
    """The formula of Krippendorff (2011), step C, in whole numbers and fractions: coincidences, marginals, alpha."""
    pairable = [list(said.values()) for said in labels.values() if len(said) > 1]
    total = sum(map(len, pairable))
    same = sum(
        Fraction(
            sum(one == other for i, one in enumerate(unit) for j, other in enumerate(unit) if i != j), len(unit) - 1
        )
        for unit in pairable
    )
    marginals = [
        sum(unit.count(label) for unit in pairable) for label in {label for unit in pairable for label in unit}
    ]
    expected = sum(n * (n - 1) for n in marginals)
    return ((total - 1) * same - expected) / Fraction(total * (total - 1) - expected)


def test_alpha_worked_by_hand() -> None:
    """Example A: 20 labels, 14 zeros and 6 ones, four units apart: 1 - 19 * 4 / (14 * 6)."""
    assert krippendorff_alpha(BINARY) == pytest.approx(1 - 19 * 4 / (14 * 6))
    # Example B: of 24 labels 4, 6, 6, 6 and 2 of a kind; nine of twelve units agree: (23 * 18 - 104) / (24 * 23 - 104).
    assert krippendorff_alpha(NOMINAL) == pytest.approx(310 / 448)


# The worked example of Fleiss' kappa in Wikipedia: 14 raters, ten subjects, five categories.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_fleiss_worked_example() -> None:
    kappa, raters = fleiss_kappa(from_counts(FLEISS))
    assert kappa == pytest.approx(0.210, abs=5e-4)
    assert raters == 14
    # Step by step, as it is done there: P = 0.378, P_e = 0.213.
    mean = sum(Fraction(sum(n * (n - 1) for n in row), 14 * 13) for row in FLEISS) / 10
    chance = sum(Fraction(sum(row[label] for row in FLEISS), 140) ** 2 for label in range(5))
    assert (round(float(mean), 3), round(float(chance), 3)) == (0.378, 0.213)
    assert kappa == pytest.approx(float((mean - chance) / (1 - chance)), abs=1e-12)


def test_fleiss_takes_the_most_frequent_number_of_raters() -> None:
    two = [[2, 0, 0], [0, 2, 0], [1, 1, 0], [0, 2, 0]]
    expected = fleiss_kappa(from_counts(two))
    # By hand: P = 3/4; labels 3 and 5 of 8: P_e = 34/64; (48 - 34) / (64 - 34).
    assert expected == (pytest.approx(14 / 30), 2)
    assert fleiss_kappa(from_counts([*two, [3, 0, 0], [0, 1, 2], [1, 0, 0], [0, 0, 1]])) == expected


@pytest.mark.parametrize(
    ("table", "published"),
    [
        ([[20, 5], [10, 15]], 0.4),  # Wikipedia: two readers of fifty proposals
        ([[45, 15], [25, 15]], 0.1304),  # Wikipedia: the same agreement, other marginals...
        ([[25, 35], [5, 35]], 0.2593),
        ([[75, 1, 4], [5, 4, 1], [0, 0, 10]], 0.676),  # Fleiss, Levin and Paik (2003), table 18.1: diagnoses
    ],
)
def test_cohen_s_kappa_worked_examples(table: Sequence[Sequence[int]], published: float) -> None:
    kappa = cohen_kappa(from_table(table))
    assert kappa == pytest.approx(published, abs=5e-4)
    whole = sum(map(sum, table))
    agreed = Fraction(sum(table[i][i] for i in range(len(table))), whole)
    chance = sum(Fraction(sum(table[i]) * sum(row[i] for row in table), whole**2) for i in range(len(table)))
    assert kappa == pytest.approx(float((agreed - chance) / (1 - chance)), abs=1e-12)


def test_cohen_s_kappa_of_three_raters_is_the_mean_over_pairs_by_what_they_share() -> None:
    labels = labels_of(a="0 0 1 1 0 1 . .", b="0 1 1 1 0 0 1 0", c=". . . . 0 1 1 1")
    ab = cohen_kappa(labels_of(a="0 0 1 1 0 1", b="0 1 1 1 0 0"))
    ac = cohen_kappa(labels_of(a="0 1", c="0 1"))
    bc = cohen_kappa(labels_of(b="0 0 1 0", c="0 1 1 1"))
    assert (ab, ac, bc) == (pytest.approx(1 / 3), 1, pytest.approx(0.2))
    assert cohen_kappa(labels) == pytest.approx((6 / 3 + 2 * 1 + 4 * 0.2) / 12)


def test_what_cannot_be_told_is_not_told() -> None:
    alone: Mapping[Any, Mapping[str, int]] = {0: {"a": 1}, 1: {"b": 0}}
    same = labels_of(a="0 0 0", b="0 0 0")
    for labels in ({}, alone, {0: {"a": 0, "b": 0}, 1: {"a": 0, "b": 0}}, same):
        found = agreement(labels)
        assert (found.alpha, found.fleiss, found.fleiss_raters, found.cohen) == (None, None, 0, None)
    assert (agreement(same).agreed, agreement(same).pairs, agreement(same).units) == (3, 3, 3)
    perfect, opposite = agreement(labels_of(a="0 1 2 0", b="0 1 2 0")), agreement(labels_of(a="0 1", b="1 0"))
    assert (perfect.alpha, perfect.fleiss, perfect.cohen) == (1, 1, 1)
    assert (opposite.fleiss, opposite.cohen) == (-1, -1)
    assert opposite.alpha == pytest.approx(-0.5)  # (3 * 0 - 4) / (12 - 4)


def test_agreement_over_time() -> None:
    hour = timedelta(hours=1)
    labels = {unit: {"a": unit % 2, "b": unit % 2 if unit < 60 else 0} for unit in range(120)}
    at = {unit: START + unit * timedelta(minutes=1) for unit in range(120)}
    labels[500], at[500] = {"a": 1}, START  # nobody else said anything of it
    first, second = agreement_over_time(labels, at)
    assert (first.found.units, second.found.units) == (50, 70)  # the last 20 are too few to stand alone
    assert (first.start, first.end) == (START, at[49])
    assert (first.found.agreed, second.found.agreed) == (50, 10 + 30)
    assert first.found.alpha == 1
    assert [p.found.units for p in agreement_over_time(labels, at, every=40)] == [40, 40, 40]
    assert [p.found.units for p in agreement_over_time(labels, at, every=80)] == [80, 40]
    # Over many days: a day at a time, by the day of the last answer.
    at = {unit: START + unit * hour for unit in range(120)} | {500: START}
    days = agreement_over_time(labels, at)
    assert [p.found.units for p in days] == [15, 24, 24, 24, 24, 9]
    assert all(p.start.date() == p.end.date() for p in days)
    assert agreement_over_time({500: {"a": 1}}, at) == []


def said(query: Query, rater: str, minute: int = 0, **answer: Any) -> tuple[Query, Judgement]:
    return query, Judgement(query_id=query.id, rater=rater, created_at=START + timedelta(minutes=minute), **answer)


def test_answers_become_comparisons() -> None:
    """Every form, by hand: which comparisons two raters share, and on which they agree."""
    pair = Query(prompt="p", responses=("x", "y"))
    ranking = Query(prompt="r", responses=("x", "y", "z"), query_type="ranking")
    rating = Query(prompt="g", responses=("x", "y"), query_type="rating")
    best = Query(prompt="b", responses=("x", "y", "z"), query_type="best")
    thumbs = Query(prompt="t", responses=("x",), query_type="thumbs")
    edit = Query(prompt="e", responses=("x",), query_type="edit")
    answers = [
        said(pair, "a", choice=0), said(pair, "b", choice=0, strength=3), said(pair, "c", tie=True),  # 1 of 3 pairs
        said(ranking, "a", ranking=((0,), (1,), (2,))), said(ranking, "b", ranking=((0,), (1, 2))),  # 2 of 3
        said(rating, "a", ratings={"overall": (5, 2)}), said(rating, "b", ratings={"overall": (1, 4)}),  # 0 of 1
        said(best, "a", choice=2), said(best, "b", choice=1),  # of x-y only b speaks, of x-z only a; on y-z 0 of 1
        said(thumbs, "a", ratings={"overall": (1,)}), said(thumbs, "b", ratings={"overall": (1,)}),  # 1 of 1
        said(edit, "a", choice=0), said(edit, "b", choice=0, details={"edited": "z"}),  # 0 of 1
    ]  # fmt: skip
    answers += [said(query, "d", skipped=True) for query in (pair, thumbs)]  # says nothing
    found = quality(answers)
    assert found.agreed == Share(1 + 2 + 0 + 0 + 1 + 0, 3 + 3 + 1 + 1 + 1 + 1)
    assert found.agreement.units == 1 + 3 + 1 + 1 + 1 + 1
    assert [(r.rater, r.agreed) for r in found.raters] == [
        ("a", Share(4, 9)), ("b", Share(4, 9)), ("d", Share(0, 0)), ("c", Share(0, 2))
    ]  # fmt: skip


def test_an_answer_alone_agrees_with_its_repetition_only_if_it_is_the_same() -> None:
    thumbs = [Query(prompt=f"{i}", responses=("x",), query_type="thumbs", index=i) for i in range(2)]
    up, down, again = {"overall": (1.0,)}, {"overall": (0.0,)}, {"kind": "repeat"}
    answers = [said(query, "a", ratings=up) for query in thumbs]
    answers += [said(thumbs[0], "a", 5, ratings=up, details=again, id="r0")]
    answers += [said(thumbs[1], "a", 5, ratings=down, details=again, id="r1")]
    assert quality(answers).raters[0].repeated == Share(1, 2)


def test_quality_of_a_study_worked_by_hand() -> None:
    """Four pairs, two raters who differ on one: agreed 3/4; labels 5 and 3 of 8."""
    queries = [Query(prompt=f"{i}", responses=("x", "y"), index=i) for i in range(4)]
    answers = []
    for i, (one, two) in enumerate([(0, 0), (1, 1), (0, 0), (0, 1)]):
        answers += [said(queries[i], "web/one", i, choice=one), said(queries[i], "web/two", 60 + i, choice=two)]
    found = quality(answers)
    assert found.agreed == Share(3, 4)
    assert found.agreement.alpha == pytest.approx((7 * 6 - 26) / (56 - 26))  # n (n - 1) of 5 and of 3: 20 + 6
    assert found.agreement.fleiss == pytest.approx((3 / 4 - 34 / 64) / (1 - 34 / 64))
    assert found.agreement.cohen == pytest.approx((3 / 4 - (6 + 2) / 16) / (1 - 8 / 16))  # shares 3/4, 1/4 and 1/2, 1/2
    [period] = found.over_time
    assert (period.start, period.end) == (START + timedelta(minutes=60), START + timedelta(minutes=63))
    assert period.found == found.agreement
