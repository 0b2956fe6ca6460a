"""What learning curves say: tokens to a level, area under the curve, means with bands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_gym.bench.estimates import Estimate, mean_interval

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
    if not known:
        return []
    start = max(float(curve[0][0] or 0) for curve in known)
    end = min(float(curve[-1][0] or 0) for curve in known)
    if end <= start:
        return []
    found = []
    for place in np.linspace(start, end, points):
        values = [
            float(np.interp(place, [p[0] for p in curve], [p[1] for p in curve]))  # type: ignore[arg-type]
            for curve in known
        ]
        found.append((float(place), mean_interval(values)))
    return found
