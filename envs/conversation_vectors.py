"""The conversations of the catalogue as vector environments, for ``gym.make_vec``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from rlhf_gym.envs.vector_api import as_autoreset_mode, check_num_envs
from rlhf_gym.tasks.book_table import BookTableEnv
from rlhf_gym.tasks.guess_number import GuessNumberEnv


def guess_number_vector(num_envs: int = 1, **options: Any) -> SyncVectorEnv:
    """Many :class:`~rlhf_gym.tasks.guess_number.GuessNumberEnv`, stepped together.

    Args:
        num_envs: their number.
        options: ``autoreset_mode``, ``max_episode_steps``, and those of the single environment.
    """
    return _vector(GuessNumberEnv, num_envs, **options)


def book_table_vector(num_envs: int = 1, **options: Any) -> SyncVectorEnv:
    """Many :class:`~rlhf_gym.tasks.book_table.BookTableEnv`, stepped together.

    Args:
        num_envs: their number.
        options: ``autoreset_mode``, ``max_episode_steps``, and those of the single environment.
    """
    return _vector(BookTableEnv, num_envs, **options)


def _vector(
    make: Callable[..., gym.Env[str, str]],
    num_envs: int,
    *,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    max_episode_steps: int | None = None,
    **options: Any,
) -> SyncVectorEnv:
    check_num_envs(num_envs)

    def one() -> gym.Env[str, str]:
        env = make(**options)
        return env if max_episode_steps is None else TimeLimit(env, max_episode_steps)

    return SyncVectorEnv([one for _ in range(num_envs)], autoreset_mode=as_autoreset_mode(autoreset_mode))
