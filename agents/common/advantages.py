"""Shaped rewards, and advantages from rewards and values: pure functions on right-padded ``[B, R]`` tensors and their masks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf_gym.agents.common.rollout import Rollout


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    gae_lambda: float | Tensor = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equations 11 to 16), one response a row.

    ``delta_t = r_t + gamma V_{t+1} - V_t`` and ``A_t = delta_t + gamma lambda A_{t+1}``. The value after the last token is 0:
    EOS, a stop sequence and a length limit that the reward scores all *end* the episode.

    Args:
        rewards: float ``[B, R]``, the reward of each token.
        values: float ``[B, R]``, the value before each token.
        mask: bool ``[B, R]``, True at the response's tokens, which stand at the front of their row.
        gamma: discount in [0, 1]; 1 for responses, whose end alone is scored.
        gae_lambda: in [0, 1]; 0 is one-step temporal difference, 1 is Monte Carlo. A tensor ``[B]`` has one for each response.
        bootstrap: float ``[B]``, the value after the last token of episodes cut by an unscored time limit, else 0.

    Returns:
        ``(advantages, returns)``, float ``[B, R]`` each, 0 where the mask is False; ``returns = advantages + values`` are
        the value function's targets.
    """
    width = rewards.shape[1]
    rewards, values = rewards * mask, values * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if bootstrap is not None:
        last = mask.sum(1, keepdim=True) - 1
        following = following.scatter(1, last.clamp(min=0), bootstrap.to(values)[:, None])
    deltas = (rewards + gamma * following - values) * mask
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(width - 1, -1, -1):  # padding has delta 0, so nothing runs from it into the response
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def length_adaptive_lambda(lengths: Tensor, alpha: float) -> Tensor:
    """``1 - 1 / (alpha l)``: a lambda for each response, nearer to 1 the longer it is (Yue et al. 2025, VAPO).

    The weights ``lambda^k`` of a response's errors then add up to about ``alpha l``, the same share of every response.

    Args:
        lengths: int ``[B]``, response tokens.
        alpha: that share.

    Returns:
        float32 ``[B]``, in [0, 1): 0 for responses of at most ``1 / alpha`` tokens.
    """
    return (1 - 1 / (alpha * lengths)).clamp(min=0.0)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale to standard deviation 1 over the valid tokens, and shift to mean 0 or keep the mean.

    The moments are taken over all valid tokens of the rollout, not of a minibatch, so a token's weight does not depend on
    the minibatch that it falls into. Rewards are whitened with ``shift_mean=False`` (Ziegler et al. 2019): shifting them
    would add a constant per token, and so reward or punish length.

    Args:
        values: float ``[B, R]``.
        mask: bool ``[B, R]``, True at valid tokens.
        shift_mean: False adds the mean back.
        epsilon: added to the variance (with Bessel's correction).

    Returns:
        float ``[B, R]``, 0 where the mask is False. A single valid token has no standard deviation: it is only shifted.
    """
    valid = values[mask].double()  # constant values must come out as 0, not as amplified rounding
    if valid.numel() == 0:
        return torch.zeros_like(values)
    mean = valid.mean()
    std = (valid.var() + epsilon).sqrt() if valid.numel() > 1 else torch.ones_like(mean)
    whitened = (valid - mean) / std + (0.0 if shift_mean else mean)
    return torch.zeros_like(values).masked_scatter(mask, whitened.to(values.dtype))


def returns_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """``G_t = r_t + gamma G_{t+1}``, the discounted sum of the rewards from each token on.

    Args:
        rewards: float ``[B, R]``.
        mask: bool ``[B, R]``, True at the response's tokens, which stand at the front of their row.
        gamma: discount in [0, 1].

    Returns:
        float ``[B, R]``, 0 where the mask is False.
    """
    zeros = torch.zeros_like(rewards)
    returns, _ = gae(rewards, zeros, mask, gamma=gamma, gae_lambda=1.0)
    return returns * mask


def group_relative(
    scores: Tensor,
    group_size: int,
    scale: Literal["group", "batch", "none"] = "group",
    *,
    epsilon: float = 1e-4,
    lengths: Tensor | None = None,
) -> Tensor:
    """Scores relative to their group: ``(r_i - mean) / (std + epsilon)`` (Shao et al. 2024, GRPO, section 4.1.2).

    Args:
        scores: float ``[B]``, groups of ``group_size`` responses to the same prompt.
        group_size: at least 2, divides ``B``.
        scale: the standard deviation divided by, with Bessel's correction: the group's own; that of all scores of the batch; or
            none (Dr. GRPO, Liu et al. 2025: dividing by the group's own makes prompts count more that are nearly
            always, or nearly never, answered well).
        epsilon: added to the standard deviation.
        lengths: int ``[B]``, response tokens: the mean is weighed by them, ``sum_i l_i r_i / sum_i l_i``. That baseline gives
            the gradient the least variance, if a response's squared gradient grows with its length (Hao et al. 2025, OPO).
            None weighs all responses alike.

    Returns:
        float ``[B]``; exactly 0 in a group whose scores are all the same.
    """
    groups = scores.view(-1, group_size)
    if lengths is None:
        centred = groups - groups.mean(1, keepdim=True)
    else:
        weights = lengths.view(-1, group_size) / lengths.view(-1, group_size).sum(1, keepdim=True)
        centred = groups - (weights * groups).sum(1, keepdim=True)
    # Rounding of the mean must not become an advantage when divided by a standard deviation of rounding.
    centred = torch.where((groups == groups[:, :1]).all(1, keepdim=True), 0.0, centred)
    if scale == "group":
        centred = centred / (groups.std(1, keepdim=True) + epsilon)
    elif scale == "batch":
        centred = centred / (scores.std() + epsilon)
    return centred.flatten()


def equal_groups(rewards: Tensor, group_size: int) -> Tensor:
    """True for groups whose responses all have the same sum of rewards.

    Sums of rewards for single tokens that are equal on paper differ by rounding, so differences within its bound count as none:
    ``n eps sum |r|`` for ``n > 1`` rewards (Higham 2002, section 4.2). A single reward is compared exactly.

    Args:
        rewards: float32 ``[B, R]``, 0 at padding; groups of ``group_size`` responses to the same prompt.
        group_size: at least 2, divides ``B``.

    Returns:
        bool ``[B / group_size]``.
    """
    sums, sizes, numbers = (t.sum(1).view(-1, group_size) for t in (rewards, rewards.abs(), (rewards != 0).float()))
    terms = numbers.amax(1, keepdim=True)
    bound = torch.finfo(rewards.dtype).eps * torch.where(terms > 1, terms, 0) * sizes.amax(1, keepdim=True)
    return ((sums - sums[:, :1]).abs() <= bound).all(1)


def leave_one_out(scores: Tensor, group_size: int) -> Tensor:
    """``r_i`` minus the mean of the *other* scores of its group (Kool et al. 2019; Ahmadian et al. 2024, RLOO, equation 8).

    The baseline does not depend on ``y_i``, so the gradient is unbiased.

    Args:
        scores: float ``[B]``, groups of ``group_size`` responses to the same prompt.
        group_size: at least 2, divides ``B``.

    Returns:
        float ``[B]``.
    """
    groups = scores.view(-1, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def shape_scores(
    rollout: Rollout, *, clip: float | None = None, missing_eos_penalty: float | None = None,
    missing_eos_score: float | None = None,
) -> Tensor:  # fmt: skip
    """The environment's rewards, token by token; the changes that the settings make are on each response's last token.

    Args:
        rollout: the episodes; rewards of other tokens than the last stay where they are.
        clip: the sum over a response is clipped to plus or minus this.
        missing_eos_penalty: subtracted, after clipping, where neither EOS nor a stop sequence ended the response.
        missing_eos_score: replaces all rewards of such a response.

    Returns:
        float32 ``[B, R]``, 0 at padding.
    """
    rewards = rollout.rewards.clone()
    for row, episode in enumerate(rollout.episodes):
        last = len(episode.response_ids) - 1
        if clip is not None:
            rewards[row, last] += min(max(episode.score, -clip), clip) - episode.score
        if not episode.ended and missing_eos_penalty is not None:
            rewards[row, last] -= missing_eos_penalty
        if not episode.ended and missing_eos_score is not None:
            rewards[row] = 0.0
            rewards[row, last] = missing_eos_score
    return rewards


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """DAPO's soft penalty for long responses (Yu et al. 2025, equation 13), to be added to the scores.

    0 up to ``limit - buffer`` tokens, then falling linearly to -1 at ``limit``.

    Args:
        lengths: int ``[B]``, response tokens.
        limit: the length limit, in tokens.
        buffer: tokens before the limit in which length costs; 1 to ``limit``.

    Returns:
        float32 ``[B]``, in [-1, 0].
    """
    return ((limit - buffer - lengths).float() / buffer).clamp(-1.0, 0.0)
