"""REINFORCE with baselines, and REINFORCE++ (Williams 1992; Hu 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import returns_to_go, whiten
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import CriticFreeSettings, DiscountSettings
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.agents.running_baseline import RunningBaseline

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import REINFORCEKeywords, ReinforcePlusPlusKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class REINFORCESettings(DiscountSettings, CriticFreeSettings):
    """The settings of REINFORCE."""

    learning_rate: float | Schedule = setting(
        3e-4, "Adam's learning rate; the one step per iteration may be larger than PPO's steps"
    )
    baseline: Literal["none", "running", "batch"] = setting(
        "batch",
        "subtracted from the rewards: running is a moving average over the iterations before; batch is the mean reward of the "
        "iteration's other responses; none subtracts nothing",
    )
    baseline_decay: float = setting(
        0.9, "with `baseline: running`: the weight, per iteration, of the average so far", at_least=0, at_most=1
    )
    aggregation: Aggregation = setting("constant")  # REINFORCE's own sum over each response, up to a constant factor


class REINFORCE(RunningBaseline):
    """The plain policy gradient: ``-(G_t - b) log pi(y_t)``, ``G_t`` being the discounted sum of rewards from token ``t`` on.

    By default it takes one optimizer step per iteration: for a second one, the samples would be those of an older policy.

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's.
        settings: see :class:`REINFORCESettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = REINFORCESettings

    baseline: Literal["none", "running", "batch"]

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[REINFORCEKeywords],
        ) -> None: ...

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Sum the discounted rewards from each token on, and subtract the baseline.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, R]``; values at padding do not count.
        """
        returns = returns_to_go(rewards, rollout.mask, gamma=self.discount(rollout, self.gamma))
        totals = returns[:, 0]
        n = len(totals)
        if self.baseline == "running":
            return returns - (self.running_baseline(totals) or 0.0)
        if self.baseline == "batch" and n > 1:
            return returns - ((totals.sum() - totals) / (n - 1))[:, None]
        return returns


@dataclass(frozen=True, kw_only=True)
class ReinforcePlusPlusSettings(DiscountSettings, CriticFreeSettings):
    """The settings of REINFORCE++."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "baseline": {"group_size": 4, "kl_in": "loss", "kl_estimator": "k2"},
    }

    n_epochs: int = setting(2)
    batch_size: int | None = setting(16)
    clip_range: float | Schedule | None = setting(0.2)


class ReinforcePlusPlus(CriticFree):
    """REINFORCE++ (Hu 2025): token-level KL in the reward, returns whitened over the whole batch, PPO's clip.

    With ``group_size`` above 1, the group's mean reward is first subtracted from each response's last reward. The preset
    ``baseline`` is the paper's REINFORCE++-baseline: that, and the KL as k2 in the loss.

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's; with groups as GRPO's.
        settings: see :class:`ReinforcePlusPlusSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = ReinforcePlusPlusSettings

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[ReinforcePlusPlusKeywords],
        ) -> None: ...

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Sum the discounted rewards from each token on, and whiten the sums over all tokens.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, R]``, 0 at padding.
        """
        if self.group_size > 1:
            groups = rewards.sum(1).view(-1, self.group_size)
            means = groups.mean(1, keepdim=True).expand_as(groups).flatten()
            rewards = rewards.clone()
            for row, length in enumerate(rollout.lengths):
                rewards[row, length - 1] -= means[row]
        return whiten(returns_to_go(rewards, rollout.mask, gamma=self.discount(rollout, self.gamma)), rollout.mask)
