"""ReMax: the baseline is the reward of the greedy response to the same prompt (Li et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import returns_to_go
from rlhf_gym.agents.common.losses import Aggregation
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import CriticFreeSettings
from rlhf_gym.agents.critic_free import CriticFree, check_groups

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import ReMaxKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class ReMaxSettings(CriticFreeSettings):
    """The settings of ReMax."""

    learning_rate: float | Schedule = setting(
        3e-4, "Adam's learning rate; the one step per iteration may be larger than PPO's steps"
    )
    group_size: int = setting(
        2,
        "size of a group: slots that answer the same prompt, the first of them greedily, for the baseline; the others are "
        "learned from. It must divide the number of environments; the default adapts to that number",
        at_least=2,
    )
    aggregation: Aggregation = setting("constant")  # the paper's sum over each response, up to a constant factor


class ReMax(CriticFree):
    """ReMax (Li et al. 2024, equation 5): REINFORCE, less the reward of the most probable response to the prompt.

    ``-sum_t (sum_{t' >= t} r_t' - R(x, greedy)) log pi(y_t)``, where ``r`` has the KL penalty of each token and ``R`` is the
    environment's reward alone. The baseline does not depend on ``y``, so the gradient is unbiased.

    The first slot of each group writes the greedy response. The environment scores it as it scores the others, with the
    prompt's columns, for whatever reward and environment. Its tokens count as timesteps; of metrics it is in
    ``groups/greedy_score`` alone.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's.
        settings: see :class:`ReMaxSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = ReMaxSettings
    greedy_first: ClassVar[bool] = True

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[ReMaxKeywords],
        ) -> None: ...

    def complete(self, rollout: Rollout) -> None:
        """Compute the reference's log-probabilities, of the sampled responses alone."""
        rows = self._sampled(rollout)
        part = rollout.only(rows)
        super().complete(part)
        rollout.put(rows, part)

    def measured(self, rollout: Rollout) -> Rollout:
        """The sampled responses, each with the score of its group's greedy response as baseline.

        Args:
            rollout: scored, whole groups.
        """
        check_groups(rollout, self.group_size)
        scores = self.scores(rollout).sum(1).tolist()
        for row, episode in enumerate(rollout.episodes):
            episode.baseline = scores[row - row % self.group_size]
        if scores:
            greedy = scores[:: self.group_size]
            self.logger.record("groups/greedy_score", sum(greedy) / len(greedy))
        return rollout.only(self._sampled(rollout))

    def _sampled(self, rollout: Rollout) -> list[int]:
        return [row for row in range(len(rollout.episodes)) if row % self.group_size]

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Sum the rewards from each token on, and subtract the greedy response's.

        Args:
            rollout: the sampled episodes.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, R]``; values at padding do not count.
        """
        baselines = rewards.new_tensor([episode.baseline for episode in rollout.episodes])
        return returns_to_go(rewards, rollout.mask) - baselines[:, None]
