"""Estimates with intervals that hold for few seeds: means, interquartile means, differences of pairs, probabilities.

A percentile bootstrap of five values covers the truth in 84% of cases, not in 95%; these intervals take Student's t, or widen
the bootstrap's percentiles accordingly. tests/test_bench_statistics.py has the numbers worked by hand and the simulated
coverage. Needs scipy: ``pip install 'rlhf-gym[bench]'``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 2000
FEWEST_TO_RESAMPLE = 5
"""Drawing anew from fewer values yields too little (of three values, coverage is 75%): Student's interval stands in."""
LEVEL = 0.95
"""The confidence of all intervals."""


@dataclass(frozen=True)
class Estimate:
    """An estimate with its 95% interval; without one (None) where there are too few values."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Difference:
    """A paired difference.

    Attributes:
        estimate: the mean difference, first minus second.
        p: two-sided p value; None for a single pair.
        n: pairs.
        adjusted: the p value after Holm's correction for the comparisons made together; None before it.
    """

    estimate: Estimate
    p: float | None
    n: int
    adjusted: float | None = None

    @property
    def found(self) -> bool:
        """True where a difference may be claimed at 5%, corrected where a correction was made."""
        p = self.p if self.adjusted is None else self.adjusted
        return p is not None and p < 1 - LEVEL

    @property
    def words(self) -> str:
        """The verdict."""
        if self.p is None:
            return "one pair only: nothing can be said"
        if not self.found:
            return "no difference that stands out of the noise"
        return "the first is better" if self.estimate.value > 0 else "the second is better"


def mean_interval(values: Sequence[float]) -> Estimate:
    """The mean with Student's t interval.

    Args:
        values: one value a seed.

    >>> estimate = mean_interval([1.0, 2.0, 3.0])
    >>> round(estimate.low, 3), round(estimate.high, 3)
    (-0.484, 4.484)
    """
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1)) * float(array.std(ddof=1)) / math.sqrt(len(array))
    return Estimate(mean, mean - half, mean + half)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean difference of pairs, by the t test of the differences.

    Where all differences are one and the same number other than 0, the t test has no scale; the sign test's p value stands
    there, ``2 ** (1 - n)``.

    Args:
        first: one value a seed.
        second: the other contender's, in the same order.

    >>> paired_difference([2.0, 3.0, 5.0], [1.0, 1.0, 2.0]).estimate.value
    2.0
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    estimate, n = mean_interval(list(differences)), len(differences)
    if n < 2:
        return Difference(estimate, None, n)
    if np.ptp(differences) == 0:
        p = 1.0 if differences[0] == 0 else 2.0 ** (1 - n)
    else:
        p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(estimate, p, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction: the smallest of ``m`` p values counts ``m`` times, the next ``m - 1`` times, ...

    Args:
        p_values: of the comparisons that are made together.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def interquartile_mean(values: Floats) -> Floats:
    """The mean of the middle half along the last axis (Agarwal et al. 2021): a quarter is cut off at either end."""
    found: Floats = np.asarray(stats.trim_mean(values, 0.25, axis=-1))
    return found


def iqm_interval(strata: Sequence[Sequence[float]], *, seed: int = 0) -> Estimate:
    """The interquartile mean of all runs, with a stratified bootstrap interval.

    Runs are drawn anew within each problem. Of ``k`` problems with ``n`` runs each, percentiles are widened as Hesterberg
    (2015, "What teachers should know about the bootstrap", section 5.3) does, from ``alpha / 2`` to
    ``Phi(-sqrt(n / (n - 1)) t(alpha / 2, k (n - 1)))``: drawing from few values makes their spread too small.

    Args:
        strata: the runs' scores, one sequence for each problem.
        seed: of the bootstrap.
    """
    values = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    estimate = float(interquartile_mean(np.concatenate(values)))
    if min(len(stratum) for stratum in values) < 2:
        return Estimate(estimate)
    if sum(len(stratum) for stratum in values) < FEWEST_TO_RESAMPLE:
        interval = mean_interval(list(np.concatenate(values)))
        return Estimate(estimate, interval.low, interval.high)
    return _bootstrap(values, lambda drawn: interquartile_mean(np.concatenate(drawn, axis=-1)), estimate, seed)


def probability_of_improvement(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0
) -> Estimate:
    """The probability that a run of the first scores higher than one of the second, mean over problems, ties half.

    The Mann-Whitney statistic of each problem (Agarwal et al. 2021), with the bootstrap of :func:`iqm_interval`; pairs are
    drawn together.

    Args:
        first: the runs' scores, one sequence for each problem.
        second: likewise, in the same order of problems and seeds.
        seed: of the bootstrap.

    >>> probability_of_improvement([[1.0, 3.0]], [[2.0, 0.0]]).value
    0.75
    """
    pairs = [np.array([a, b], dtype=np.float64) for a, b in zip(first, second, strict=True)]

    def wins(drawn: list[Floats]) -> Floats:
        each = []
        for pair in drawn:
            a, b = pair[0][..., :, None], pair[1][..., None, :]
            each.append(((a > b) + 0.5 * (a == b)).mean((-1, -2)))
        found: Floats = np.mean(each, axis=0)
        return found

    estimate, sizes = float(wins(pairs)), [pair.shape[-1] for pair in pairs]
    if min(sizes) < 2 or sum(sizes) < FEWEST_TO_RESAMPLE:  # no interval would be honest
        return Estimate(estimate)
    found = _bootstrap(pairs, wins, estimate, seed)
    assert found.low is not None
    assert found.high is not None
    return Estimate(estimate, max(0.0, found.low), min(1.0, found.high))


def _bootstrap(
    strata: list[Floats], statistic: Callable[[list[Floats]], Floats], estimate: float, seed: int
) -> Estimate:
    """A stratified bootstrap over the last axis, its percentiles widened for small samples."""
    rng = np.random.default_rng(seed)
    drawn = []
    for values in strata:
        n = values.shape[-1]
        # [..., resamples, n]: the same draw for all rows of a stratum, so that pairs stay pairs.
        drawn.append(values[..., rng.integers(n, size=(RESAMPLES, n))])
    found = statistic(drawn)
    sizes = np.array([values.shape[-1] for values in strata])
    freedom = float((sizes - 1).sum())
    inflation = math.sqrt(float(np.mean(sizes / (sizes - 1))))
    tail = float(stats.norm.cdf(-inflation * stats.t.ppf((1 + LEVEL) / 2, freedom)))
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(estimate, float(low), float(high))


def performance_profile(values: Sequence[float], thresholds: Sequence[float]) -> list[Estimate]:
    """The share of runs that score above each threshold, with Wilson's interval.

    Args:
        values: the scores of all runs.
        thresholds: scores.
    """
    found = []
    for threshold in thresholds:
        above = int(sum(value > threshold for value in values))
        interval = stats.binomtest(above, len(values)).proportion_ci(LEVEL, method="wilson")
        found.append(Estimate(above / len(values), float(interval.low), float(interval.high)))
    return found


@dataclass(frozen=True)
class TimeToLevel:
    """Tokens until a level is reached, with runs that never reach it censored at their end, not left out.

    Attributes:
        median: the Kaplan-Meier median; None where fewer than half arrive.
        reached: runs that arrived.
        n: all runs.
    """

    median: float | None
    reached: int
    n: int


def time_to_level(reached: Sequence[float], censored: Sequence[float]) -> TimeToLevel:
    """The Kaplan-Meier median of tokens to a level.

    Args:
        reached: tokens of the runs that arrived.
        censored: tokens at which the other runs ended.

    >>> time_to_level([100, 200, 400], [300, 300]).median
    400.0
    """
    n = len(reached) + len(censored)
    median = None
    if reached:
        data = stats.CensoredData(uncensored=np.asarray(reached, float), right=np.asarray(censored, float))
        survival = stats.ecdf(data).sf
        below = np.flatnonzero(survival.probabilities <= 0.5 + 1e-12)
        median = float(survival.quantiles[below[0]]) if len(below) else None
    return TimeToLevel(median, len(reached), n)


def with_holm(differences: Mapping[tuple[str, str], Difference]) -> dict[tuple[str, str], Difference]:
    """Correct comparisons that are made together; those of a single pair stay as they are."""
    tested = [key for key, difference in differences.items() if difference.p is not None]
    adjusted = dict(zip(tested, holm([differences[key].p or 0.0 for key in tested]), strict=True))
    return {
        key: Difference(difference.estimate, difference.p, difference.n, adjusted.get(key))
        for key, difference in differences.items()
    }
