"""Losses of reward models on comparisons: pure functions."""

from __future__ import annotations

import torch
from torch import Tensor


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    target: Tensor | None = None,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of comparisons under Bradley and Terry (1952): ``-log sigmoid(chosen - rejected)``.

    Args:
        chosen: float ``[N]``, scores of the responses that were preferred (in a tie, of either one).
        rejected: float ``[N]``, scores of the others.
        target: float ``[N]``, probability that ``chosen`` is preferred: 1 for a plain judgement (the default), 1/2 for a
            tie, which pulls the two scores together.
        margin: float ``[N]``, the distance that the scores should at least have (Touvron et al. 2023, eq. 2); default 0.
        label_smoothing: probability, in [0, 1/2), that a judgement is flipped: the target ``t`` becomes
            ``t (1 - label_smoothing) + (1 - t) label_smoothing``.

    Returns:
        float ``[N]``, in nats.

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))  # ln 2
    tensor([0.6931])
    """
    difference = chosen - rejected
    if margin is not None:
        difference = difference - margin
    target = torch.ones_like(difference) if target is None else target
    target = target * (1 - label_smoothing) + (1 - target) * label_smoothing
    return torch.nn.functional.binary_cross_entropy_with_logits(difference, target, reduction="none")
