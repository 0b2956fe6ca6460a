"""Whole episodes as the steps that stable-baselines3's callbacks count.

A callback is called once for every ``num_envs`` tokens, be they collected by stepping or by decoding: so the progress bar,
which adds ``num_envs`` a call, counts tokens, and ``save_freq // num_envs`` means what SB3's documentation says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.agents.common.rollout import Episode


@dataclass
class Step:
    """``num_envs`` tokens.

    Attributes:
        actions: int64 ``[num_envs]``.
        rewards: float32 ``[num_envs]``.
        dones: bool ``[num_envs]``, True where the token is its episode's last.
        infos: the episode's info where it ended, else empty.
    """

    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    dones: NDArray[np.bool_]
    infos: list[dict[str, Any]]


class StepCounter:
    """Deals episodes out in steps; what does not fill a step waits for the next rollout.

    Args:
        num_envs: tokens a step.
    """

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self._waiting: list[tuple[int, float, dict[str, Any] | None]] = []  # token, reward, info if it is the last

    @property
    def waiting(self) -> int:
        """Tokens that wait."""
        return len(self._waiting)

    @waiting.setter
    def waiting(self, tokens: int) -> None:
        self._waiting = [(0, 0.0, None)] * tokens

    def steps(self, episodes: Sequence[Episode]) -> Iterator[Step]:
        """Every full step of what waited and of these episodes' tokens, in order."""
        for episode in episodes:
            last = len(episode.response_ids) - 1
            self._waiting += [
                (token, reward, episode.info if t == last else None)
                for t, (token, reward) in enumerate(zip(episode.response_ids, episode.rewards, strict=True))
            ]
        n = self.num_envs
        full = len(self._waiting) // n * n
        ready, self._waiting = self._waiting[:full], self._waiting[full:]
        for begin in range(0, full, n):
            tokens, rewards, infos = zip(*ready[begin : begin + n], strict=True)
            yield Step(
                np.array(tokens, dtype=np.int64),
                np.array(rewards, dtype=np.float32),
                np.array([info is not None for info in infos]),
                [info or {} for info in infos],
            )
