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


def rao_kupper_loss(chosen: Tensor, rejected: Tensor, tie: Tensor, log_theta: Tensor) -> Tensor:
    """Negative log-likelihood of comparisons with ties under Rao and Kupper (1967).

    Differences below ``ln theta`` are hardly felt: ``P(chosen) = sigmoid(d - ln theta)`` for score differences ``d``.
    What is left of both directions is the tie, ``(theta^2 - 1) sigmoid(d - ln theta) sigmoid(-d - ln theta)``.

    Args:
        chosen: float ``[N]``, scores of the responses that were preferred (in a tie, of either one).
        rejected: float ``[N]``, scores of the others.
        tie: bool ``[N]``.
        log_theta: float scalar above 0.

    Returns:
        float ``[N]``, in nats.
    """
    difference = chosen - rejected
    win = torch.nn.functional.softplus(log_theta - difference)
    lose = torch.nn.functional.softplus(log_theta + difference)
    return torch.where(tie, win + lose - torch.log(torch.expm1(2 * log_theta)), win)


def davidson_loss(chosen: Tensor, rejected: Tensor, tie: Tensor, log_nu: Tensor) -> Tensor:
    """Negative log-likelihood of comparisons with ties under Davidson (1970).

    A tie has ``nu`` times the geometric mean of the two responses' strengths.

    Args:
        chosen: float ``[N]``, scores of the responses that were preferred (in a tie, of either one).
        rejected: float ``[N]``, scores of the others.
        tie: bool ``[N]``.
        log_nu: float scalar.

    Returns:
        float ``[N]``, in nats.
    """
    half = (chosen - rejected) / 2
    ties = log_nu.expand_as(half)
    return torch.logsumexp(torch.stack([half, -half, ties]), dim=0) - torch.where(tie, ties, half)


def plackett_luce_loss(chosen: Tensor, others: Tensor, present: Tensor) -> Tensor:
    """Negative log-likelihood of choices of the best out of several: ``-log softmax`` at the chosen one (Luce 1959).

    A ranking is a chain of such choices, each among the responses that are left (Plackett 1975): give each of its places a row.
    With one other response it is Bradley-Terry.

    Args:
        chosen: float ``[N]``, scores of the chosen responses.
        others: float ``[N, K]``, scores of the responses that each was chosen over.
        present: bool ``[N, K]``, False where a row has fewer than ``K``.

    Returns:
        float ``[N]``, in nats.
    """
    alternatives = others.masked_fill(~present, -torch.inf)
    return torch.logsumexp(torch.cat([chosen[:, None], alternatives], dim=1), dim=1) - chosen


def ordinal_loss(scores: Tensor, levels: Tensor, cuts: Tensor) -> Tensor:
    """Negative log-likelihood of ratings on an ordered scale under the cumulative logit model (McCullagh 1980).

    ``P(level <= k) = sigmoid(cuts[k] - score)``.

    Args:
        scores: float ``[N]``.
        levels: int64 ``[N]``, in ``0 .. L - 1``.
        cuts: float ``[L - 1]``, ascending.

    Returns:
        float ``[N]``, in nats.
    """
    ends = torch.cat([cuts.new_full((1,), -torch.inf), cuts, cuts.new_full((1,), torch.inf)])
    low, high = ends[levels] - scores, ends[levels + 1] - scores
    # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - e^(b - a)), which does not cancel.
    # At the outer levels one end is infinite, and only one term is left; the width of 1 keeps NaN out of their gradients.
    inner = torch.isfinite(low) & torch.isfinite(high)
    width = torch.where(inner, ends[levels + 1] - ends[levels], 1.0)
    between = torch.where(inner, -torch.log(-torch.expm1(-width)), 0.0)
    above = torch.where(torch.isfinite(high), high, 0.0)
    below = torch.where(torch.isfinite(low), low, 0.0)
    softplus = torch.nn.functional.softplus
    return (
        torch.where(torch.isfinite(high), softplus(-above), 0.0)
        + torch.where(torch.isfinite(low), softplus(below), 0.0)
        + between
    )


def squared_error(scores: Tensor, ratings: Tensor) -> Tensor:
    """The squared distance of scores from ratings.

    Args:
        scores: float ``[N]``.
        ratings: float ``[N]``, in the unit that scores are to have.

    Returns:
        float ``[N]``.
    """
    return (scores - ratings) ** 2


def centring_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The squared sum of two scores, which pulls scores to a mean of 0 (Eisenstein et al. 2023): comparisons leave it open.

    Args:
        chosen: float ``[N]``.
        rejected: float ``[N]``.

    Returns:
        float ``[N]``.
    """
    return (chosen + rejected) ** 2
