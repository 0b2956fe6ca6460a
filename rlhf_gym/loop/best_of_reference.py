"""Best-of-n: the reference's best response by the proxy, at the KL that it costs; the baseline that every run has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.agents.best_of_n import best_of_n_kl

Values = NDArray[np.float64]

MOST_PROMPTS_OF_BEST = 64
"""Most prompts on which best-of-n is measured: its means are then known to an eighth of the scores' standard deviation."""


@dataclass(frozen=True)
class BestOfN:
    """What the best of n responses of the reference is worth.

    Attributes:
        n: responses that the best is chosen from, by the proxy.
        kl: ``log n - (n - 1) / n``, nats (:func:`~rlhf_gym.agents.best_of_n.best_of_n_kl`).
        proxy: mean proxy reward of the chosen one.
        gold: mean gold reward.
        proxy_se: standard error of ``proxy`` over prompts.
        gold_se: of ``gold``.
    """

    n: int
    kl: float
    proxy: float
    gold: float
    proxy_se: float
    gold_se: float

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def best_of_n(proxy: Values, gold: Values) -> list[BestOfN]:
    """Estimate best-of-n for n = 1, 2, 3, 4, 6, 8, 12, ... up to the number of responses to each prompt.

    Of ``N`` responses every choice of ``n`` counts alike (Nakano et al. 2021, appendix I): the ``i``-th worst by the proxy is
    the best of ``C(i - 1, n - 1)`` of the ``C(N, n)`` choices. Responses of equal proxy share their weights.

    Args:
        proxy: float ``[P, N]``, proxy rewards of ``N`` responses to each of ``P`` prompts, all finite.
        gold: float ``[P, N]``, their gold rewards.
    """
    prompts, number = proxy.shape
    sizes = sorted({n for i in range(number.bit_length()) for n in (2**i, 3 * 2**i) if n <= number})
    if prompts == 0 or number == 0:
        return []
    found = []
    for n in sizes:
        weights = np.array([math.comb(i, n - 1) / math.comb(number, n) for i in range(number)])
        chosen = np.array([_expected(p, g, weights) for p, g in zip(proxy, gold, strict=True)])
        errors = chosen.std(0, ddof=1) / math.sqrt(prompts) if prompts > 1 else np.full(2, math.nan)
        means = chosen.mean(0)
        found.append(BestOfN(n, best_of_n_kl(n), float(means[0]), float(means[1]), float(errors[0]), float(errors[1])))
    return found


def _expected(proxy: Values, gold: Values, weights: Values) -> Sequence[float]:
    order = np.argsort(proxy, kind="stable")
    ordered, shares = proxy[order], weights.copy()
    for value in np.unique(ordered):
        tied = ordered == value
        shares[tied] = weights[tied].mean()
    return float(shares @ ordered), float(shares @ gold[order])
