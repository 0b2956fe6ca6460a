"""A moving average of rewards as a baseline, for the agents that have one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.critic_free import CriticFree


class RunningBaseline(CriticFree):
    """Base of the agents that know the mean reward of the iterations before: ``m <- decay m + (1 - decay) mean``.

    The mean is of earlier iterations only, so that it does not depend on the responses that it is subtracted from.
    """

    baseline_decay: float
    running_mean: float | None = None
    _next_mean: float | None = None

    def running_baseline(self, totals: Tensor) -> float | None:
        """The mean of the iterations before, None in the first one; this iteration counts once it was learned from.

        Args:
            totals: float ``[B]``, the rewards of this iteration's responses.
        """
        before, now = self.running_mean, totals.mean().item()
        self._next_mean = now if before is None else self.baseline_decay * before + (1 - self.baseline_decay) * now
        return before

    def after_learning(self, rollout: Rollout) -> None:
        """Move the running mean."""
        super().after_learning(rollout)
        if self._next_mean is not None:
            self.running_mean, self._next_mean = self._next_mean, None

    def state(self) -> dict[str, Any]:
        """The counters and random states of every agent, and the running mean."""
        return {**super().state(), "running_mean": self.running_mean}

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`."""
        super().restore(state)
        self.running_mean = state["running_mean"]
