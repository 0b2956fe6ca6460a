"""Reward-ranked fine-tuning, also called expert iteration: imitate the best of one's own responses (Dong et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import (
    CollectSettings,
    EntropySettings,
    EpochSettings,
    GroupSettings,
    KLSettings,
    LossSettings,
    OverlongSettings,
    RolloutSettings,
)
from rlhf_gym.agents.critic_free import CriticFree

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import RAFTKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class RAFTSettings(
    RolloutSettings,
    CollectSettings,
    KLSettings,
    LossSettings,
    EntropySettings,
    EpochSettings,
    OverlongSettings,
    GroupSettings,
):
    """The settings of RAFT."""

    group_size: int = setting(8, at_least=2)
    n_epochs: int = setting(2, "passes over an iteration's best responses")
    batch_size: int | None = setting(16)


class RAFT(CriticFree):
    """RAFT: the loss is the cross-entropy of the best of ``group_size`` responses to each prompt, ``-log pi(y_best)``.

    Of several best responses the first counts.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's.
        settings: see :class:`RAFTSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = RAFTSettings

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[RAFTKeywords],
        ) -> None: ...

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Choose the best response of each group, the only one that is learned from; its advantage is 1.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``, ones.
        """
        scores = rewards.sum(1).view(-1, self.group_size)
        best = scores.argmax(1) + torch.arange(len(scores)) * self.group_size
        rollout.learn_from = best.tolist()
        self.logger.record("groups/best_score", scores.max(1).values.mean().item())
        return torch.ones(len(rollout.episodes), 1)

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """Cross-entropy, and the KL where it is a loss.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: None: there is no value head.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens (none here).
        """
        return {"policy": -log_probs, **self.kl_loss(rollout, rows, log_probs)}, {}
