"""The environments: text generation as a Markov decision process over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_gym.envs.registration import ENVIRONMENTS, register_all

if TYPE_CHECKING:
    from rlhf_gym.envs.sb3 import TokenVecEnv, make_sb3_env
    from rlhf_gym.envs.token_env import TokenEnv
    from rlhf_gym.envs.token_vector_env import TokenVectorEnv

__all__ = ["ENVIRONMENTS", "TokenEnv", "TokenVecEnv", "TokenVectorEnv", "make_sb3_env", "register_all"]

_PLACES = {
    "TokenEnv": "rlhf_gym.envs.token_env",
    "TokenVectorEnv": "rlhf_gym.envs.token_vector_env",
    "TokenVecEnv": "rlhf_gym.envs.sb3",
    "make_sb3_env": "rlhf_gym.envs.sb3",
}


def __getattr__(name: str) -> Any:
    """Import an environment when it is first asked for: registering must not cost seconds (stable-baselines3 loads torch)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
