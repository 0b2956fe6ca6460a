"""The field's choice models, as pure functions: the probability of each choice, given the rewards.

Rewards are in any unit; ``beta`` is in 1 / that unit: with ``beta = 2``, a response that is better by 1 is chosen with
probability ``sigmoid(2)``. ``beta = inf`` is a rational rater (always the better one; a fair coin between equals),
``beta = 0`` one who chooses at random. Arrays broadcast.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def boltzmann(reward_a: ArrayLike, reward_b: ArrayLike, beta: float) -> Array:
    """P(a is chosen over b) = sigmoid(beta (r_a - r_b)): Bradley and Terry 1952.

    Args:
        reward_a: rewards of the first responses, ``[...]``.
        reward_b: rewards of the second ones, of the same shape.
        beta: rationality, in 1 / unit of reward.

    >>> float(boltzmann(1.0, 0.0, beta=2.0).round(4))
    0.8808
    """
    return _sigmoid(_scaled(np.asarray(reward_a, dtype=np.float64) - np.asarray(reward_b), beta))


def thurstone(reward_a: ArrayLike, reward_b: ArrayLike, sigma: float) -> Array:
    """P(a is chosen over b) = Phi((r_a - r_b) / (sigma sqrt 2)): Thurstone 1927, case V.

    Args:
        reward_a: rewards of the first responses, ``[...]``.
        reward_b: rewards of the second ones, of the same shape.
        sigma: standard deviation of the noise on each perceived reward, in units of reward; 0 is rational.

    >>> float(thurstone(1.0, 0.0, sigma=1.0).round(4))
    0.7602
    """
    difference = np.asarray(reward_a, dtype=np.float64) - np.asarray(reward_b)
    z = _scaled(difference, math.inf if sigma == 0 else 1 / (sigma * math.sqrt(2)))
    return np.asarray(np.vectorize(lambda value: 0.5 * math.erfc(-value / math.sqrt(2)), otypes=[np.float64])(z))


def with_errors(probabilities: ArrayLike, error_rate: float, choices: int = 2) -> Array:
    """A share ``error_rate`` of answers is drawn blindly: p' = error_rate / choices + (1 - error_rate) p.

    Half of the blind answers to a pair are right by luck: to flip a tenth of the labels, ``error_rate`` is 0.2.

    Args:
        probabilities: of the choices without errors, ``[...]``, in 0..1.
        error_rate: share of blind answers, in 0..1.
        choices: number of choices.

    >>> float(with_errors(0.9, 0.5))
    0.7
    """
    return error_rate / choices + (1 - error_rate) * np.asarray(probabilities, dtype=np.float64)


def plackett_luce_choice(rewards: ArrayLike, beta: float) -> Array:
    """P(response i is the best of k) = softmax(beta r)_i: Luce 1959; Plackett 1975. ``[..., k]`` to ``[..., k]``.

    Args:
        rewards: ``[k]``.
        beta: rationality, in 1 / unit of reward.
    """
    rewards = np.asarray(rewards, dtype=np.float64)
    weights = np.exp(_scaled(rewards - rewards.max(axis=-1, keepdims=True), beta))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def plackett_luce(rewards: ArrayLike, order: ArrayLike, beta: float) -> float:
    """P(a whole order) = product over places of the choice among those still left: Plackett 1975.

    Args:
        rewards: ``[k]``.
        order: ``[k]``, a permutation: the best response's index first.
        beta: in 1 / unit of reward.

    >>> round(plackett_luce([0.0, 0.0, 0.0], [2, 0, 1], beta=1.0), 4)
    0.1667
    """
    left = np.asarray(rewards, dtype=np.float64)[np.asarray(order)]
    return math.prod(float(plackett_luce_choice(left[place:], beta)[0]) for place in range(len(left) - 1))


def rao_kupper(reward_a: ArrayLike, reward_b: ArrayLike, beta: float, theta: float) -> tuple[Array, Array, Array]:
    """P(a), P(tie), P(b) where differences below ln theta are not felt: Rao and Kupper 1967.

    With pi = exp(beta r): P(a) = pi_a / (pi_a + theta pi_b), P(b) = pi_b / (pi_b + theta pi_a), the rest are ties.

    Args:
        reward_a: rewards of the first responses, ``[...]``.
        reward_b: rewards of the second ones, of the same shape.
        beta: in 1 / unit of reward.
        theta: 1 or more; 1 gives no ties, and between equals P(tie) = (theta - 1) / (theta + 1).

    >>> [float(p.round(4)) for p in rao_kupper(0.0, 0.0, beta=1.0, theta=3.0)]
    [0.25, 0.5, 0.25]
    """
    difference = _scaled(np.asarray(reward_a, dtype=np.float64) - np.asarray(reward_b), beta)
    p_a, p_b = _sigmoid(difference - math.log(theta)), _sigmoid(-difference - math.log(theta))
    return p_a, np.maximum(1 - p_a - p_b, 0.0), p_b


def davidson(reward_a: ArrayLike, reward_b: ArrayLike, beta: float, nu: float) -> tuple[Array, Array, Array]:
    """P(a), P(tie), P(b) where a tie is as likely as the geometric mean of the two: Davidson 1970.

    With pi = exp(beta r): P(tie) = nu sqrt(pi_a pi_b) / (pi_a + pi_b + nu sqrt(pi_a pi_b)); the rest as Bradley-Terry.

    Args:
        reward_a: rewards of the first responses, ``[...]``.
        reward_b: rewards of the second ones, of the same shape.
        beta: in 1 / unit of reward.
        nu: 0 or more; 0 gives no ties, and between equals P(tie) = nu / (2 + nu).

    >>> [float(p.round(4)) for p in davidson(0.0, 0.0, beta=1.0, nu=2.0)]
    [0.25, 0.5, 0.25]
    """
    difference = _scaled(np.asarray(reward_a, dtype=np.float64) - np.asarray(reward_b), beta)
    with np.errstate(over="ignore"):  # cosh overflows to inf, where ties have probability 0
        p_tie = np.asarray(nu / (2 * np.cosh(difference / 2) + nu))
    return (1 - p_tie) * _sigmoid(difference), p_tie, (1 - p_tie) * _sigmoid(-difference)


def _scaled(differences: ArrayLike, beta: float) -> Array:
    """``beta`` times differences of reward; infinite ``beta`` leaves a difference of 0 at 0.

    Args:
        differences: differences of reward, ``[...]``.
        beta: rationality, in 1 / unit of reward, 0 or more; infinite for a rater without errors.

    Returns:
        float64 ``[...]``.
    """
    differences = np.asarray(differences, dtype=np.float64)
    if math.isinf(beta):
        return np.where(differences == 0, 0.0, np.copysign(np.inf, differences))
    return np.asarray(beta * differences)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))  # tanh saturates where exp would overflow
