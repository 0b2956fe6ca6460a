"""Reward-ranked fine-tuning (Dong et al. 2023) and expert iteration: imitate the best of one's own responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
from rlhf_gym.errors import ConfigError

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

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "expert_iteration": {"keep": "all", "min_score": 1.0, "kl_coef": 0.0},
    }

    group_size: int = setting(8, at_least=2)
    keep: Literal["best", "all"] = setting(
        "best",
        "the responses of a group that are imitated: the best one, or all whose score is at least `min_score` (a verifier's, "
        "say)",
        source="best: Dong et al. 2023; all: Singh et al. 2024",
    )
    min_score: float | None = setting(
        None,
        "responses of a lower score, as the environment gives it, are not imitated, the best of a group neither; None "
        "sets no bound, which `keep: all` needs",
    )
    n_epochs: int = setting(2, "passes over an iteration's best responses")
    batch_size: int | None = setting(16)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep == "all" and self.min_score is None:
            raise ConfigError(
                "keep='all' imitates all responses that reach a score: give min_score, e.g. 1 for a verifier that gives 0 or 1"
            )


class RAFT(CriticFree):
    """RAFT: the loss is the cross-entropy of the best of ``group_size`` responses to each prompt, ``-log pi(y_best)``.

    Of several best responses the first counts. With ``keep="all"`` it is expert iteration with a verifier, reinforced
    self-training (Singh et al. 2024, equation 3): ``-1[r(x, y) >= min_score] log pi(y)`` of every response. The preset
    ``expert_iteration`` is that for a verifier that gives 0 or 1. An iteration in which no response passes learns nothing.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's.
        settings: see :class:`RAFTSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = RAFTSettings

    keep: Literal["best", "all"]
    min_score: float | None

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[RAFTKeywords],
        ) -> None: ...

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Choose the responses that are learned from, by default the best of each group; their advantage is 1.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``, ones.
        """
        scores = rewards.sum(1).view(-1, self.group_size)
        best = scores.argmax(1) + torch.arange(len(scores)) * self.group_size
        chosen = torch.arange(len(rewards)) if self.keep == "all" else best
        if self.min_score is not None:  # by the scores alone: a verifier's 1 stays a 1 whatever the KL penalty
            chosen = chosen[self.scores(rollout).sum(1)[chosen] >= self.min_score]
        rollout.learn_from = chosen.tolist()
        self.logger.record("groups/best_score", scores.max(1).values.mean().item())
        self.logger.record("groups/imitated_share", len(chosen) / len(rewards))
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
