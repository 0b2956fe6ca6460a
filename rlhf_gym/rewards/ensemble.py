"""Several rewards of the same thing as one that is harder to over-optimise than each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_gym.rewards.base import Scores
from rlhf_gym.rewards.combine import AnyReward, Combination, some


class Minimum(Combination):
    """The smallest of several rewards: the worst case of an ensemble (Coste et al. 2023)."""

    def __init__(self, parts: Sequence[AnyReward], *, name: str = "minimum") -> None:
        self.parts, self.name = some(parts, name), name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The minimum."""
        return np.min(values, axis=0), {}


class Ensemble(Combination):
    """Several rewards' mean, less what doubt costs: their disagreement, sample by sample.

    Normalise the rewards first: how far they lie apart means nothing on different scales.

    Args:
        parts: the rewards.
        variance_weight: price of their variance (Coste et al. 2023).
        deviation_weight: price of their standard deviation.
        name: name to report under.
    """

    def __init__(
        self,
        parts: Sequence[AnyReward],
        *,
        variance_weight: float = 0.0,
        deviation_weight: float = 0.0,
        name: str = "ensemble",
    ) -> None:
        self.parts, self.name = some(parts, name), name
        self.variance_weight, self.deviation_weight = variance_weight, deviation_weight

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The mean, less what doubt costs; the variance is reported."""
        variance = np.var(values, axis=0)
        doubt = self.variance_weight * variance + self.deviation_weight * np.sqrt(variance)
        return np.mean(values, axis=0) - doubt, {f"{self.name}_variance": variance}
