"""A reward's agreement with ratings of single responses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr, spearmanr

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
        test = pearsonr(found, given)
        correlation = float(test.statistic)
        low, high = test.confidence_interval(0.95) if len(given) > 3 else (-1.0, 1.0)
        rmse = spread * math.sqrt(max(0.0, 1 - correlation**2))
        return cls(
            len(given), correlation, float(low), float(high), float(spearmanr(found, given).statistic), rmse, spread
        )

    def __str__(self) -> str:
        if math.isnan(self.correlation):
            return f"ratings              {self.n}: too few, or all the same, or all with one score: no correlation"
        return (
            f"ratings              correlation {self.correlation:+.2f} [{self.low:+.2f}, {self.high:+.2f}] (95% interval; "
            f"{self.n} ratings), of ranks {self.rank_correlation:+.2f}\n"
            f"                     RMSE {self.rmse:.3g} by the best line (by the mean rating alone: {self.spread:.3g})"
        )
