"""Base of the agents without a value function: groups of responses, and a policy loss alone."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import overlong_penalty
from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.covariance import CovarianceControl, covariances, tokens_to_clip, tokens_to_hold
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings
from rlhf_gym.agents.common.shared_settings import CriticFreeSettings
from rlhf_gym.errors import TrainingError

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import CriticFreeKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


class CriticFree(TokenAlgorithm):
    """Base of the agents without a value function: a subclass says how rewards become advantages.

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's; with groups, one whose slots can be given the same prompts (``make_sb3_env``).
        settings: see :class:`~rlhf_gym.agents.common.shared_settings.CriticFreeSettings`, and the table in
            docs/algorithms.md.

    Raises:
        ConfigError: an unknown setting, one out of range, or settings that contradict one another; before any work starts.
    """

    Settings: ClassVar[type[AgentSettings]] = CriticFreeSettings

    # The values for agents that do not have the setting.
    overlong_buffer: int | None = None
    overlong_filtering: bool = False
    cov_control: CovarianceControl | None = None
    cov_share: float
    cov_low: float
    cov_high: float
    cov_kl_coef: float

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[CriticFreeKeywords],
        ) -> None: ...

    def prepare(self, rollout: Rollout) -> None:
        """Compute each token's reward, from score and KL penalty, and advantages."""
        check_groups(rollout, self.group_size - int(self.greedy_first))  # the greedy response is only the baseline
        rollout.advantages = self.advantages(rollout, self.shaped_rewards(rollout)) * rollout.mask
        if self.overlong_filtering:
            rows = range(len(rollout.episodes)) if rollout.learn_from is None else rollout.learn_from
            rollout.learn_from = [row for row in rows if rollout.episodes[row].ended]
        if self.cov_control is not None:
            self._control_covariance(rollout)

    def _control_covariance(self, rollout: Rollout) -> None:
        """Find Clip-Cov's or KL-Cov's tokens among those that are learned from, once for all passes over the rollout."""
        mask = rollout.mask
        if rollout.learn_from is not None:
            kept = torch.zeros(len(mask), dtype=torch.bool)
            kept[rollout.learn_from] = True
            mask = mask & kept[:, None]
        chosen = torch.zeros_like(mask)
        if mask.any():
            covariance = covariances(rollout.log_probs[mask], rollout.advantages[mask])
            chosen[mask] = (
                tokens_to_clip(covariance, self.cov_share, self.cov_low, self.cov_high, self._update_rng)
                if self.cov_control == "clip"
                else tokens_to_hold(covariance, self.cov_share)
            )
        if self.cov_control == "clip":
            rollout.importance = rollout.importance * ~chosen  # no weight, no gradient
        else:
            rollout.held = chosen.float()

    def scores(self, rollout: Rollout) -> Tensor:
        """The environment's rewards less the penalty for length, float32 ``[B, R]``."""
        scores = super().scores(rollout)
        if self.overlong_buffer is not None:
            lengths = torch.tensor(rollout.lengths)
            longest = torch.tensor(
                [max((t.length for t in e.turns), default=len(e.response_ids)) for e in rollout.episodes]
            )
            limit = self.policy.limits.max_new_tokens  # of a turn
            penalty = overlong_penalty(longest, limit, min(self.overlong_buffer, limit))
            scores[torch.arange(len(lengths)), lengths - 1] += penalty
        return scores

    @abstractmethod
    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Advantages of every token.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, R]``, or ``[B, 1]`` for one advantage per response; values at padding do not count.
        """

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The policy's loss, the plain policy gradient without a ``clip_range``, and the KL where it is a loss.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: None: there is no value head.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens.
        """
        if self.clip_range is None and self.policy_loss == "ppo":
            loss, metrics = -self.flat(rollout.advantages, rows) * log_probs, {}
        else:
            loss, clipped = self.ratio_loss(rollout, rows, log_probs)
            metrics = {"clipped": clipped.sum()}
        if self.cov_control == "kl":  # the authors' code takes this distance for the KL from the old policy
            distance = (log_probs - self.flat(rollout.log_probs, rows)).abs()
            loss = loss + self.cov_kl_coef * self.flat(rollout.held, rows) * distance
        return {"policy": loss, **self.kl_loss(rollout, rows, log_probs)}, metrics


def check_groups(rollout: Rollout, size: int) -> None:
    """Refuse a rollout in which a group does not answer one prompt.

    Args:
        rollout: the episodes.
        size: of a group.

    Raises:
        TrainingError: a group answers several prompts, though the environment's slots have the same seeds.
    """
    prompts = [e.prompt_ids for e in rollout.episodes]
    for first in range(0, len(prompts), size):
        if any(prompt != prompts[first] for prompt in prompts[first : first + size]):
            raise TrainingError(
                f"episodes {first} to {first + size - 1} are a group and should answer one prompt, but do not, though their "
                "slots have the same seeds: a wrapper around the environment gives slots prompts of their own; take it away"
            )
