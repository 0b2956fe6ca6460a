"""A reward's agreement with ratings of single responses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.reward_model.batches import Text
from rlhf_gym.reward_model.ratings import Rating


@dataclass(frozen=True)
class RatingAgreement:
    """How a reward's scores go along with ratings.

    Attributes:
        n: ratings.
        correlation: Pearson's, of scores and ratings; NaN where one of them never changes.
        low: lower end of its 95% interval (Fisher's z, as of independent ratings).
        high: upper end.
        rank_correlation: Spearman's.
        rmse: root mean squared error of the best line from scores to ratings, in units of the ratings.
        spread: standard deviation of the ratings: the RMSE of their mean.
    """

    n: int
    correlation: float
    low: float
    high: float
    rank_correlation: float
    rmse: float
    spread: float

    @classmethod
    def of(cls, ratings: Sequence[Rating], scores: Mapping[Text, float]) -> RatingAgreement:
        """Compare.

        Args:
            ratings: at least one.
            scores: of each rated response.
        """
        given = np.array([rating.value for rating in ratings])
        found = np.array([scores[rating.prompt, rating.response] for rating in ratings])
        spread = float(given.std())
        if len(given) < 3 or spread == 0 or found.std() == 0:
            return cls(len(given), math.nan, math.nan, math.nan, math.nan, spread, spread)
        correlation = _pearson(found, given)
        low, high = _interval(correlation, len(given))
        rmse = spread * math.sqrt(max(0.0, 1 - correlation**2))
        return cls(len(given), correlation, low, high, _pearson(_ranks(found), _ranks(given)), rmse, spread)

    def __str__(self) -> str:
        if math.isnan(self.correlation):
            return f"ratings              {self.n}: too few, or all the same, or all with one score: no correlation"
        return (
            f"ratings              correlation {self.correlation:+.2f} [{self.low:+.2f}, {self.high:+.2f}] (95% interval; "
            f"{self.n} ratings), of ranks {self.rank_correlation:+.2f}\n"
            f"                     RMSE {self.rmse:.3g} by the best line (by the mean rating alone: {self.spread:.3g})"
        )


def _pearson(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    return float(np.clip(np.corrcoef(left, right)[0, 1], -1, 1))


def _interval(correlation: float, n: int) -> tuple[float, float]:
    """The 95% interval by Fisher's z."""
    if n <= 3:
        return -1.0, 1.0
    if abs(correlation) == 1:
        return correlation, correlation
    centre, half = math.atanh(correlation), 1.959964 / math.sqrt(n - 3)
    return math.tanh(centre - half), math.tanh(centre + half)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count + 1) / 2)[place]
    return ranks
