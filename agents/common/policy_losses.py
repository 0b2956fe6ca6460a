"""Policy losses by name, PPO's and others: pure functions on flat ``[N]`` tensors of response tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_gym.agents.common.losses import Clipped, clipped_policy_loss, sequence_clipped_policy_loss

TokenPolicyLoss = Literal["ppo", "ratio", "cispo", "sapo"]
"""Those with one ratio per token, for advantages of any kind."""
PolicyLoss = Literal["ppo", "ratio", "cispo", "sapo", "gspo", "gmpo", "response"]
UNCLIPPED = ("ratio", "sapo")
"""Those that need no clip range."""
DUAL_CLIPPED = ("ppo", "gspo", "response")
"""Those whose ratio a dual clip can bound."""
OF_RESPONSES = ("gspo", "gmpo", "response")
"""Those with one ratio per response: each of its tokens has the loss of the whole response."""


def policy_loss(
    kind: PolicyLoss,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    temperatures: tuple[float, float] = (1.0, 1.05),
) -> Clipped:
    """The policy loss of a name.

    Args:
        kind: ``"ppo"``, ``"gspo"``: see :mod:`~rlhf_gym.agents.common.losses`. ``"response"``: as ``"gspo"``, of the ratio of
            the whole response. ``"cispo"``, ``"sapo"``, ``"gmpo"``: see below. ``"ratio"``: ``-ratio A``, without a clip.
        log_probs: ``[N]``, of the tokens under the policy now, response after response.
        old_log_probs: ``[N]``, under the policy that generated them.
        advantages: ``[N]``.
        lengths: int ``[B]``, tokens of each response; their sum is ``N``.
        clip_low: distance of the lower clip.
        clip_high: distance of the upper clip; None takes ``clip_low``.
        dual_clip: bounds the ratio where the advantage is negative; for those of :data:`DUAL_CLIPPED`.
        temperatures: of ``"sapo"``, for positive advantages and for the others.
    """
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high}
    if kind == "ppo":
        return clipped_policy_loss(log_probs, old_log_probs, advantages, **clips, dual_clip=dual_clip)
    if kind == "cispo":
        return cispo_loss(log_probs, old_log_probs, advantages, **clips)
    if kind == "gmpo":
        return gmpo_loss(log_probs, old_log_probs, advantages, lengths, **clips)
    if kind in ("gspo", "response"):
        return sequence_clipped_policy_loss(
            log_probs, old_log_probs, advantages, lengths, **clips, dual_clip=dual_clip, mean=kind == "gspo"
        )
    if kind == "sapo":
        loss = sapo_loss(log_probs, old_log_probs, advantages, *temperatures)
    else:
        loss = -torch.exp(log_probs - old_log_probs) * advantages
    return Clipped(loss, torch.zeros_like(loss, dtype=torch.bool))


def cispo_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float | None = None
) -> Clipped:
    """CISPO (MiniMax 2025, "MiniMax-M1"): the clipped ratio is a constant weight.

    ``-stop_gradient(clip(ratio, 1 - clip_low, 1 + clip_high)) A log pi(y)``: every token keeps a gradient.

    Args:
        log_probs: ``[N]``, of the tokens under the policy now.
        old_log_probs: ``[N]``, under the policy that generated them.
        advantages: ``[N]``.
        clip_low: the weight is at least ``1 - clip_low``; theirs has no such bound: 1.
        clip_high: the weight is at most ``1 + clip_high``; None takes ``clip_low``.
    """
    ratio = torch.exp(log_probs.detach() - old_log_probs)
    weight = ratio.clamp(1 - clip_low, 1 + (clip_low if clip_high is None else clip_high))
    return Clipped(-weight * advantages * log_probs, weight != ratio)


def sapo_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, positive: float = 1.0, negative: float = 1.05
) -> Tensor:
    """SAPO (Gao et al. 2025, "Soft adaptive policy optimization"): a sigmoid of the ratio in the place of a clip.

    ``-(4 / tau) sigmoid(tau (ratio - 1)) A``. Its gradient is weighed by ``4 p (1 - p)`` with ``p = sigmoid(tau (ratio - 1))``:
    1 where the policy has not moved, and falling on both sides of it.

    Args:
        log_probs: ``[N]``, of the tokens under the policy now.
        old_log_probs: ``[N]``, under the policy that generated them.
        advantages: ``[N]``.
        positive: ``tau`` of tokens with a positive advantage.
        negative: ``tau`` of the others; larger, since these spread probability over many tokens.

    Returns:
        ``[N]``.
    """
    tau = torch.where(advantages > 0, positive, negative)
    ratio = torch.exp(log_probs - old_log_probs)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def gmpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float | None = None,
) -> Clipped:
    """GMPO (Zhao et al. 2025): the geometric mean, over a response, of ratios that are clipped token by token.

    The loss of every token of a response is ``-A exp(mean_t(d_t))``, where ``d = log pi - log pi_old`` is held at ``clip_high``
    from above where the advantage is positive, and at ``-clip_low`` from below where it is negative.

    Args:
        log_probs: ``[N]``, of the tokens under the policy now, response after response.
        old_log_probs: ``[N]``, under the policy that generated them.
        advantages: ``[N]``, the same for all tokens of a response.
        lengths: int ``[B]``, tokens of each response; their sum is ``N``.
        clip_low: in units of the logarithm of the ratio, as ``clip_high``; theirs 0.4.
        clip_high: None takes ``clip_low``; theirs 0.4.
    """
    difference = log_probs - old_log_probs
    upper, lower = difference.clamp(max=clip_low if clip_high is None else clip_high), difference.clamp(min=-clip_low)
    held = torch.where(advantages > 0, upper, torch.where(advantages < 0, lower, difference))
    places = torch.arange(len(lengths), device=log_probs.device)
    response = torch.repeat_interleave(places, lengths, output_size=len(held))
    means = torch.zeros(len(lengths), device=log_probs.device).index_add(0, response, held) / lengths
    return Clipped(-advantages * torch.exp(means)[response], held != difference)
