"""Reward against KL to the reference, and the gap between the gains of proxy and gold.

Proxy and gold reward have different units. As in Gao, Schulman and Hilton (2022, "Scaling laws for reward model
overoptimization"), both are standardised on the reference's responses (mean 0, variance 1 there). Only then can they be
compared: their difference is the over-optimisation gap.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass

from rlhf_gym.loop.report.run_data import RunData, finite

_FEWEST_PAIRS = 8  # below this a standard deviation is too rough to divide by
_MOST_BINS = 10


@dataclass(frozen=True)
class FrontierPoint:
    """One iteration: its √KL and both gains over the reference."""

    root_kl: float
    proxy: float
    gold: float
    label: str

    @property
    def gap(self) -> float:
        """Proxy gain minus gold gain."""
        return self.proxy - self.gold


@dataclass(frozen=True)
class Frontier:
    """The frontier of a run.

    Attributes:
        points: iterations in the order of training.
        trend: means of the points in bins of equal count along √KL.
        held_out: the tuned model on the held-out prompts, if it was evaluated.
        best_of_n: the reference's best of n responses by the proxy, at the KL that it costs, if that was measured.
        standardised: True if gains are in standard deviations of the reference's scores, False if in raw units.
    """

    points: tuple[FrontierPoint, ...]
    trend: tuple[FrontierPoint, ...]
    held_out: FrontierPoint | None
    standardised: bool
    best_of_n: tuple[FrontierPoint, ...] = ()

    @property
    def unit(self) -> str:
        """The unit of gains."""
        return "SD of reference scores" if self.standardised else "raw units"


def frontier(run: RunData) -> Frontier | None:
    """Compute the frontier; None if no iteration has KL, proxy and gold."""
    rows = [
        (iteration, iteration.values["kl"], iteration.values["proxy"], iteration.values["gold"])
        for iteration in run.iterations
        if {"kl", "proxy", "gold"} <= iteration.values.keys()
    ]
    if not rows:
        return None
    proxy_scale, gold_scale = _reference_scale(run, "proxy"), _reference_scale(run, "gold")
    standardised = proxy_scale is not None and gold_scale is not None
    if proxy_scale is None or gold_scale is None:
        # Too few scored responses of the reference: raw gains over the first iteration, and the page says so.
        proxy_scale, gold_scale = (rows[0][2], 1.0), (rows[0][3], 1.0)

    def point(kl: float, proxy: float, gold: float, label: str) -> FrontierPoint:
        # A one-sample estimate of a KL near zero may come out below it.
        return FrontierPoint(math.sqrt(max(kl, 0.0)), _gain(proxy, proxy_scale), _gain(gold, gold_scale), label)

    points = tuple(
        point(kl, proxy, gold, f"Iteration {iteration.index}, round {iteration.round}")
        for iteration, kl, proxy, gold in rows
    )
    kl, proxy, gold = run.kl, run.evaluated("proxy_after"), run.evaluated("gold_after")
    held_out = None
    if standardised and kl is not None and proxy is not None and gold is not None:
        held_out = point(kl, proxy, gold, "Tuned model on held-out prompts")
    best = tuple(
        point(kl, proxy, gold, f"Best of {n:.0f} responses of the reference")
        for row in run.best_of_n
        if None not in (values := [finite(row.get(key)) for key in ("n", "kl", "proxy", "gold")])
        for n, kl, proxy, gold in [[value or 0.0 for value in values]]
    )
    return Frontier(points, _trend(points), held_out, standardised, best if standardised else ())


def _gain(value: float, scale: tuple[float, float]) -> float:
    return (value - scale[0]) / scale[1]


def _reference_scale(run: RunData, name: str) -> tuple[float, float] | None:
    """Mean and standard deviation of the reference's scores on the held-out prompts."""
    found = [finite(pair.get(f"{name}_before")) for pair in run.pairs]
    scores = [score for score in found if score is not None]
    if len(scores) < _FEWEST_PAIRS:
        return None
    standard_deviation = statistics.stdev(scores)
    if standard_deviation == 0:
        return None
    mean = run.evaluated(f"{name}_before")
    return statistics.fmean(scores) if mean is None else mean, standard_deviation


def _trend(points: tuple[FrontierPoint, ...]) -> tuple[FrontierPoint, ...]:
    ordered = sorted(points, key=lambda point: point.root_kl)
    bins = len(ordered) if len(ordered) <= _MOST_BINS else max(_MOST_BINS // 2, min(_MOST_BINS, len(ordered) // 3))
    edges = [round(index * len(ordered) / bins) for index in range(bins + 1)]
    return tuple(
        FrontierPoint(
            statistics.fmean(point.root_kl for point in members),
            statistics.fmean(point.proxy for point in members),
            statistics.fmean(point.gold for point in members),
            f"Mean of {len(members)} iterations",
        )
        for members in (ordered[start:end] for start, end in itertools.pairwise(edges))
    )
