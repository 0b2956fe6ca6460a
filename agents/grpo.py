"""Group relative policy optimisation and its descendants: a response is compared with its group (Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import equal_groups, group_relative
from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.kl import Estimator
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.policy_losses import PolicyLoss
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


ORIGINAL: Mapping[str, Any] = {
    "scale_rewards": "group", "aggregation": "sequence", "clip_range": 0.2, "kl_coef": 0.04, "kl_in": "loss",
    "kl_estimator": "k3",
}  # fmt: skip
"""Shao et al. 2024."""


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(CriticFreeSettings):
    """The settings of GRPO and of its descendants."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "original": ORIGINAL,
        "dr_grpo": {"scale_rewards": "none", "aggregation": "constant", "clip_range": 0.2, "kl_coef": 0.0},
        "dapo": {
            "scale_rewards": "group", "aggregation": "token", "clip_range": 0.2, "clip_range_high": 0.28,
            "dynamic_sampling": True, "max_resamples": 3, "overlong_buffer": 16, "kl_coef": 0.0,
        },
        "cispo": {
            "policy_loss": "cispo", "scale_rewards": "group", "aggregation": "token", "clip_range": 1.0,
            "clip_range_high": 4.0, "kl_coef": 0.0,
        },
        "sapo": {"policy_loss": "sapo", "scale_rewards": "group", "aggregation": "sequence", "kl_coef": 0.0},
        "opo": {
            "group_baseline": "length_weighted", "scale_rewards": "none", "aggregation": "constant", "n_epochs": 1,
            "batch_size": None, "kl_coef": 0.0,
        },
        "clip_cov": {
            "cov_control": "clip", "cov_share": 2e-4, "scale_rewards": "group", "aggregation": "token", "kl_coef": 0.0,
        },
        "kl_cov": {
            "cov_control": "kl", "cov_share": 2e-3, "cov_kl_coef": 1.0, "policy_loss": "ratio", "scale_rewards": "group",
            "aggregation": "token", "kl_coef": 0.0,
        },
        "gmpo": {
            "policy_loss": "gmpo", "scale_rewards": "group", "aggregation": "sequence", "clip_range": 0.4, "kl_coef": 0.0,
        },
    }  # fmt: skip

    group_size: int = setting(8, at_least=2)
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "none",
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
    group_baseline: Literal["mean", "length_weighted"] = setting(
        "mean",
        "subtracted from a response's reward: the mean of its group, or that mean weighed by the responses' lengths",
        source="length_weighted: Hao et al. 2025",
    )
    dynamic_sampling: bool = setting(
        False,
        "groups whose scores are all the same, the penalty of `overlong_buffer` aside, are left out of learning: their tokens "
        "would count in the mean of the loss",
        source="Yu et al. 2025",
    )
    max_resamples: int = setting(
        0,
        "with `dynamic_sampling`: while fewer than `n_episodes` episodes are left to learn from, as many again are generated, "
        "at most this many times (`groups/resamples` counts them); 0 learns from those that are left",
        at_least=0, source="Yu et al. 2025",
    )  # fmt: skip
    minibatch_groups: bool = setting(
        False,
        "minibatches are of whole groups, not of episodes in any order, so that a prompt runs once for all its responses: the "
        "longer prompts are, the faster. `batch_size` must be a multiple of `group_size`",
    )
    n_epochs: int = setting(2)
    batch_size: int | None = setting(16)
    clip_range: float | Schedule | None = setting(0.2)
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
        if self.minibatch_groups and self.batch_size is not None and self.batch_size % self.group_size:
            raise ConfigError(
                f"minibatch_groups takes whole groups: batch_size ({self.batch_size}) must be a multiple of group_size "
                f"({self.group_size}): take {-(-self.batch_size // self.group_size) * self.group_size}"
            )
        if self.minibatch_groups and self.overlong_filtering:
            raise ConfigError(
                "minibatch_groups keeps groups whole, and overlong_filtering takes single responses out of them: leave one out"
            )
        if self.group_baseline != "mean" and self.compare == "turn":
            raise ConfigError(
                f"group_baseline={self.group_baseline!r} weighs responses by their lengths, and compare='turn' compares turns: "
                "leave one of them out"
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
    """GRPO; a preset makes it one of its kin, ``GRPO(**GRPO.preset("dapo"))``.

    By default ``A = r - group mean``, every token counts the same, k3 in the loss. Neither the group's standard deviation nor a
    mean over each response is taken: the one gives prompts more weight that are nearly always, or nearly never, answered well,
    the other gives the tokens of long responses less (Liu et al. 2025; Yu et al. 2025).

    ============  ======================================================================================================
    ``original``  ``A = (r - group mean) / (group std)``, each response counts the same, k3 in the loss
                  (Shao et al. 2024, equations 3 and 4)
    ``dr_grpo``   no standard deviation, the sum over the length limit, no KL (Liu et al. 2025)
    ``dapo``      the original's advantages, every token counts the same, clip-higher, dynamic sampling, a penalty in the last
                  tokens before the limit, no KL (Yu et al. 2025). Theirs is of 4096 of 20480 tokens: give your own
                  ``overlong_buffer``
    ``cispo``     the clipped ratio as a constant weight, at most 5 (MiniMax 2025; the bound of Khatri et al. 2025)
    ``sapo``      a sigmoid of the ratio in the place of the clip (Gao et al. 2025)
    ``opo``       the group's mean weighed by length as baseline, one step an iteration, no KL (Hao et al. 2025)
    ``clip_cov``  Clip-Cov: the clip, and no gradient for tokens of high covariance (Cui et al. 2025)
    ``kl_cov``    KL-Cov: the ratio, and a penalty for tokens of high covariance (Cui et al. 2025)
    ``gmpo``      the geometric mean of clipped ratios (Zhao et al. 2025)
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
    group_baseline: Literal["mean", "length_weighted"]
    dynamic_sampling: bool
    max_resamples: int
    minibatch_groups: bool
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
        differing = int((~self._alike(rollout, self.scores(rollout))).sum()) * self.group_size
        if resamples < self.max_resamples and differing < self.n_episodes:
            return True
        self.logger.record("groups/resamples", resamples)
        return False

    def _alike(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """The groups that dynamic sampling leaves out, bool ``[B / group_size]``.

        A penalty for length is no difference: DAPO keeps the groups in which some responses are right and some are wrong (Yu et
        al. 2025, equation 11), not those that are all right at different lengths.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.
        """
        if self.overlong_buffer is not None and not (self.kl_in == "reward" and rollout.has_reference):
            rewards = TokenAlgorithm.scores(self, rollout)  # subtracting the penalty again would leave rounding
        return equal_groups(rewards, self.group_size)

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Compare each response's reward with its group's, whose tokens all get the same advantage; or each turn's.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``, or ``[B, R]`` where turns are compared.
        """
        rollout.together = self.group_size if self.minibatch_groups else 1
        scores = rewards.sum(1)
        self.logger.record("groups/equal_share", equal_groups(rewards, self.group_size).float().mean().item())
        if self.dynamic_sampling:
            kept = torch.repeat_interleave(~self._alike(rollout, rewards), self.group_size)
            rollout.learn_from = torch.nonzero(kept).flatten().tolist()[: self.n_episodes]
        if self.compare == "turn":
            return group_relative_turns(rollout, rewards, self.group_size, self.scale_rewards)
        lengths = torch.tensor(rollout.lengths) if self.group_baseline == "length_weighted" else None
        return group_relative(scores, self.group_size, self.scale_rewards, lengths=lengths)[:, None]


@dataclass(frozen=True, kw_only=True)
class GSPOSettings(GRPOSettings):
    """The settings of GSPO: the advantages and the mean of each response are those of the original GRPO."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    scale_rewards: Literal["group", "batch", "none"] = setting("group")
    aggregation: Aggregation = setting("sequence")
    learning_rate: float | Schedule = setting(3e-4, "Adam's learning rate; the narrow clip keeps steps small")
    clip_range: float | Schedule = setting(
        3e-4, "the response's ratio is clipped at `1 - clip_range`", source="Zheng et al. 2025"
    )
    clip_range_high: float | None = setting(4e-4, source="Zheng et al. 2025")
    policy_loss: PolicyLoss = setting("gspo")
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
