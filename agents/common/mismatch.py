"""The mismatch between the distribution that responses were drawn from and the one that learns from them.

In float32 the two differ by rounding. With products in bfloat16, or another engine for generation, they differ by a percent a
token, which adds up over a response; importance weights correct for it (Yao et al. 2025, "Your efficient RL framework secretly
brings you off-policy RL training").
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def importance_weights(
    learner: Tensor, sampler: Tensor, mask: Tensor, correction: Correction | None, cap: float
) -> Tensor:
    """The weight of each token's policy loss: ``pi_learner / pi_sampler``, of the token or of its whole response.

    Args:
        learner: ``[B, R]``, log-probabilities under the pass that learns, before its first step.
        sampler: ``[B, R]``, those that the tokens were drawn with.
        mask: bool ``[B, R]``, True at response tokens.
        correction: truncate takes ``min(ratio, cap)``, mask takes 0 above ``cap``; None gives ones.
        cap: the largest weight.

    Returns:
        float32 ``[B, R]``.
    """
    if correction is None:
        return torch.ones_like(learner)
    difference = (learner - sampler) * mask
    if correction.startswith("sequence"):
        difference = difference.sum(1, keepdim=True).expand_as(difference)
    ratio = difference.exp()
    # Where, not a product: the ratio may be infinite.
    return ratio.clamp(max=cap) if correction.endswith("truncate") else torch.where(ratio <= cap, ratio, 0.0)


def mismatch_metrics(difference: float, ratio: float, squared_ratio: float) -> dict[str, float]:
    """The metrics of a mismatch from three means over tokens.

    Args:
        difference: mean absolute difference of the log-probabilities, in nats.
        ratio: mean of the ratio ``pi_learner / pi_sampler``.
        squared_ratio: mean of its square.

    Returns:
        ``mismatch/...``; the effective sample size is a share of the tokens: ``mean(ratio)^2 / mean(ratio^2)``.
    """
    return {
        "mismatch/log_prob_difference": difference,
        "mismatch/ratio": ratio,
        "mismatch/effective_sample_size": ratio**2 / squared_ratio,
    }
