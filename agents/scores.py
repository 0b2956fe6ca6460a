"""Scores as they are learned from: clipped, and with what a response pays that the length limit cut."""

from __future__ import annotations

from torch import Tensor, zeros_like

from rlhf_gym.agents.rollout import Rollout


def shape_scores(
    rollout: Rollout, *, clip: float | None = None, missing_eos_penalty: float | None = None,
    missing_eos_score: float | None = None,
) -> Tensor:  # fmt: skip
    """The environment's rewards, token by token, with what is asked for added on each response's last token.

    Args:
        rollout: the episodes; rewards paid on the way (not only at the end) stay where they are.
        clip: the sum over a response is clipped to plus or minus this.
        missing_eos_penalty: taken off a response that neither EOS nor a stop sequence ended, after clipping.
        missing_eos_score: what such a response gets instead of everything that the environment paid.

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
            rewards[row] = zeros_like(rewards[row])
            rewards[row, last] = missing_eos_score
    return rewards
