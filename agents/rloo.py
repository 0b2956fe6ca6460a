"""REINFORCE leave-one-out: the baseline is the mean of a response's siblings (Ahmadian et al. 2024)."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import leave_one_out
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.critic_free import CriticFree


class RLOO(CriticFree):
    """RLOO (Kool et al. 2019; Ahmadian et al. 2024, equation 8): the whole response is one action.

    ``-(R_i - mean of the siblings' R) log pi(y_i)``, with the KL penalty of the whole response in ``R``.

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`~rlhf_gym.agents.critic_free.CriticFree`.
        learning_rate: Adam's; a single step an iteration may be larger than PPO's.
        group_size: responses to each prompt, at least 2.
        aggregation: ``"constant"`` is the sum over a response, but for a constant factor: the response's log-probability.
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
        learning_rate: float | Schedule = 3e-4,
        group_size: int = 4,
        aggregation: Aggregation = "constant",
        **options: Any,
    ) -> None:
        super().__init__(
            policy, env, learning_rate=learning_rate, group_size=group_size, aggregation=aggregation, **options
        )

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Relative to the siblings, the same for all tokens of a response."""
        return leave_one_out(rewards.sum(1), self.group_size)[:, None]
