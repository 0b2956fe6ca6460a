"""Reward at equal KL: what two contenders have earned where they are equally far from the start model.

Rewards at the end of a budget mix what an algorithm learns with how far it goes. Gold reward is a curve over KL (Gao et al.
2023, "Scaling laws for reward model overoptimization"); here two runs of one seed are compared along their own curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_gym.bench.curves import SMOOTHED, Curve
from rlhf_gym.bench.estimates import Difference, Floats, paired_difference
from rlhf_gym.bench.leaderboard import Leaderboard
from rlhf_gym.bench.results import Result

DIGITS = 6
"""Of a KL: what an untrained model is from itself, some 1e-8 nats, is the rounding of sums."""
Frontier = tuple[Floats, Floats]
"""KL in nats, ascending without ties, and the reward there."""
Span = tuple[float, float]
"""The lowest and the highest KL, in nats."""


def frontier(curve: Curve) -> Frontier | None:
    """The reward of a learning curve by KL: means of both over three iterations, in the order of KL.

    The first iteration stands alone, before any step; the second is averaged with it.

    Args:
        curve: the points; those without a KL are left out.

    Returns:
        KL and reward, means at one and the same KL made one; None without a point that has a KL.

    >>> frontier([[10, 0.0, 0.0], [20, 0.3, 2.0], [30, 0.6, 4.0], [40, 0.9, 6.0]])
    (array([0., 1., 2., 4.]), array([0.  , 0.15, 0.3 , 0.6 ]))
    """
    points = np.array([point[1:] for point in curve if point[1] is not None and point[2] is not None], dtype=np.float64)
    if not len(points):
        return None
    width = min(SMOOTHED, len(points))
    first = [points[:n].mean(0) for n in range(1, width)]
    rest = np.lib.stride_tricks.sliding_window_view(points, width, axis=0).mean(-1)
    rewards, kls = np.array([*first, *rest]).T
    found, places, counts = np.unique(kls.round(DIGITS), return_inverse=True, return_counts=True)
    return found, np.bincount(places, rewards) / counts


def mean_gap(first: Frontier, second: Frontier) -> tuple[float, Span] | None:
    """The first's reward less the second's, mean over the KL that both reached, every nat alike.

    Both are interpolated linearly; the integral of their difference is exact.

    Args:
        first: a run's reward by KL.
        second: another's.

    Returns:
        The mean difference, and from where to where both reached; None where their KLs do not overlap.

    >>> line, flat = np.array([0.0, 1.0, 4.0]), np.array([2.0, 6.0])
    >>> mean_gap((line, line / 4), (flat, np.array([0.5, 0.5])))
    (0.25, (2.0, 4.0))
    """
    low, high = max(first[0][0], second[0][0]), min(first[0][-1], second[0][-1])
    if high < low:
        return None
    knots = np.concatenate([[low, high], first[0], second[0]])
    knots = np.unique(knots[(low <= knots) & (knots <= high)])
    gaps = np.interp(knots, *first) - np.interp(knots, *second)
    mean = np.trapezoid(gaps, knots) / (high - low) if high > low else gaps[0]
    return float(mean), (float(low), float(high))


def mean_frontier(curves: Sequence[Curve], points: int = 24) -> list[tuple[float, float]]:
    """The mean reward of several seeds by KL, over the KL that all of them reached; empty where there is none.

    Args:
        curves: one for each seed; those without a KL are left out.
        points: places at which the mean is taken, evenly spaced over the root of KL.
    """
    paths = [path for curve in curves if (path := frontier(curve)) is not None]
    if not paths:
        return []
    low, high = max(path[0][0] for path in paths), min(path[0][-1] for path in paths)
    if high <= low:
        return []
    places = np.linspace(max(low, 0.0) ** 0.5, high**0.5, points) ** 2
    means = np.mean([np.interp(places, *path) for path in paths], axis=0)
    return list(zip(places.tolist(), means.tolist(), strict=True))


@dataclass(frozen=True)
class EqualKL:
    """Two contenders at equal KL.

    Attributes:
        difference: of scores, first less second, paired by seed; None where no seed can be compared on all of ``problems``.
        problems: those on which some pair of runs has a KL in common.
        span: from where to where both reached, in nats, mean over the pairs compared; None where none is.
        compared: pairs of runs that have a KL in common.
        apart: pairs of runs whose KLs do not overlap.
        unknown: pairs of which a run has no KL: it failed, or nothing measures it.
        reached: the lowest and highest KL that any run of the first, and of the second, reached; None without a KL.
        single: True for the first, and for the second, where runs without a learning curve stand at test reward and final KL.
    """

    difference: Difference | None
    problems: tuple[str, ...]
    span: Span | None
    compared: int
    apart: int
    unknown: int
    reached: tuple[Span | None, Span | None]
    single: tuple[bool, bool]


def at_equal_kl(
    ours: Leaderboard, first: str, theirs: Leaderboard, second: str, problems: Sequence[str] | None = None
) -> EqualKL:
    """Compare two contenders at equal KL, by :func:`frontier` and :func:`mean_gap` of each pair of runs.

    A seed's value is its mean over the problems on which any pair has a KL in common; a seed that lacks one of them is left
    out.

    Args:
        ours: the results that the first is in.
        first: a contender.
        theirs: the results that the second is in; may be the same.
        second: a contender.
        problems: some of the problems; None takes all.
    """
    gaps: dict[str, dict[int, float]] = {}
    spans: list[Span] = []
    apart = unknown = 0
    reached: tuple[list[float], list[float]] = ([], [])
    single = [False, False]
    for problem in ours.problems if problems is None else problems:
        low, high = ours.range_of(problem)
        a, b = ours.runs(problem, first), theirs.runs(problem, second)
        for seed in sorted(a.keys() & b.keys()):
            paths = _path(a[seed]), _path(b[seed])
            for i, (path, run) in enumerate(zip(paths, (a[seed], b[seed]), strict=True)):
                if path is not None:
                    reached[i].extend(path[0][[0, -1]].tolist())
                    single[i] |= all(point[2] is None for point in run["curve"])
            if paths[0] is None or paths[1] is None:
                unknown += 1
            elif (gap := mean_gap(paths[0], paths[1])) is None:
                apart += 1
            else:
                gaps.setdefault(problem, {})[seed] = gap[0] / (high - low)
                spans.append(gap[1])
    seeds = sorted(set.intersection(*map(set, gaps.values()))) if gaps else []
    means = [float(np.mean([by_seed[seed] for by_seed in gaps.values()])) for seed in seeds]
    return EqualKL(
        paired_difference(means, [0.0] * len(means)) if means else None, tuple(gaps),
        (float(np.mean([s[0] for s in spans])), float(np.mean([s[1] for s in spans]))) if spans else None,
        len(spans), apart, unknown, (_ends(reached[0]), _ends(reached[1])), (single[0], single[1]),
    )  # fmt: skip


def _path(run: Result) -> Frontier | None:
    """A run's reward by KL; of one without a curve, such as best-of-n's, its test reward at its KL."""
    if run["status"] != "done":
        return None
    found = frontier(run["curve"])
    kl = run["metrics"].get("kl")
    if found is not None or kl is None:
        return found
    return np.array([kl], dtype=np.float64).round(DIGITS), np.array([run["metrics"]["reward"]], dtype=np.float64)


def _ends(values: list[float]) -> Span | None:
    return (min(values), max(values)) if values else None
