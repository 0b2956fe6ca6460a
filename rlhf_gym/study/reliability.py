"""How well raters agree beyond chance: Krippendorff's alpha, Fleiss' kappa, Cohen's kappa, and all of it over time.

What is labelled is a unit, a label is a small whole number without an order, and every rater labels a unit at most once. All
three are 1 where everybody agrees, 0 where agreement is what chance would give, and below 0 where raters contradict each
other; none can be told where nothing was labelled twice or everybody always said the same. They differ in what they take
for chance, and in which labels they can use. Libraries of the extra ``web`` compute them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = Mapping[Any, Mapping[str, int]]
"""Of each unit, what each rater who labelled it said."""

MANY_DAYS = 4
"""Labels that came over so many days or more are told day by day."""


@dataclass(frozen=True)
class Agreement:
    """How well raters agree on some units.

    Attributes:
        units: units that two raters or more have labelled.
        agreed: out of pairs of labels of one unit by different raters, those that are the same...
        pairs: ...and how many pairs there are.
        alpha: Krippendorff's; None where it cannot be told.
        fleiss: Fleiss' kappa; likewise.
        fleiss_raters: how many raters have labelled each unit that it is told of; 0 where it cannot be told.
        cohen: Cohen's kappa, the mean over pairs of raters; likewise.
    """

    units: int
    agreed: int
    pairs: int
    alpha: float | None
    fleiss: float | None
    fleiss_raters: int
    cohen: float | None


@dataclass(frozen=True)
class Period:
    """How well raters agreed on the units that were complete within a time.

    Attributes:
        start, end: when the first and the last of them were, UTC.
        found: how well.
    """

    start: datetime
    end: datetime
    found: Agreement


def agreement(labels: Labels) -> Agreement:
    """All of it, of some labels."""
    agreed, pairs = 0, 0
    for said in labels.values():
        for one, other in itertools.combinations(said.values(), 2):
            agreed, pairs = agreed + (one == other), pairs + 1
    units = sum(len(said) > 1 for said in labels.values())
    alpha, (fleiss, raters), cohen = krippendorff_alpha(labels), fleiss_kappa(labels), cohen_kappa(labels)
    return Agreement(units, agreed, pairs, alpha, fleiss, raters, cohen)


def agreement_over_time(labels: Labels, complete_at: Mapping[Any, datetime], every: int = 50) -> list[Period]:
    """How well raters agreed as time went on: a day at a time where there are many, otherwise so many units at a time.

    Args:
        labels: of units.
        complete_at: when each unit got its last label.
        every: units in a period; the last one may have up to half as many more, or only half.

    Returns:
        The periods in order, without units that only one rater has labelled.
    """
    twice = sorted((unit for unit, said in labels.items() if len(said) > 1), key=lambda unit: complete_at[unit])
    if not twice:
        return []
    days = [
        list(group) for _, group in itertools.groupby(twice, key=lambda unit: complete_at[unit].astimezone(UTC).date())
    ]
    groups = days if len(days) >= MANY_DAYS else [twice[i : i + every] for i in range(0, len(twice), every)]
    if groups is not days and len(groups) > 1 and len(groups[-1]) < every / 2:
        groups[-2:] = [groups[-2] + groups[-1]]
    return [
        Period(complete_at[group[0]], complete_at[group[-1]], agreement({unit: labels[unit] for unit in group}))
        for group in groups
    ]


def krippendorff_alpha(labels: Labels) -> float | None:
    """Krippendorff's alpha for labels without an order (Krippendorff 2004, chapter 11), any number of raters a unit.

    With o the pairs of labels within units that are the same, each unit of m labels counting 1 / (m - 1) for each of its
    ordered pairs, n the labels of all such units and n_c those that say c::

        alpha = ((n - 1) sum_c o_cc - sum_c n_c (n_c - 1)) / (n (n - 1) - sum_c n_c (n_c - 1))
    """
    counts = _counts(labels)
    if not len(counts) or (counts.sum(0) > 0).sum() < 2:
        return None
    import krippendorff

    return float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal"))


def fleiss_kappa(labels: Labels) -> tuple[float | None, int]:
    """Fleiss' kappa (Fleiss 1971), and how many raters have labelled each unit of it.

    It wants one number of raters everywhere: of numbers above 1, the one that most units have is taken (of two that are
    as frequent, the smaller). With P the mean over units of the share of pairs of labels that agree, and p_c the share
    of labels that say c: (P - sum_c p_c^2) / (1 - sum_c p_c^2).
    """
    counts = _counts(labels)
    if not len(counts):
        return None, 0
    raters = counts.sum(1)
    most = int(np.bincount(raters).argmax())
    counts = counts[raters == most]
    if (counts.sum(0) > 0).sum() < 2:
        return None, 0
    from statsmodels.stats.inter_rater import fleiss_kappa

    return float(fleiss_kappa(counts)), most


def cohen_kappa(labels: Labels) -> float | None:
    """Cohen's kappa (Cohen 1960): the mean over pairs of raters, each by the units that the two share.

    Of two raters, with P the share of those units on which they agree, and p_c and q_c the shares of their own labels
    that say c: (P - sum_c p_c q_c) / (1 - sum_c p_c q_c). Two who always said the same one thing are left out: 0 / 0.
    """
    size = 1 + max((label for said in labels.values() for label in said.values()), default=0)
    tables: dict[tuple[str, str], NDArray[np.float64]] = defaultdict(lambda: np.zeros((size, size)))
    for said in labels.values():
        for (one, a), (other, b) in itertools.combinations(sorted(said.items()), 2):
            tables[one, other][a, b] += 1
    telling = [table for table in tables.values() if ((table.sum(0) + table.sum(1)) > 0).sum() > 1]
    if not telling:
        return None
    from statsmodels.stats.inter_rater import cohens_kappa

    kappas = [float(cohens_kappa(table, return_results=False)) for table in telling]
    return float(np.average(kappas, weights=[table.sum() for table in telling]))


def _counts(labels: Labels) -> NDArray[np.int64]:
    """How often each label [units, labels] was given to each unit that several raters have labelled."""
    several: Sequence[Mapping[str, int]] = [said for said in labels.values() if len(said) > 1]
    size = 1 + max((label for said in several for label in said.values()), default=0)
    return np.array([np.bincount(list(said.values()), minlength=size) for said in several], dtype=np.int64)
