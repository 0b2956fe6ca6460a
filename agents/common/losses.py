"""Losses per token, and how tokens are weighted: pure functions on flat ``[N]`` tensors of response tokens."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Aggregation = Literal["token", "sequence", "constant"]
PairLoss = Literal["dpo", "ipo"]
AGGREGATIONS: tuple[Aggregation, ...] = ("token", "sequence", "constant")


class Clipped(NamedTuple):
    """A clipped loss.

    Attributes:
        loss: float ``[N]``.
        clipped: bool ``[N]``, True where the clip decided (and so the gradient is 0, or that of the dual clip).
    """

    loss: Tensor
    clipped: Tensor


def clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Clipped:
    """PPO's clipped surrogate (Schulman et al. 2017, equation 7), negated: ``-min(ratio A, clip(ratio) A)``.

    Args:
        log_probs: ``[N]``, of the tokens under the policy now.
        old_log_probs: ``[N]``, under the policy that generated them.
        advantages: ``[N]``.
        clip_low: the ratio is clipped at ``1 - clip_low``.
        clip_high: the ratio is clipped at ``1 + clip_high``; None takes ``clip_low``. Larger than ``clip_low`` is
            "clip-higher" (Yu et al. 2025, DAPO, equation 10; theirs 0.2 and 0.28): unlikely tokens may become likely faster.
        dual_clip: where the advantage is negative, the loss is at most ``-dual_clip * A`` (Ye et al. 2020, equation 3;
            theirs 3): without that, it grows with the ratio without bound. Above 1; None sets no bound.
    """
    return _clipped_surrogate(torch.exp(log_probs - old_log_probs), advantages, clip_low, clip_high, dual_clip)


def sequence_clipped_policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    mean: bool = True,
) -> Clipped:
    """GSPO's surrogate (Zheng et al. 2025, equations 5 and 7): one clipped ratio per response.

    ``s_i = exp(mean_t(log pi - log pi_old))``, the geometric mean of the tokens' ratios; the loss of every token of a response
    is ``-min(s_i A_i, clip(s_i) A_i)``.

    Args:
        log_probs: ``[N]``, of the tokens under the policy now, response after response.
        old_log_probs: ``[N]``, under the policy that generated them.
        advantages: ``[N]``, the same for all tokens of a response.
        lengths: int ``[B]``, tokens of each response; their sum is ``N``.
        clip_low: the ratio is clipped at ``1 - clip_low``; theirs is 3e-4, since ``s`` moves far less than a token's ratio.
        clip_high: the ratio is clipped at ``1 + clip_high``; None takes ``clip_low``; theirs is 4e-4.
        dual_clip: as in :func:`clipped_policy_loss`, of the response's ratio.
        mean: False takes the ratio of the whole response, the product of its tokens' ratios: REINFORCE's importance weight
            where a response is one action (Ahmadian et al. 2024).
    """
    places = torch.arange(len(lengths), device=log_probs.device)
    response = torch.repeat_interleave(places, lengths, output_size=len(log_probs))
    sums = torch.zeros(len(lengths), device=log_probs.device).index_add(0, response, log_probs - old_log_probs)
    ratio = torch.exp(sums / lengths if mean else sums)
    return _clipped_surrogate(ratio[response], advantages, clip_low, clip_high, dual_clip)


def _clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float | None, dual_clip: float | None
) -> Clipped:
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    loss = torch.maximum(free, held)
    clipped = held > free
    if dual_clip is not None:
        bound = -advantages * dual_clip
        over = (advantages < 0) & (loss > bound)
        loss = torch.where(over, bound, loss)
        clipped = clipped | over
    return Clipped(loss, clipped)


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None) -> Clipped:
    """Half the larger of two squared errors: of the value, and of the value clipped to near the rollout's value.

    From OpenAI's PPO: per rollout, a value gains nothing from moving by more than ``clip_range``.

    Args:
        values: ``[N]``, now.
        old_values: ``[N]``, when the rollout was generated.
        returns: ``[N]``, the targets.
        clip_range: distance from the old value, in units of the reward; None does not clip.
    """
    free = (values - returns).square()
    if clip_range is None:
        return Clipped(free / 2, torch.zeros_like(free, dtype=torch.bool))
    # A value that is near is held at itself; the old one plus the difference would be rounded, and count as clipped.
    near = values.clamp(old_values - clip_range, old_values + clip_range)
    held = (near - returns).square()
    return Clipped(torch.maximum(free, held) / 2, held > free)


def token_weights(lengths: Tensor, aggregation: Aggregation = "token", *, constant_length: int | None = None) -> Tensor:
    """The weight of each response's tokens in the minibatch's loss.

    The loss is ``sum_i w_i sum_t loss_it`` with weights from the whole minibatch, so the sum over any micro-batches gives the
    same loss and gradient.

    Args:
        lengths: int ``[B]``, response tokens of each of the minibatch's sequences.
        aggregation: ``"token"``: the mean over all tokens, every token counts the same (TRL's PPO, DAPO). ``"sequence"``:
            the mean of the sequences' means, every response counts the same and a long response's tokens count less (GRPO).
            ``"constant"``: the sum divided by ``B * constant_length`` (Dr. GRPO; Liu et al. 2025), as "token" but with a
            denominator that does not depend on the responses' lengths.
        constant_length: for ``"constant"``: usually the length limit.

    Returns:
        float32 ``[B]``.

    Raises:
        ValueError: no such aggregation, or "constant" without a ``constant_length``.
    """
    n = lengths.shape[0]
    if aggregation == "token":
        return torch.full((n,), 1.0, device=lengths.device) / lengths.sum().clamp(min=1)
    if aggregation == "sequence":
        return 1.0 / (n * lengths.clamp(min=1).float())
    if aggregation == "constant":
        if not constant_length:
            raise ValueError("aggregation 'constant' needs a constant_length")
        return torch.full((n,), 1.0 / (n * constant_length), device=lengths.device)
    raise ValueError(f"unknown aggregation {aggregation!r}; expected one of {', '.join(AGGREGATIONS)}")
