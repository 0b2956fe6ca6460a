"""Ensembles: several rewards for the same quality, which are harder to over-optimise together than alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlhf_gym.rewards.base import AnyReward, Scores
from rlhf_gym.rewards.combine import Combination, as_terms


class Minimum(Combination):
    """The smallest of several rewards: the worst case of an ensemble (Coste et al. 2023, section 3).

    Args:
        parts: the rewards, at least one.
        name: name to report under.

    Raises:
        ConfigError: no part.
    """

    def __init__(self, parts: Sequence[AnyReward], *, name: str = "minimum") -> None:
        self.parts, self.name = as_terms(parts, name), name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Take the minimum of the scores; the term ``NAME_variance`` is their variance.

        Args:
            values: for each part its scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        return np.min(values, axis=0), {f"{self.name}_variance": np.var(values, axis=0)}


class Ensemble(Combination):
    """The mean of several rewards, less a penalty on their disagreement, sample by sample.

    ``score = mean - variance_weight * variance - std_weight * standard deviation``, over the parts (Coste et al. 2023,
    section 3, for the variance). Normalise the rewards first: their disagreement means nothing on different scales.

    Args:
        parts: the rewards, at least one.
        variance_weight: weight of their variance.
        std_weight: weight of their standard deviation.
        name: name to report under.

    Raises:
        ConfigError: no part.
    """

    def __init__(
        self,
        parts: Sequence[AnyReward],
        *,
        variance_weight: float = 0.0,
        std_weight: float = 0.0,
        name: str = "ensemble",
    ) -> None:
        self.parts, self.name = as_terms(parts, name), name
        self.variance_weight, self.std_weight = variance_weight, std_weight

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Compute the penalised mean; the term ``NAME_variance`` is the variance.

        Args:
            values: for each part its scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        variance = np.var(values, axis=0)
        penalty = self.variance_weight * variance + self.std_weight * np.sqrt(variance)
        return np.mean(values, axis=0) - penalty, {f"{self.name}_variance": variance}
