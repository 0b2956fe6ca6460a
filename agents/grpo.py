"""Group relative policy optimisation and its descendants: a response is compared with its group (Shao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import equal_groups, group_relative
from rlhf_gym.agents.common.kl import Estimator
from rlhf_gym.agents.common.losses import Aggregation, sequence_clipped_policy_loss
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import CriticFreeSettings
from rlhf_gym.agents.common.turn_credit import group_relative_turns
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.errors import ConfigError

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import GRPOKeywords, GSPOKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(CriticFreeSettings):
    """The settings of GRPO and of its descendants."""

    group_size: int = setting(8, at_least=2)
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "group",
        "the difference from the group's mean is divided by the standard deviation of the group, by that of the batch, or by "
        "nothing (none)",
        source="Shao et al. 2024; none: Liu et al. 2025",
    )
    compare: Literal["response", "turn"] = setting(
        "response",
        "of a conversation, response compares the sum of its rewards with its group's, and all its tokens get one advantage; "
        "turn compares each turn's reward with those of all turns of its group, and a token gets the sum from its turn on",
        source="Shao et al. 2024, section 4.1.3",
    )
    dynamic_sampling: bool = setting(
        False,
        "groups whose scores are all the same are left out of learning: their advantages are 0, but their tokens would count "
        "in the mean of the loss",
        source="Yu et al. 2025",
    )
    max_resamples: int = setting(
        0,
        "with `dynamic_sampling`: while fewer than `n_episodes` episodes are left to learn from, as many again are generated, "
        "at most this many times (`groups/resamples` counts them); 0 learns from those that are left",
        at_least=0, source="Yu et al. 2025",
    )  # fmt: skip
    n_epochs: int = setting(2)
    batch_size: int | None = setting(16)
    clip_range: float | Schedule | None = setting(0.2)
    aggregation: Aggregation = setting("sequence")
    kl_coef: float = setting(0.04, source="Shao et al. 2024")
    kl_in: Literal["reward", "loss"] = setting("loss")
    kl_estimator: Estimator | None = setting(
        None, "estimator of the KL; None takes k3 in the loss and k1 in the reward"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_resamples and not self.dynamic_sampling:
            raise ConfigError(
                f"max_resamples ({self.max_resamples}) replaces the groups that dynamic_sampling leaves out: give "
                "dynamic_sampling=True, or leave max_resamples at 0"
            )
        if self.dynamic_sampling and self.compare == "turn":
            raise ConfigError(
                "dynamic_sampling leaves out groups whose responses have equal scores, and compare='turn' learns from the "
                "rewards of turns, which may differ there: leave one of them out"
            )
        if self.max_resamples and self.kl_in == "reward" and self.kl_coef:
            raise ConfigError(
                f"max_resamples ({self.max_resamples}) looks for groups of equal scores, and with kl_in='reward' hardly any "
                "two are equal: give kl_in='loss', or kl_coef=0"
            )


class GRPO(CriticFree):
    """GRPO; settings make it one of its descendants.

    ============  ======================================================================================================
    GRPO          the defaults: ``A = (r - group mean) / (group std)``, each response counts the same, k3 in the loss
                  (Shao et al. 2024, equations 3 and 4)
    Dr. GRPO      ``scale_rewards="none", aggregation="constant", kl_coef=0`` (Liu et al. 2025): neither the group's
                  standard deviation nor the length changes a response's weight
    DAPO          ``clip_range_high=0.28, aggregation="token", dynamic_sampling=True, max_resamples=..., overlong_buffer=...,
                  kl_coef=0`` (Yu et al. 2025)
    ============  ======================================================================================================

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's, whose slots can be given the same prompts (``make_sb3_env``).
        settings: see :class:`GRPOSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = GRPOSettings

    scale_rewards: Literal["group", "batch", "none"]
    compare: Literal["response", "turn"]
    dynamic_sampling: bool
    max_resamples: int
    loss_kl_estimator: ClassVar[Estimator] = "k3"

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[GRPOKeywords],
        ) -> None: ...

    def needs_more(self, rollout: Rollout) -> bool:
        """Dynamic sampling: True while too few groups differ in their scores, at most ``max_resamples`` times."""
        if not self.max_resamples:
            return False
        resamples = (len(rollout.episodes) + len(rollout.left_out)) // self.n_episodes - 1
        differing = int((~equal_groups(self.scores(rollout), self.group_size)).sum()) * self.group_size
        if resamples < self.max_resamples and differing < self.n_episodes:
            return True
        self.logger.record("groups/resamples", resamples)
        return False

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Compare each response's reward with its group's, whose tokens all get the same advantage; or each turn's.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``, or ``[B, R]`` where turns are compared.
        """
        scores = rewards.sum(1)
        equal = equal_groups(rewards, self.group_size)
        self.logger.record("groups/equal_share", equal.float().mean().item())
        if self.dynamic_sampling:
            kept = torch.repeat_interleave(~equal, self.group_size)
            rollout.learn_from = torch.nonzero(kept).flatten().tolist()[: self.n_episodes]
        if self.compare == "turn":
            return group_relative_turns(rollout, rewards, self.group_size, self.scale_rewards)
        return group_relative(scores, self.group_size, self.scale_rewards)[:, None]


@dataclass(frozen=True, kw_only=True)
class GSPOSettings(GRPOSettings):
    """The settings of GSPO."""

    learning_rate: float | Schedule = setting(3e-4, "Adam's learning rate; the narrow clip keeps steps small")
    clip_range: float | Schedule = setting(
        3e-4, "the response's ratio is clipped at `1 - clip_range`", source="Zheng et al. 2025"
    )
    clip_range_high: float | None = setting(4e-4, source="Zheng et al. 2025")
    kl_coef: float = setting(0.0, source="Zheng et al. 2025")


class GSPO(GRPO):
    """Group sequence policy optimisation (Zheng et al. 2025): GRPO with one clipped ratio per response.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's.
        settings: see :class:`GSPOSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = GSPOSettings

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[GSPOKeywords],
        ) -> None: ...

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The clipped loss of whole responses, and the KL where it is a loss.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: None: there is no value head.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens.
        """
        assert self.clip_range is not None
        loss, clipped = sequence_clipped_policy_loss(
            log_probs, self.flat(rollout.log_probs, rows), self.flat(rollout.advantages, rows),
            torch.tensor([rollout.lengths[i] for i in rows], device=self.device),
            clip_low=self.now(self.clip_range),
            clip_high=self.clip_range_high, dual_clip=self.dual_clip,
        )  # fmt: skip
        return {"policy": loss, **self.kl_loss(rollout, rows, log_probs)}, {"clipped": clipped.sum()}
