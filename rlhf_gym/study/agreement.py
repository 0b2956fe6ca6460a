"""Agreement between raters: raw, beyond chance, over time; and the simulated rater that agrees as often as people do.

A unit is what is labelled; a label is a small whole number without an order, and every rater labels a unit at most once.
Krippendorff's alpha, Fleiss' kappa and Cohen's kappa are 1 where everybody agrees, 0 where agreement is what chance would give,
and below 0 where raters contradict each other; none is defined where nothing was labelled twice or everybody always said the
same. They differ in what they take for chance, and in which labels they can use. Libraries of the extra ``web`` compute them.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_gym.errors import ConfigError

Array = NDArray[np.float64]

Labels = Mapping[Any, Mapping[str, int]]
"""For each unit, the label of each rater who labelled it."""

MANY_DAYS = 4
"""From this many days on, agreement over time is by day."""


def accuracy_from_agreement(agreement: float) -> float:
    """The accuracy, at least one half, of raters who agree on a share p of pairs: 1/2 + sqrt(2 p - 1) / 2.

    Two independent raters of accuracy a agree on a^2 + (1 - a)^2 of the pairs. The accuracy is also the ceiling of a reward
    model that is scored on one such rater's labels. All pairs are taken to be equally hard; where some are harder, the true
    mean accuracy is lower (Jensen's inequality).

    Args:
        agreement: between one half (coins) and 1.

    Raises:
        ConfigError: agreement outside of that.

    >>> round(accuracy_from_agreement(0.65), 3)
    0.774
    """
    if not 0.5 <= agreement <= 1:
        raise ConfigError(f"agreement of two independent raters lies in 0.5..1, got {agreement}")
    return 0.5 + math.sqrt(2 * agreement - 1) / 2


def beta_for_accuracy(reward_differences: ArrayLike, accuracy: float) -> float:
    """The beta of a Boltzmann rater of this accuracy: mean sigmoid(beta |d|) = accuracy.

    Args:
        reward_differences: between the two responses of each pair, in units of reward; equal responses count as half
            right whatever beta is.
        accuracy: at least one half, and below what a rational rater reaches.

    Returns:
        In 1 / unit of reward.

    Raises:
        ConfigError: no differences, or an accuracy that no beta gives.
    """
    return _beta(reward_differences, accuracy, "accuracy", lambda right: right)


def beta_for_agreement(reward_differences: ArrayLike, agreement: float) -> float:
    """The beta of two independent Boltzmann raters of this agreement: mean (p^2 + (1 - p)^2) = agreement.

    Args:
        reward_differences: between the two responses of each pair, in units of reward.
        agreement: at least one half, and below what rational raters reach.

    Returns:
        In 1 / unit of reward.

    Raises:
        ConfigError: no differences, or an agreement that no beta gives.
    """
    return _beta(reward_differences, agreement, "agreement", lambda right: right**2 + (1 - right) ** 2)


def _beta(differences: ArrayLike, wanted: float, what: str, of_right: Callable[[Array], Array]) -> float:
    """Find beta by bisection: the wanted value grows with beta."""
    gaps = np.abs(np.asarray(differences, dtype=np.float64)).ravel()
    if not len(gaps) or not np.isfinite(gaps).all():
        raise ConfigError(
            f"beta for an {what} needs finite differences of reward, at least one; got {len(gaps)} numbers"
        )
    highest = float(np.mean(of_right(np.where(gaps > 0, 1.0, 0.5))))
    if not 0.5 <= wanted < highest:
        raise ConfigError(f"with these rewards a Boltzmann rater's {what} lies in 0.5..{highest:.3f}; got {wanted}")
    scale = 1 / float(gaps[gaps > 0].mean())

    def reached(beta: float) -> float:
        return float(np.mean(of_right(0.5 * (1 + np.tanh(beta * gaps / 2)))))  # of sigmoid(beta gap)

    low, high = 0.0, scale
    while reached(high) < wanted:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < wanted else (low, middle)
    return float(high)


@dataclass(frozen=True)
class Agreement:
    """Agreement between raters on some units.

    Attributes:
        units: units that two raters or more have labelled.
        agreed: out of pairs of labels of one unit by different raters, those that are the same...
        pairs: ...and how many pairs there are.
        alpha: Krippendorff's; None where it is not defined.
        fleiss: Fleiss' kappa; likewise.
        fleiss_raters: the number of raters of each unit it is computed on; 0 where it is not defined.
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
    """Agreement on the units that were completed within a time.

    Attributes:
        start, end: when the first and the last of the units were complete, UTC.
        found: the agreement.
    """

    start: datetime
    end: datetime
    found: Agreement


def agreement(labels: Labels) -> Agreement:
    """Compute every measure of agreement."""
    agreed, pairs = 0, 0
    for said in labels.values():
        for one, other in itertools.combinations(said.values(), 2):
            agreed, pairs = agreed + (one == other), pairs + 1
    units = sum(len(said) > 1 for said in labels.values())
    alpha, (fleiss, raters), cohen = krippendorff_alpha(labels), fleiss_kappa(labels), cohen_kappa(labels)
    return Agreement(units, agreed, pairs, alpha, fleiss, raters, cohen)


def agreement_over_time(labels: Labels, complete_at: Mapping[Any, datetime], every: int = 50) -> list[Period]:
    """Agreement by day where there are many days, otherwise by groups of units.

    Args:
        labels: the label of each rater by unit.
        complete_at: time of each unit's last label.
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
    """Counts ``[units, labels]`` of each label, for units that several raters have labelled."""
    several: Sequence[Mapping[str, int]] = [said for said in labels.values() if len(said) > 1]
    size = 1 + max((label for said in several for label in said.values()), default=0)
    return np.array([np.bincount(list(said.values()), minlength=size) for said in several], dtype=np.int64)
