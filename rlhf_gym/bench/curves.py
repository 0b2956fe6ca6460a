"""What learning curves say: tokens to a level, area under the curve, means with bands, points within another's band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rlhf_gym.bench.estimates import LEVEL, Estimate, Floats, mean_interval

SMOOTHED = 3
"""Iterations whose mean must reach a level."""

Curve = Sequence[Sequence[float | None]]
"""Points ``[tokens, reward, kl]``."""


def tokens_to_level(curve: Curve, level: float) -> float | None:
    """The tokens after which the mean reward of three iterations has reached a level; None if it never has.

    Args:
        curve: the points.
        level: a reward.

    >>> tokens_to_level([[10, 0.0, 0.0], [20, 0.5, 1.0], [30, 1.0, 2.0], [40, 1.0, 2.0]], 0.8)
    40.0
    """
    rewards = [float(point[1] or 0.0) for point in curve]
    for end in range(SMOOTHED, len(rewards) + 1):
        if sum(rewards[end - SMOOTHED : end]) / SMOOTHED >= level:
            return float(curve[end - 1][0] or 0)
    return None


def area_under_curve(curve: Curve, budget: float) -> float | None:
    """The mean reward over the budget, by the trapezoid rule; the first and the last reward hold to the ends.

    Args:
        curve: the points.
        budget: tokens.

    >>> area_under_curve([[50, 0.0, 0.0], [100, 1.0, 1.0]], 100)
    0.25
    """
    if not curve:
        return None
    tokens = [0.0, *(float(point[0] or 0) for point in curve)]
    rewards = [float(curve[0][1] or 0.0), *(float(point[1] or 0.0) for point in curve)]
    if tokens[-1] < budget:
        tokens.append(budget)
        rewards.append(rewards[-1])
    return float(np.trapezoid(rewards, tokens) / tokens[-1])


def mean_curve(curves: Sequence[Curve], points: int = 24) -> list[tuple[float, Estimate]]:
    """The mean of several seeds' rewards over tokens, with Student's t intervals as its band.

    Args:
        curves: one for each seed; those without points are left out.
        points: places at which the mean is taken, from the last first point to the first last one.
    """
    known = [curve for curve in curves if len(curve) > 1]
    places = _places(known, points)
    return [
        (float(place), mean_interval(list(rewards)))
        for place, rewards in zip(places, _at(places, known).T, strict=True)
    ]


@dataclass(frozen=True)
class PointsWithin:
    """How much of one contender's mean learning curve lies within the other's interval.

    Attributes:
        within: points inside.
        points: all points.
        expected: the share that would lie inside on average if the two did not differ and their runs were independent; paired
            runs lie inside more often.
    """

    within: int
    points: int
    expected: float


def points_within(first: Sequence[Curve], second: Sequence[Curve], points: int = 24) -> PointsWithin | None:
    """The points of the second's mean learning curve that lie within Student's 95% interval of the first's.

    The second's mean is as uncertain as the first's, so fewer than 95% of the points of an equal lie inside:
    ``P(|t| < t(0.975) / sqrt(1 + n1 / n2))`` with ``n1 - 1`` degrees of freedom, 88% of five seeds. Neighbouring points go
    together: a share is a description, no test.

    Args:
        first: a contender's curves, one for each seed; those without points are left out.
        second: the other's.
        points: places at which the two are compared, evenly spaced over the tokens that all curves have.

    Returns:
        The count; None where the first has fewer than two curves, the second none, or no tokens are common to all.
    """
    ours, theirs = ([curve for curve in curves if len(curve) > 1] for curves in (first, second))
    if len(ours) < 2 or not theirs:
        return None
    places = _places([*ours, *theirs], points)
    if not len(places):
        return None
    intervals = [mean_interval(list(rewards)) for rewards in _at(places, ours).T]
    means = _at(places, theirs).mean(0)
    within = sum(i.low <= mean <= i.high for i, mean in zip(intervals, means, strict=True))
    return PointsWithin(int(within), len(places), _expected(len(ours), len(theirs)))


def _expected(first: int, second: int) -> float:
    t = stats.t(first - 1)
    return float(2 * t.cdf(t.ppf((1 + LEVEL) / 2) / math.sqrt(1 + first / second)) - 1)


def _places(curves: Sequence[Curve], points: int) -> Floats:
    """Tokens from the last first point to the first last one; none where the curves have no tokens in common."""
    if not curves:
        return np.empty(0)
    start = max(float(curve[0][0] or 0) for curve in curves)
    end = min(float(curve[-1][0] or 0) for curve in curves)
    return np.linspace(start, end, points) if end > start else np.empty(0)


def _at(places: Floats, curves: Sequence[Curve]) -> Floats:
    """The rewards of curves at some tokens, ``[curves, places]``."""
    return np.array([np.interp(places, [p[0] for p in c], [p[1] for p in c]) for c in curves])  # type: ignore[arg-type]
