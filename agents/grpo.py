"""Group relative policy optimisation and its descendants: a response is judged by its siblings (Shao et al. 2024)."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.advantages import group_relative
from rlhf_gym.agents.common.kl import Estimator
from rlhf_gym.agents.common.losses import Aggregation, sequence_clipped_policy_loss
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.agents.policy_gradient import Terms
from rlhf_gym.errors import ConfigError


class GRPO(CriticFree):
    """GRPO, with its descendants as switches.

    ============  ======================================================================================================
    GRPO          the defaults: ``A = (r - group mean) / (group std)``, each response counts the same, k3 in the loss
                  (Shao et al. 2024, equations 3 and 4)
    Dr. GRPO      ``scale_rewards="none", aggregation="constant", kl_coef=0`` (Liu et al. 2025): neither the deviation nor the
                  length weighs a response
    DAPO          ``clip_range_high=0.28, aggregation="token", dynamic_sampling=True, max_resamples=..., overlong_buffer=...,
                  kl_coef=0`` (Yu et al. 2025)
    ============  ======================================================================================================

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`~rlhf_gym.agents.critic_free.CriticFree`.
        group_size: responses to each prompt, at least 2.
        scale_rewards: what the difference to the group's mean is divided by: the deviation of the ``"group"``, of the
            ``"batch"``, or ``"none"``.
        dynamic_sampling: do not learn from groups whose scores are all the same: their advantages are 0, but their
            tokens would count in the loss's mean.
        max_resamples: with ``dynamic_sampling``: where fewer than ``n_episodes`` are left to learn from, write as many again,
            and again, at most so many times ("dynamic sampling"); figures are of all that were written. 0 learns from what
            is left. ``groups/refills`` counts them.
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

    min_group_size = 2

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        group_size: int = 8,
        scale_rewards: Literal["group", "batch", "none"] = "group",
        dynamic_sampling: bool = False,
        max_resamples: int = 0,
        n_epochs: int = 2,
        batch_size: int | None = 16,
        clip_range: float | Schedule | None = 0.2,
        aggregation: Aggregation = "sequence",
        kl_coef: float = 0.04,
        kl_in: str = "loss",
        kl_estimator: Estimator | None = None,
        **options: Any,
    ) -> None:
        self.scale_rewards: Literal["group", "batch", "none"] = scale_rewards
        self.dynamic_sampling = dynamic_sampling
        self.max_resamples = max_resamples
        if max_resamples and not dynamic_sampling:
            raise ConfigError(
                f"max_resamples ({max_resamples}) replaces the groups that dynamic_sampling=True leaves out"
            )
        if max_resamples and kl_in == "reward" and kl_coef:
            raise ConfigError(
                f"max_resamples ({max_resamples}) looks for groups of equal scores, and with kl_in='reward' hardly any two are "
                "equal: give kl_in='loss', or kl_coef=0"
            )
        super().__init__(
            policy, env, group_size=group_size, n_epochs=n_epochs, batch_size=batch_size, clip_range=clip_range,
            aggregation=aggregation, kl_coef=kl_coef, kl_in=kl_in,
            kl_estimator=kl_estimator or ("k3" if kl_in == "loss" else "k1"),
            own={"scale_rewards": scale_rewards, "dynamic_sampling": dynamic_sampling, "max_resamples": max_resamples},
            **options,
        )  # fmt: skip

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Collect episodes, and more of them while too few groups differ in their scores."""
        parts: list[Rollout] = []
        seconds: Counter[str] = Counter()
        scoring = 0.0
        try:
            while super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps):
                self._in_parts = True  # a checkpoint from within goes back to the first part's start
                assert self.rollout is not None
                parts.append(self.rollout)
                seconds.update(self._seconds)
                scoring += self._scoring_seconds or 0.0
                if len(parts) > self.max_resamples or self._differing(parts) >= (self.n_episodes or 0):
                    break
            else:
                return False
        finally:
            self._in_parts = False
        if self.max_resamples:
            self.logger.record("groups/refills", len(parts) - 1)
        if len(parts) > 1:
            self.rollout, self._seconds = Rollout.joined(parts), dict(seconds)
            self._scoring_seconds = None if self._scoring_seconds is None else scoring
        return True

    def _differing(self, parts: list[Rollout]) -> int:
        """How many episodes there are to learn from."""
        return sum(int((~self._equal(self.scores(part))).sum()) for part in parts) * self.group_size

    def _equal(self, rewards: Tensor) -> Tensor:
        """Whether a group's scores are all the same, bool ``[groups]``."""
        groups = rewards.sum(1).view(-1, self.group_size)
        return (groups == groups[:, :1]).all(1)

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Relative to the group, the same for all tokens of a response."""
        scores = rewards.sum(1)
        equal = self._equal(rewards)
        self.logger.record("groups/equal_share", equal.float().mean().item())
        if self.dynamic_sampling:
            kept = torch.repeat_interleave(~equal, self.group_size)
            rollout.learn_from = torch.nonzero(kept).flatten().tolist()[: self.n_episodes]
        return group_relative(scores, self.group_size, self.scale_rewards)[:, None]


class GSPO(GRPO):
    """Group sequence policy optimisation (Zheng et al. 2025): GRPO with one ratio a response, and a clip for that.

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`GRPO`.
        learning_rate: Adam's; the narrow clip keeps its steps small.
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
        learning_rate: float | Schedule = 3e-4,
        clip_range: float | Schedule = 3e-4,
        clip_range_high: float | None = 4e-4,
        kl_coef: float = 0.0,
        **options: Any,
    ) -> None:
        if clip_range is None:
            raise ConfigError("GSPO clips the ratio of each response: clip_range must be a number above 0, got None")
        super().__init__(
            policy, env, learning_rate=learning_rate, clip_range=clip_range, clip_range_high=clip_range_high,
            kl_coef=kl_coef, **options,
        )  # fmt: skip

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The clipped loss of whole responses, and the divergence where it is a loss."""
        clip = self.clip_now()
        loss, clipped = sequence_clipped_policy_loss(
            log_probs, self.flat(rollout.log_probs, rows), self.flat(rollout.advantages, rows),
            torch.tensor([rollout.lengths[i] for i in rows], device=self.device), clip_low=clip,
            clip_high=clip if self.clip_range_high is None else self.clip_range_high,
        )  # fmt: skip
        return {"policy": loss, **self.kl_loss(rollout, rows, log_probs)}, {"clipped": clipped.sum()}
