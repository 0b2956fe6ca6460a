"""Advantage actor-critic over tokens (Mnih et al. 2016): PPO's first step, and no other (Huang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import (
    ActorCriticSettings,
    CollectSettings,
    EntropySettings,
    MismatchSettings,
    RatioSettings,
    ValueLossSettings,
)
from rlhf_gym.agents.ppo import PPO

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import A2CKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class A2CSettings(
    ActorCriticSettings, MismatchSettings, RatioSettings, EntropySettings, CollectSettings, ValueLossSettings
):
    """The settings of A2C: those of PPO, without clips and without several passes."""

    learning_rate: float | Schedule = setting(3e-4)
    batch_size: int | None = setting(None)


class A2C(PPO):
    """A2C: one optimizer step per iteration on ``-A_t log pi(y_t)`` and the value's squared error, with PPO's advantages.

    It learns with Adam, as PPO does (stable-baselines3's own A2C takes RMSprop).

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's.
        settings: see :class:`A2CSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = A2CSettings

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[A2CKeywords],
        ) -> None: ...

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The plain policy gradient, the squared error of the value, and the KL where it is a loss.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: ``[N]``, the value head's, likewise.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens (none here).
        """
        assert values is not None
        value_loss, _ = self.value_loss(rollout, rows, values)
        policy_loss = -self.flat(rollout.advantages, rows) * log_probs
        return {"policy": policy_loss, "value": value_loss, **self.kl_loss(rollout, rows, log_probs)}, {}
