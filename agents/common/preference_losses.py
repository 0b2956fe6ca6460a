"""Losses of preferences between whole responses: pure functions on ``[P]`` tensors, one number for each pair or response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_gym.agents.common.losses import PairLoss

PreferenceLoss = Literal["dpo", "ipo", "kto", "orpo", "simpo"]
"""The losses that learn from stored preferences."""


def preference_loss(margins: Tensor, beta: float, loss: PairLoss = "dpo", *, label_smoothing: float = 0.0) -> Tensor:
    """The loss of each pair.

    ``"dpo"``: ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)`` (Rafailov et al. 2023, equation 7, with labels
    smoothed by ``e``). ``"ipo"``: ``(h - 1 / (2 beta))^2`` (Azar et al. 2023, equation 17), which stops pulling once the
    margin is reached.

    Args:
        margins: ``[P]``, ``h = log(pi/ref)(chosen) - log(pi/ref)(rejected)``, of whole responses.
        beta: strength of the pull to the reference.
        loss: ``"dpo"`` or ``"ipo"``.
        label_smoothing: chance, in [0, 1/2), that a pair is the wrong way round; for ``"dpo"``.

    Returns:
        ``[P]``.
    """
    if loss == "ipo":
        return (margins - 1 / (2 * beta)).square()
    logits = beta * margins
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    reference_point: Tensor,
    beta: float,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """The loss of each response by itself, which needs no pairs (Ethayarajh et al. 2024, equation 8).

    ``lambda_D (1 - sigmoid(beta (r - z)))`` of a desirable response and ``lambda_U (1 - sigmoid(beta (z - r)))`` of an
    undesirable one: the paper's ``lambda_y - v``. No gradient goes through ``z``.

    Args:
        log_ratios: ``[P]``, ``r = log(pi/ref)``, of whole responses.
        desirable: bool ``[P]``.
        reference_point: scalar, ``z``: the KL of the policy from the reference, as :func:`kto_reference_point` estimates it.
        beta: strength of the pull to the reference.
        desirable_weight: ``lambda_D``.
        undesirable_weight: ``lambda_U``.

    Returns:
        ``[P]``.
    """
    above = beta * (log_ratios - reference_point.detach())
    weights = torch.where(desirable, desirable_weight, undesirable_weight)
    return weights * torch.sigmoid(torch.where(desirable, -above, above))


def kto_reference_point(mismatched: Tensor) -> Tensor:
    """The KL of the policy from the reference over other prompts' responses, at least 0 (Ethayarajh et al. 2024, section 4.1).

    Args:
        mismatched: ``[M]``, ``log(pi/ref)`` of responses to prompts that they do not answer.

    Returns:
        A scalar without a gradient.
    """
    return mismatched.detach().mean().clamp(min=0)


def orpo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """The cross-entropy of the chosen response, and its odds against the rejected one's (Hong et al. 2024, equations 6 and 7).

    ``-m_c - beta log sigmoid(log odds(chosen) - log odds(rejected))``, where ``m`` is the mean log-probability of a response's
    tokens, ``P = exp(m)`` and ``odds = P / (1 - P)``. There is no reference.

    Args:
        chosen: ``[P]``, mean log-probabilities of the chosen responses' tokens, at most 0.
        rejected: ``[P]``, of the rejected ones'.
        beta: weight of the odds (the paper's lambda).

    Returns:
        ``[P]``.
    """
    return -chosen - beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def simpo_loss(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """``-log sigmoid(beta (m_c - m_r) - gamma)`` of mean log-probabilities, without a reference (Meng et al. 2024, equation 6).

    Args:
        chosen: ``[P]``, ``m_c``, mean log-probabilities of the chosen responses' tokens.
        rejected: ``[P]``, ``m_r``, of the rejected ones'.
        beta: scale of the margin.
        gamma: the margin to reach, at least 0.

    Returns:
        ``[P]``.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def response_sums(tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """The sum over each response's tokens.

    Args:
        tokens: ``[N]``, response after response.
        lengths: tokens of each of ``B`` responses; their sum is ``N``.

    Returns:
        ``[B]``.
    """
    return torch.stack([part.sum() for part in torch.split(tokens, list(lengths))])


def _log_odds(mean_log_probs: Tensor) -> Tensor:
    """``m - log(1 - exp(m))``. A response of probability 1 would have infinite odds: the last bit of float32 stands for it."""
    m = mean_log_probs.clamp(max=-torch.finfo(mean_log_probs.dtype).eps)
    return m - torch.log(-torch.expm1(m))
