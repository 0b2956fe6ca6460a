"""The base of all wrappers around token environments: the episodes inside, and masks handed through."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes
from rlhf_gym.errors import ConfigError

AnyEnv = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]


def episodes_of(env: AnyEnv, wrapper: str) -> Episodes:
    """The episodes of the token environment inside.

    Args:
        env: an environment, with or without wrappers.
        wrapper: the wrapper's name, for the error message.

    Raises:
        ConfigError: it is not a token environment.
    """
    episodes = getattr(env.unwrapped, "episodes", None)
    if not isinstance(episodes, Episodes):
        raise ConfigError(
            f"{wrapper} goes around a token environment (TokenEnv, TokenVectorEnv), got {type(env.unwrapped).__name__}"
        )
    return episodes


def find_attribute(env: Any, name: str) -> Any:
    """An attribute of an environment, or of the nearest one inside it that has it.

    Args:
        env: an environment, with or without wrappers.
        name: the attribute's name.

    Raises:
        AttributeError: none of them has it.
    """
    inside = env
    while True:
        if hasattr(inside, name):
            return getattr(inside, name)
        if not hasattr(inside, "env"):
            raise AttributeError(f"neither {env} nor an environment inside it has the attribute {name!r}")
        inside = inside.env


class VectorTokenWrapper(gym.vector.VectorWrapper[Any, Any, Any, Any, NDArray[Any]]):
    """A vector wrapper that hands ``action_masks`` through (Gymnasium's own forwards no attributes)."""

    def action_masks(self) -> NDArray[np.bool_]:
        """bool ``[N, actions]``, True where an action is allowed now."""
        masks: NDArray[np.bool_] = find_attribute(self.env, "action_masks")()
        return masks
