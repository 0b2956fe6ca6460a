"""How far the probabilities that a reward model gives can be believed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class CalibrationBin:
    """Comparisons on which the model was about equally sure.

    Attributes:
        confidence: mean probability, in [1/2, 1], that the model gave to its own verdict.
        accuracy: how often the rater agreed.
        count: number of comparisons.
    """

    confidence: float
    accuracy: float
    count: int


def calibration(differences: NDArray[np.float64], num_bins: int = 10) -> tuple[list[CalibrationBin], float]:
    """Reliability of ``sigmoid(chosen - rejected)`` (Guo et al. 2017).

    Args:
        differences: ``[N]``, scores of the chosen responses minus those of the rejected.
        num_bins: bins of equal width between 1/2 and 1.

    Returns:
        The bins that are not empty, and the expected calibration error: the mean distance of accuracy and confidence.
    """
    confidence = 1 / (1 + np.exp(-np.abs(differences)))
    right = (differences > 0) + 0.5 * (differences == 0)
    place = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    bins = []
    for b in range(num_bins):
        chosen = place == b
        if chosen.any():
            bins.append(
                CalibrationBin(float(confidence[chosen].mean()), float(right[chosen].mean()), int(chosen.sum()))
            )
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / max(1, len(differences))
    return bins, float(error)
