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
    """Mean minus ``variance_weight`` times the variance between rewards (Coste et al. 2023): doubt costs.

    Normalise the rewards first: their variance means nothing on different scales.
    """

    def __init__(self, parts: Sequence[AnyReward], *, variance_weight: float = 0.0, name: str = "ensemble") -> None:
        self.parts, self.name, self.variance_weight = some(parts, name), name, variance_weight

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The mean, less what doubt costs; the variance is reported."""
        variance = np.var(values, axis=0)
        return np.mean(values, axis=0) - self.variance_weight * variance, {f"{self.name}_variance": variance}
