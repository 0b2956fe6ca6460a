"""Proximal policy optimisation for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from rlhf_gym.agents.common.advantages import gae, whiten
from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.losses import clipped_value_loss
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import (
    ActorCriticSettings,
    CollectSettings,
    EntropySettings,
    MismatchSettings,
    TokenClipSettings,
    ValueClipSettings,
    ValueLossSettings,
)

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import PPOKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class PPOSettings(
    ActorCriticSettings,
    MismatchSettings,
    TokenClipSettings,
    EntropySettings,
    CollectSettings,
    ValueClipSettings,
    ValueLossSettings,
):
    """The settings of PPO."""

    n_epochs: int = setting(2)
    clip_range: float | Schedule = setting(0.2, "the ratio is clipped at `1 - clip_range`")


class PPO(TokenAlgorithm):
    """PPO with a per-token KL penalty, measured from a frozen reference; a stable-baselines3 algorithm. A timestep is a token.

    Args:
        policy: ``"LMPolicy"``.
        env: a :class:`~rlhf_gym.envs.TokenVecEnv` (fast), or any environment of token observations.
        settings: see :class:`PPOSettings`, and the table in docs/algorithms.md.

    Raises:
        ConfigError: an unknown setting, one out of range, or settings that contradict one another; before any work starts.
    """

    Settings: ClassVar[type[AgentSettings]] = PPOSettings

    clip_range: float | Schedule
    clip_range_vf: float | None
    normalize_advantage: bool
    whiten_rewards: bool

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[PPOKeywords],
        ) -> None: ...

    def prepare(self, rollout: Rollout) -> None:
        """Compute each token's reward, from score and KL penalty, and generalised advantages."""
        mask = rollout.mask
        rewards = self.shaped_rewards(rollout)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        rollout.advantages, rollout.returns = gae(
            rewards, rollout.values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda, bootstrap=rollout.bootstrap
        )
        values, returns = rollout.values[mask].numpy(), rollout.returns[mask].numpy()
        self.logger.record("train/explained_variance", float(explained_variance(values, returns)))
        if self.normalize_advantage:
            rollout.advantages = whiten(rollout.advantages, mask)

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The clipped policy and value losses, and the KL where it is a loss.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: ``[N]``, the value head's, likewise.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens.
        """
        assert values is not None
        policy_loss, clipped = self.ratio_loss(rollout, rows, log_probs)
        value_loss, value_clipped = clipped_value_loss(
            values, self.flat(rollout.values, rows), self.flat(rollout.returns, rows), self.clip_range_vf
        )
        losses = {"policy": policy_loss, "value": value_loss, **self.kl_loss(rollout, rows, log_probs)}
        return losses, {"clipped": clipped.sum(), "value clipped": value_clipped.sum()}

    def coefficient(self, loss: str) -> float:
        """The weight of a loss in the total."""
        return self.vf_coef if loss == "value" else super().coefficient(loss)
