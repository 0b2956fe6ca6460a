"""Reward-ranked fine-tuning, also called expert iteration: imitate the best of one's own responses (Dong et al. 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import refuse_lacking
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.agents.policy_gradient import Terms


class RAFT(CriticFree):
    """Of ``group_size`` responses to each prompt the best is learned by heart: ``-log pi(y_best)``, the mean over its tokens.

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`~rlhf_gym.agents.critic_free.CriticFree`.
        group_size: responses to each prompt, at least 2; of equally good ones the first is taken.
        n_epochs: passes over an iteration's best responses.
        batch_size: whole episodes a minibatch; None is all of them.
        options: the settings of :class:`~rlhf_gym.agents.critic_free.CriticFree`, but those of clips.

    Raises:
        ConfigError: as there; or a group of 1.
    """

    min_group_size = 2
    needs_ratio = False
    lacks: ClassVar[tuple[str, ...]] = ("clip_range", "clip_range_high", "dual_clip", "target_kl", "max_ratio")

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        group_size: int = 8,
        n_epochs: int = 2,
        batch_size: int | None = 16,
        **options: Any,
    ) -> None:
        refuse_lacking(type(self), self.lacks, options)
        setup = options.pop("_init_setup_model", True)
        super().__init__(
            policy, env, group_size=group_size, n_epochs=n_epochs, batch_size=batch_size, max_ratio=1e30,
            _init_setup_model=False, **options,
        )  # fmt: skip
        self.settings = {name: value for name, value in self.settings.items() if name not in self.lacks}
        if setup:
            self._setup_model()

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """1 for the best of each group, which alone is learned from."""
        scores = rewards.sum(1).view(-1, self.group_size)
        best = scores.argmax(1) + torch.arange(len(scores)) * self.group_size
        rollout.learn_from = best.tolist()
        self.logger.record("groups/best_score", scores.max(1).values.mean().item())
        return torch.ones(len(rollout.episodes), 1)

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """Cross-entropy, and the divergence where it is a loss."""
        return {"policy": -log_probs, **self.kl_loss(rollout, rows, log_probs)}, {}
