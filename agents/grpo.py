"""Group relative policy optimisation and its descendants: a response is judged by its siblings (Shao et al. 2024)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from rlhf_gym.agents.advantages import group_relative
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.agents.kl import Estimator
from rlhf_gym.agents.losses import Aggregation, sequence_clipped_policy_loss
from rlhf_gym.agents.policy_gradient import Terms
from rlhf_gym.agents.rollout import Rollout


class GRPO(CriticFree):
    """GRPO, with its descendants as switches.

    ============  ======================================================================================================
    GRPO          the defaults: ``A = (r - group mean) / (group std)``, each response counts the same, k3 in the loss
                  (Shao et al. 2024, equations 3 and 4)
    Dr. GRPO      ``scale_rewards="none", aggregation="constant", kl_coef=0`` (Liu et al. 2025): neither the deviation nor the
                  length weighs a response
    DAPO          ``clip_range_high=0.28, aggregation="token", drop_equal_groups=True, overlong_buffer=..., kl_coef=0``
                  (Yu et al. 2025). Dropped groups are not drawn again until a batch is full, as theirs are: an iteration
                  learns from what is left.
    ============  ======================================================================================================

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`~rlhf_gym.agents.critic_free.CriticFree`.
        group_size: responses to each prompt, at least 2.
        scale_rewards: what the difference to the group's mean is divided by: the deviation of the ``"group"``, of the
            ``"batch"``, or ``"none"``.
        drop_equal_groups: do not learn from groups whose scores are all the same: their advantages are 0, but their
            tokens would count in the loss's mean.
        n_epochs: passes over an iteration's episodes.
        batch_size: whole episodes a minibatch; None is all of them.
        clip_range: as PPO's.
        aggregation: as PPO's.
        kl_coef: weight of the KL penalty (theirs 0.04).
        kl_in: ``"loss"`` or ``"reward"``; in the reward, it is part of what siblings are compared by.
        kl_estimator: None takes k3 in the loss, as they do, and k1 in the reward.
        options: the settings of :class:`~rlhf_gym.agents.critic_free.CriticFree`.

    Raises:
        ConfigError: as there; or a group of 1.
    """

    smallest_group = 2

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        group_size: int = 8,
        scale_rewards: Literal["group", "batch", "none"] = "group",
        drop_equal_groups: bool = False,
        n_epochs: int = 2,
        batch_size: int | None = 16,
        clip_range: float | None = 0.2,
        aggregation: Aggregation = "sequence",
        kl_coef: float = 0.04,
        kl_in: str = "loss",
        kl_estimator: Estimator | None = None,
        **options: Any,
    ) -> None:
        self.scale_rewards: Literal["group", "batch", "none"] = scale_rewards
        self.drop_equal_groups = drop_equal_groups
        super().__init__(
            policy, env, group_size=group_size, n_epochs=n_epochs, batch_size=batch_size, clip_range=clip_range,
            aggregation=aggregation, kl_coef=kl_coef, kl_in=kl_in,
            kl_estimator=kl_estimator or ("k3" if kl_in == "loss" else "k1"),
            own={"scale_rewards": scale_rewards, "drop_equal_groups": drop_equal_groups}, **options,
        )  # fmt: skip

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Relative to the group, the same for all tokens of a response."""
        scores = rewards.sum(1)
        groups = scores.view(-1, self.group_size)
        equal = (groups == groups[:, :1]).all(1)
        self.logger.record("groups/equal_share", equal.float().mean().item())
        if self.drop_equal_groups:
            kept = torch.repeat_interleave(~equal, self.group_size)
            rollout.learn_from = torch.nonzero(kept).flatten().tolist()
        return group_relative(scores, self.group_size, self.scale_rewards)[:, None]


class GSPO(GRPO):
    """Group sequence policy optimisation (Zheng et al. 2025): GRPO with one ratio a response, and a clip for that.

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`GRPO`.
        clip_range: of the response's ratio, downwards (theirs 3e-4).
        clip_range_high: upwards (theirs 4e-4).
        kl_coef: weight of the KL penalty (theirs 0).
        options: the settings of :class:`GRPO`.
    """

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        clip_range: float = 3e-4,
        clip_range_high: float | None = 4e-4,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(
            policy, env, clip_range=clip_range, clip_range_high=clip_range_high, kl_coef=kl_coef, **options
        )

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The clipped loss of whole responses, and the divergence where it is a loss."""
        assert self.clip_range is not None
        loss, clipped = sequence_clipped_policy_loss(
            log_probs, self.flat(rollout.log_probs, rows), self.flat(rollout.advantages, rows),
            torch.tensor([rollout.lengths[i] for i in rows], device=self.device), clip_low=self.clip_range,
            clip_high=self.clip_range if self.clip_range_high is None else self.clip_range_high,
        )  # fmt: skip
        return {"policy": loss, **self.kl_loss(rollout, rows, log_probs)}, {"clipped": clipped.sum()}
