"""REINFORCE leave-one-out: the baseline is the mean of the other responses to the same prompt (Ahmadian et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import leave_one_out
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import CriticFreeSettings
from rlhf_gym.agents.running_baseline import RunningBaseline

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import RLOOKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class RLOOSettings(CriticFreeSettings):
    """The settings of RLOO."""

    learning_rate: float | Schedule = setting(
        3e-4, "Adam's learning rate; the one step per iteration may be larger than PPO's steps"
    )
    group_size: int = setting(4, at_least=2)
    running_share: float = setting(
        0.0,
        "share of the baseline that is a running mean of the rewards of the iterations before, which varies less than the mean "
        "of a few other responses; the rest is that mean",
        at_least=0, at_most=1,
    )  # fmt: skip
    baseline_decay: float = setting(
        0.9, "with `running_share`: the weight, per iteration, of the average so far", at_least=0, at_most=1
    )
    aggregation: Aggregation = setting("constant")  # the paper's log pi(y) of each response, up to a constant factor


class RLOO(RunningBaseline):
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024, equation 8): the whole response is one action.

    ``-(R_i - b_i) log pi(y_i)``, with ``b_i`` the mean of the group's other ``R``, and the KL penalty of the whole response in
    ``R``. With ``running_share`` ``w``, ``b_i = (1 - w) mean of the others + w m`` for the mean ``m`` of earlier iterations; in
    the first one there is none, and ``w`` counts as 0. Neither part depends on ``y_i``, so the gradient is unbiased.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's.
        settings: see :class:`RLOOSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = RLOOSettings

    running_share: float

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[RLOOKeywords],
        ) -> None: ...

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Compare each response's reward with the mean of the others in its group; all its tokens get the same advantage.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``.
        """
        totals = rewards.sum(1)
        relative = leave_one_out(totals, self.group_size)
        if self.running_share and (mean := self.running_baseline(totals)) is not None:
            relative = (1 - self.running_share) * relative + self.running_share * (totals - mean)
        return relative[:, None]
