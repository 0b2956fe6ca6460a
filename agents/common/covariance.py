"""Clip-Cov and KL-Cov: the few tokens that take the entropy away, found by a covariance (Cui et al. 2025)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

CovarianceControl = Literal["clip", "kl"]


def covariances(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """Each token's part in the covariance of log-probability and advantage (Cui et al. 2025, "The entropy mechanism of RL").

    ``(log pi(y_t) - mean)(A_t - mean)``, with the means over all tokens: a policy gradient step lowers the entropy by about its
    mean, so tokens in which it is large lower it most.

    Args:
        log_probs: ``[N]``, of the tokens under the policy that generated them.
        advantages: ``[N]``.

    Returns:
        ``[N]``.
    """
    return (log_probs - log_probs.mean()) * (advantages - advantages.mean())


def tokens_to_clip(covariance: Tensor, share: float, low: float, high: float, rng: np.random.Generator) -> Tensor:
    """Clip-Cov's tokens, which lose their gradient: some, at random, of those whose covariance lies within bounds.

    Args:
        covariance: ``[N]``.
        share: of all tokens, in (0, 1]; at least one token, if there is one within the bounds.
        low: the covariance must be above this; theirs 1.
        high: and below this; theirs 5.
        rng: draws them.

    Returns:
        bool ``[N]``.
    """
    within = torch.nonzero((covariance > low) & (covariance < high)).flatten()
    drawn = within[torch.from_numpy(rng.permutation(len(within)))][: max(1, int(share * len(covariance)))]
    return torch.zeros_like(covariance, dtype=torch.bool).index_fill(0, drawn, True)


def tokens_to_hold(covariance: Tensor, share: float) -> Tensor:
    """KL-Cov's tokens, which are held near the old policy: those with the largest covariance.

    Args:
        covariance: ``[N]``.
        share: of all tokens, in (0, 1]; at least one token.

    Returns:
        bool ``[N]``.
    """
    top = covariance.topk(min(len(covariance), max(1, int(share * len(covariance))))).indices
    return torch.zeros_like(covariance, dtype=torch.bool).index_fill(0, top, True)
