"""Credit in conversations: discounts that act between turns, and rewards of turns compared within a group."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf_gym.agents.common.rollout import Rollout


def turn_numbers(rollout: Rollout) -> Tensor:
    """int64 ``[B, R]``: the turn, from 0, that each of the policy's tokens is in; 0 at padding."""
    out = torch.zeros(rollout.mask.shape, dtype=torch.long)
    for row, episode in enumerate(rollout.episodes):
        begin = 0
        for number, turn in enumerate(episode.turns):
            out[row, begin : begin + turn.length] = number
            begin += turn.length
    return out


def turn_ends(rollout: Rollout) -> Tensor:
    """bool ``[B, R]``: True at the last token of each turn of the policy."""
    numbers, mask = turn_numbers(rollout), rollout.mask
    following = torch.cat([numbers[:, 1:], numbers[:, :1] - 1], dim=1)
    after = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ((following != numbers) | ~after)


def per_turn(rollout: Rollout, factor: float) -> Tensor:
    """A discount that acts once a turn: float32 ``[B, R]``, the factor after the last token of each turn and 1 inside turns.

    With it as ``gamma`` and ``gae_lambda``, generalised advantage estimation discounts turns as it does single actions,
    and inside a turn a token's advantage is that of what follows, with the value before it as its baseline.

    Args:
        rollout: the episodes.
        factor: in [0, 1].
    """
    return torch.where(turn_ends(rollout), factor, 1.0)


def turn_rewards(rollout: Rollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
    """The rewards of whole turns.

    Args:
        rollout: the episodes, ``K`` turns at most in one.
        rewards: float32 ``[B, R]``, 0 at padding.

    Returns:
        float32 ``[B, K]``, and bool ``[B, K]``, True at turns that there are.
    """
    numbers, ends = turn_numbers(rollout), turn_ends(rollout)
    most = int(numbers.max()) + 1
    sums = torch.zeros(len(rewards), most).scatter_add(1, numbers, rewards * rollout.mask)
    counts = ends.sum(1, keepdim=True)
    return sums, torch.arange(most) < counts


def group_relative_turns(
    rollout: Rollout,
    rewards: Tensor,
    group_size: int,
    scale: Literal["group", "batch", "none"],
    *,
    epsilon: float = 1e-4,
) -> Tensor:
    """Process rewards compared within a group (Shao et al. 2024, section 4.1.3).

    Each turn's reward becomes ``(r - mean) / (std + epsilon)`` over all turns of all conversations of its group; the
    advantage of a turn's tokens is the sum of these from that turn on.

    Args:
        rollout: the episodes, group after group.
        rewards: float32 ``[B, R]``, 0 at padding.
        group_size: conversations in a group, divides ``B``.
        scale: the standard deviation divided by (Bessel's correction): that of the group's turns, of all turns, or none.
        epsilon: added to the standard deviation.

    Returns:
        float32 ``[B, R]``; exactly 0 in a group whose turns all have the same reward.
    """
    sums, there = turn_rewards(rollout, rewards)
    relative = torch.zeros_like(sums)
    overall = sums[there].std() if int(there.sum()) > 1 else torch.tensor(0.0)
    for first in range(0, len(sums), group_size):
        rows = slice(first, first + group_size)
        values = sums[rows][there[rows]]
        centred = values - values.mean()
        if bool((values == values[0]).all()):  # rounding of the mean must not become an advantage
            centred = torch.zeros_like(values)
        elif scale != "none":
            centred = centred / ((values.std() if scale == "group" else overall) + epsilon)
        relative[rows] = relative[rows].masked_scatter(there[rows], centred)
    to_go = relative.flip(1).cumsum(1).flip(1)
    return to_go.gather(1, turn_numbers(rollout)) * rollout.mask
