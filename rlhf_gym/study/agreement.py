"""How well raters agree, how often they are right, and how rational a simulated one must be to agree as people do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_gym.errors import ConfigError

Array = NDArray[np.float64]


def agreement_from_accuracy(accuracy: float) -> float:
    """How often two independent raters, each right with this probability on every pair, agree: a^2 + (1 - a)^2.

    >>> round(agreement_from_accuracy(0.9), 2)
    0.82
    """
    if not 0 <= accuracy <= 1:
        raise ConfigError(f"an accuracy lies in 0..1, got {accuracy}")
    return accuracy**2 + (1 - accuracy) ** 2


def accuracy_from_agreement(agreement: float) -> float:
    """The accuracy, at least one half, of raters who agree so often: 1/2 + sqrt(2 p - 1) / 2.

    It is also the ceiling of a reward model that is scored on one such rater's labels. All pairs are taken to be
    equally hard; where some are harder, the true mean accuracy is lower (Jensen's inequality).

    Args:
        agreement: between one half (coins) and 1.

    Raises:
        ConfigError: agreement outside of that.

    >>> round(accuracy_from_agreement(0.65), 3)
    0.774
    """
    if not 0.5 <= agreement <= 1:
        raise ConfigError(f"agreement of two independent raters lies in 0.5..1, got {agreement}")
    return 0.5 + math.sqrt(2 * agreement - 1) / 2


def beta_for_accuracy(reward_differences: ArrayLike, accuracy: float) -> float:
    """The beta with which a Boltzmann rater chooses the better response so often: mean sigmoid(beta |d|) = accuracy.

    Args:
        reward_differences: between the two responses of each pair, in units of reward; equal responses count as half
            right whatever beta is.
        accuracy: at least one half, and below what a rational rater reaches.

    Returns:
        In 1 / unit of reward.

    Raises:
        ConfigError: no differences, or an accuracy that no beta gives.
    """
    return _beta(reward_differences, accuracy, "accuracy", lambda right: right)


def beta_for_agreement(reward_differences: ArrayLike, agreement: float) -> float:
    """The beta with which two independent Boltzmann raters agree so often: mean (p^2 + (1 - p)^2) = agreement.

    Args:
        reward_differences: between the two responses of each pair, in units of reward.
        agreement: at least one half, and below what rational raters reach.

    Returns:
        In 1 / unit of reward.

    Raises:
        ConfigError: no differences, or an agreement that no beta gives.
    """
    return _beta(reward_differences, agreement, "agreement", lambda right: right**2 + (1 - right) ** 2)


def _beta(differences: ArrayLike, wanted: float, what: str, of_right: Callable[[Array], Array]) -> float:
    """Bisection: what is wanted grows with beta."""
    gaps = np.abs(np.asarray(differences, dtype=np.float64)).ravel()
    if not len(gaps) or not np.isfinite(gaps).all():
        raise ConfigError(
            f"beta for an {what} needs finite differences of reward, at least one; got {len(gaps)} numbers"
        )
    highest = float(np.mean(of_right(np.where(gaps > 0, 1.0, 0.5))))
    if not 0.5 <= wanted < highest:
        raise ConfigError(f"with these rewards a Boltzmann rater's {what} lies in 0.5..{highest:.3f}; got {wanted}")
    scale = 1 / float(gaps[gaps > 0].mean())

    def reached(beta: float) -> float:
        return float(np.mean(of_right(0.5 * (1 + np.tanh(beta * gaps / 2)))))  # of sigmoid(beta gap)

    low, high = 0.0, scale
    while reached(high) < wanted:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < wanted else (low, middle)
    return float(high)
