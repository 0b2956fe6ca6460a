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
from rlhf_gym.agents.critic_free import CriticFree

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
    aggregation: Aggregation = setting("constant")  # the paper's log pi(y) of each response, up to a constant factor


class RLOO(CriticFree):
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024, equation 8): the whole response is one action.

    ``-(R_i - mean of the group's other R) log pi(y_i)``, with the KL penalty of the whole response in ``R``.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's.
        settings: see :class:`RLOOSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = RLOOSettings

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
        return leave_one_out(rewards.sum(1), self.group_size)[:, None]
