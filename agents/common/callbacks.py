"""The calls of an iteration to stable-baselines3's callbacks: one for every step of tokens, one at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from torch import Tensor

from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.errors import NotFiniteError


class IterationCallback(BaseCallback):
    """A callback that is called after every iteration, once it has learned and its metrics are written."""

    def _on_step(self) -> bool:
        return True

    def on_iteration_end(self, agent: Any) -> bool:
        """An iteration is done: ``agent.iteration`` counts it, ``agent.rollout`` holds it.

        Args:
            agent: the agent that learns.

        Returns:
            False stops training.
        """
        return True

    def before_logging(self, agent: Any) -> None:
        """An iteration has learned, and its row is about to be written: ``agent.logger.record`` adds to it.

        Args:
            agent: the agent that learns.
        """

    def on_divergence(self, agent: Any, error: NotFiniteError) -> None:
        """Training ends because something is NaN or infinite; ``agent.rollout`` and ``agent.updating`` are what it was doing.

        Args:
            agent: the agent, its weights as before the failed step.
            error: is raised after this.
        """


def iteration_callbacks(callback: BaseCallback) -> Iterator[IterationCallback]:
    """Every :class:`IterationCallback` of what ``learn`` was given, in lists too."""
    if isinstance(callback, CallbackList):
        for one in callback.callbacks:
            yield from iteration_callbacks(one)
    elif isinstance(callback, IterationCallback):
        yield callback


def end_iteration(callback: BaseCallback, agent: Any) -> bool:
    """Call :meth:`IterationCallback.on_iteration_end` of every such callback, in lists too.

    Args:
        callback: what ``learn`` was given, as stable-baselines3 wraps it.
        agent: the agent that learns.

    Returns:
        False if one of them stops training.
    """
    goes_on = [one.on_iteration_end(agent) is not False for one in iteration_callbacks(callback)]  # every one is called
    return all(goes_on)


@dataclass
class Step:
    """One step of a callback: ``num_envs`` tokens.

    Attributes:
        actions: int64 ``[num_envs]``.
        rewards: float32 ``[num_envs]``.
        dones: bool ``[num_envs]``, True where the token is its episode's last.
        infos: the episode's info where it ended, else empty.
        log_probs: float32 ``[num_envs]``, of the actions.
        values: float32 ``[num_envs, 1]``, the value function's before each token; 0 for agents without one.
    """

    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]
    infos: list[dict[str, Any]]
    log_probs: Tensor
    values: Tensor


class StepCounter:
    """Cuts the tokens of episodes into steps; tokens that do not fill a step wait for the next rollout.

    Args:
        num_envs: tokens per step.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        # Token, reward, info if it is the last, log-probability, value.
        self._waiting: list[tuple[int, float, dict[str, Any] | None, float, float]] = []

    @property
    def waiting(self) -> int:
        """Tokens that wait."""
        return len(self._waiting)

    @waiting.setter
    def waiting(self, tokens: int) -> None:
        self._waiting = [(0, 0.0, None, 0.0, 0.0)] * tokens

    def steps(self, rollout: Rollout) -> Iterator[Step]:
        """Every full step of what waited and of these episodes' tokens, in order."""
        for episode, log_probs, values in zip(
            rollout.episodes, rollout.log_probs.tolist(), rollout.values.tolist(), strict=True
        ):
            n = len(episode.response_ids)
            ends = [None] * (n - 1) + [episode.info]
            self._waiting += zip(episode.response_ids, episode.rewards, ends, log_probs[:n], values[:n], strict=True)
        n = self.num_envs
        full = len(self._waiting) // n * n
        ready, self._waiting = self._waiting[:full], self._waiting[full:]
        for begin in range(0, full, n):
            tokens, rewards, infos, log_probs, values = zip(*ready[begin : begin + n], strict=True)
            yield Step(
                np.array(tokens, dtype=np.int64),
                np.array(rewards, dtype=np.float32),
                np.array([info is not None for info in infos]),
                [info or {} for info in infos],
                torch.tensor(log_probs),
                torch.tensor(values)[:, None],
            )
