"""Advantage actor-critic over tokens (Mnih et al. 2016): PPO's first step, and no other (Huang et al. 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.losses import clipped_value_loss
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import refuse_lacking
from rlhf_gym.agents.policy_gradient import Terms
from rlhf_gym.agents.ppo import PPO


class A2C(PPO):
    """One optimizer step an iteration on ``-A_t log pi(y_t)`` and the value's squared error, with generalised advantages.

    As PPO, it learns with Adam (stable-baselines3's own A2C takes RMSprop).

    Args:
        policy: ``"LMPolicy"``.
        env: see :class:`~rlhf_gym.agents.ppo.PPO`.
        learning_rate: Adam's; a single step an iteration may be larger than PPO's.
        batch_size: whole episodes a minibatch; None, the default, is all of them: one step an iteration.
        options: PPO's settings, but those of a clip and of several passes.

    Raises:
        ConfigError: as PPO; or a setting that A2C does not have.
    """

    lacks: ClassVar[tuple[str, ...]] = (
        "n_epochs", "clip_range", "clip_range_high", "clip_range_vf", "dual_clip", "target_kl"
    )  # fmt: skip

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        learning_rate: float | Schedule = 3e-4,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        refuse_lacking(type(self), self.lacks, options)
        setup = options.pop("_init_setup_model", True)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            batch_size=batch_size,
            n_epochs=1,
            _init_setup_model=False,
            **options,
        )
        self.settings = {name: value for name, value in self.settings.items() if name not in self.lacks}
        if setup:
            self._setup_model()

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """Plain policy gradient and squared error of the value, and the divergence where it is a loss."""
        assert values is not None
        value_loss, _ = clipped_value_loss(
            values, self.flat(rollout.values, rows), self.flat(rollout.returns, rows), None
        )
        policy_loss = -self.flat(rollout.advantages, rows) * log_probs
        return {"policy": policy_loss, "value": value_loss, **self.kl_loss(rollout, rows, log_probs)}, {}
