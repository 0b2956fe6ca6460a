"""An ensemble of linear heads on the features of a frozen trunk: where they disagree, an answer would teach most."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ITERATIONS = 100


def fit_heads(differences: Tensor, tie: Tensor, number: int, *, seed: int = 0) -> Tensor:
    """Fit Bradley-Terry heads to comparisons, each to another weighting of them: the Bayesian bootstrap (Rubin 1981).

    ``min over w of sum_i g_i softplus(-w x_i) + D/2 |w|^2`` with ``g`` from the exponential distribution; a tie counts half for
    either side. On features of standard deviation 1 that penalty expects score differences of about 1.

    Args:
        differences: ``[N, D]``, features of the chosen responses minus those of the rejected, of standard deviation about 1.
        tie: bool ``[N]``.
        number: heads.
        seed: of the weightings.

    Returns:
        float64 ``[number, D]``; a response's score is its features times a row.
    """
    draws = np.random.default_rng(seed).exponential(size=(number, len(differences)))
    return _fitted(differences, tie, torch.from_numpy(draws))


def fit_head(differences: Tensor, tie: Tensor) -> Tensor:
    """Fit one Bradley-Terry head to comparisons, all of which count once; see :func:`fit_heads`.

    Args:
        differences: ``[N, D]``, features of the chosen responses minus those of the rejected.
        tie: bool ``[N]``.

    Returns:
        float64 ``[D]``.
    """
    return _fitted(differences, tie, torch.ones(1, len(differences), dtype=torch.float64))[0]


def _fitted(differences: Tensor, tie: Tensor, weight: Tensor) -> Tensor:
    """Heads ``[E, D]`` for weightings ``[E, N]`` of the comparisons."""
    x, either = differences.double(), tie.double() / 2
    heads = torch.zeros(len(weight), x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([heads], max_iter=_ITERATIONS, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        gap = heads @ x.T
        nats = (1 - either) * torch.nn.functional.softplus(-gap) + either * torch.nn.functional.softplus(gap)
        loss = (weight * nats).sum() + x.shape[1] / 2 * (heads**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return heads.detach()


def pair_probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(a is preferred to b) by each member, of every two responses to a query.

    Args:
        scores: ``[E, Q, k]``, scores of ``k`` responses to each of ``Q`` queries by ``E`` members.

    Returns:
        float64 ``[E, Q, k (k - 1) / 2]``.
    """
    first, second = np.triu_indices(scores.shape[-1], 1)
    return np.asarray(0.5 * (1 + np.tanh((scores[..., first] - scores[..., second]) / 2)))
