"""Which questions to ask: values of queries by what their answers would teach, and schedules of labels over rounds.

Pure functions on arrays. A higher value is asked first; of queries with several pairs of responses, the mean over pairs counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

Schedule = Literal["constant", "inverse", "hyperbolic"]


def disagreement(probabilities: Array) -> Array:
    """The variance over an ensemble's members of P(a is preferred to b) (Christiano et al. 2017, section 2.2.4).

    >>> disagreement(np.array([[[0.9]], [[0.1]]])).round(2).tolist()
    [0.16]
    """
    return np.asarray(probabilities.var(axis=0).mean(axis=-1))


def margin(probabilities: Array) -> Array:
    """Minus the distance of the mean probability from a coin's: the closest calls first.

    >>> margin(np.array([[[0.9], [0.5]]])).round(2).tolist()
    [-0.4, -0.0]
    """
    return np.asarray(-np.abs(probabilities.mean(axis=0) - 0.5).mean(axis=-1))


def entropy(probabilities: Array) -> Array:
    """The entropy of the mean prediction over all pairs, in nats (Lee et al. 2021, for single pairs).

    >>> entropy(np.array([[[0.5]], [[0.5]]])).round(4).tolist()
    [0.6931]
    """
    return np.asarray(_entropy(probabilities.mean(axis=0)).mean(axis=-1))


def information(probabilities: Array) -> Array:
    """Expected information gain: the entropy of the mean prediction minus the mean entropy (Houlsby et al. 2011).

    Unlike :func:`entropy`, it is 0 where all members know that the answer is a coin.

    >>> information(np.array([[[0.5], [1.0]], [[0.5], [0.0]]])).round(4).tolist()
    [0.0, 0.6931]
    """
    mean_entropy = _entropy(probabilities).mean(axis=0)
    return np.asarray((_entropy(probabilities.mean(axis=0)) - mean_entropy).mean(axis=-1))


def _entropy(p: Array) -> Array:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-p * np.log(p) - (1 - p) * np.log(1 - p))


BY_ENSEMBLE: dict[str, Callable[[Array], Array]] = {
    "disagreement": disagreement, "margin": margin, "entropy": entropy, "information": information,
}  # fmt: skip
"""Values of queries ``[Q]`` from an ensemble's ``[members, Q, pairs]`` probabilities."""


def highest(values: Array, number: int, rng: np.random.Generator) -> list[int]:
    """The places of the highest values, ascending; chance decides between equals.

    Args:
        values: ``[Q]``.
        number: how many, at most ``Q``.
        rng: the source of chance.
    """
    shuffled = rng.permutation(len(values))
    return sorted(shuffled[np.argsort(-values[shuffled], kind="stable")][:number].tolist())


def k_center(points: Array, number: int, covered: Array, rng: np.random.Generator) -> list[int]:
    """Greedy k-centre: again and again the point that is farthest from all covered ones (Sener and Savarese 2018).

    Args:
        points: ``[Q, D]``.
        number: how many, at most ``Q``.
        covered: ``[C, D]``, points that are asked about already; without any, chance gives the first.
        rng: the source of chance.

    Returns:
        Places, ascending.

    >>> line = np.array([[0.0], [1.0], [5.0], [9.0]])
    >>> k_center(line, 2, line[:1], np.random.default_rng(0))
    [2, 3]
    """
    distance = np.full(len(points), np.inf)
    for center in covered:
        distance = np.minimum(distance, np.linalg.norm(points - center, axis=1))
    chosen: list[int] = []
    for _ in range(number):
        farthest = int(rng.integers(len(points))) if np.isinf(distance).all() else int(distance.argmax())
        chosen.append(farthest)
        distance = np.minimum(distance, np.linalg.norm(points - points[farthest], axis=1))
        distance[chosen] = -1.0
    return sorted(chosen)


def labels_of_rounds(total: int, rounds: int, schedule: Schedule) -> list[int]:
    """Divide labels among rounds, at least one each: the shares of round ``t`` from 0, rounded by largest remainders.

    ``constant``: 1. ``inverse``: 1 / (1 + t). ``hyperbolic``: T / (T + t) for ``T`` rounds, which falls to about a half.

    Args:
        total: labels in all, at least ``rounds``.
        rounds: the number of rounds.
        schedule: which shares.

    >>> labels_of_rounds(11, 3, "inverse"), labels_of_rounds(26, 3, "hyperbolic")
    ([6, 3, 2], [11, 8, 7])
    """
    t = np.arange(rounds)
    share = {"constant": np.ones(rounds), "inverse": 1 / (1 + t), "hyperbolic": rounds / (rounds + t)}[schedule]
    exact = (total - rounds) * share / share.sum()  # one each, and the rest by share
    labels = np.floor(exact).astype(int)
    for place in np.argsort(-(exact - labels), kind="stable")[: total - rounds - labels.sum()]:
        labels[place] += 1
    return [int(n) + 1 for n in labels]
