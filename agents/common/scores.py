"""Scores as they are learned from: clipped, and with what a response pays that the length limit cut."""

from __future__ import annotations

from torch import Tensor, zeros_like

from rlhf_gym.agents.common.rollout import Rollout


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


def overlong_penalty(lengths: Tensor, limit: int, buffer: int) -> Tensor:
    """DAPO's soft punishment of long responses (Yu et al. 2025, equation 13), to be added to the scores.

    0 up to ``limit - buffer`` tokens, then falling linearly to -1 at ``limit``.

    Args:
        lengths: int ``[B]``, response tokens.
        limit: the length limit, in tokens.
        buffer: tokens before the limit in which length is charged for; 1 to ``limit``.

    Returns:
        float32 ``[B]``, in [-1, 0].
    """
    return ((limit - buffer - lengths).float() / buffer).clamp(-1.0, 0.0)
