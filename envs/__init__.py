"""The environments: text generation as a Markov decision process over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_gym.envs.registration import ENVIRONMENTS, register_all

if TYPE_CHECKING:
    from rlhf_gym.envs.adapters import GemEnv, TextArenaEnv
    from rlhf_gym.envs.conversation_env import ConversationEnv
    from rlhf_gym.envs.masks import TokenMask
    from rlhf_gym.envs.sb3 import TokenVecEnv, VectorVecEnv, make_sb3_env
    from rlhf_gym.envs.token_env import TokenEnv
    from rlhf_gym.envs.token_vector_env import TokenVectorEnv
    from rlhf_gym.envs.turn_env import TurnEnv
    from rlhf_gym.envs.turn_vector_env import TurnVectorEnv
    from rlhf_gym.envs.wrappers.action import SmallVocabulary, VectorSmallVocabulary
    from rlhf_gym.envs.wrappers.observation import EmbeddedTokens, LastTokens, VectorEmbeddedTokens, VectorLastTokens
    from rlhf_gym.envs.wrappers.reward import KLReward, PotentialShaping, VectorKLReward, VectorPotentialShaping

__all__ = [
    "ENVIRONMENTS",
    "ConversationEnv",
    "EmbeddedTokens",
    "GemEnv",
    "KLReward",
    "LastTokens",
    "PotentialShaping",
    "SmallVocabulary",
    "TextArenaEnv",
    "TokenEnv",
    "TokenMask",
    "TokenVecEnv",
    "TokenVectorEnv",
    "TurnEnv",
    "TurnVectorEnv",
    "VectorEmbeddedTokens",
    "VectorKLReward",
    "VectorLastTokens",
    "VectorPotentialShaping",
    "VectorSmallVocabulary",
    "VectorVecEnv",
    "make_sb3_env",
    "register_all",
]

_PLACES = {
    "ConversationEnv": "rlhf_gym.envs.conversation_env",
    "GemEnv": "rlhf_gym.envs.adapters",
    "TextArenaEnv": "rlhf_gym.envs.adapters",
    "EmbeddedTokens": "rlhf_gym.envs.wrappers.observation",
    "KLReward": "rlhf_gym.envs.wrappers.reward",
    "LastTokens": "rlhf_gym.envs.wrappers.observation",
    "PotentialShaping": "rlhf_gym.envs.wrappers.reward",
    "SmallVocabulary": "rlhf_gym.envs.wrappers.action",
    "TokenMask": "rlhf_gym.envs.masks",
    "VectorEmbeddedTokens": "rlhf_gym.envs.wrappers.observation",
    "VectorKLReward": "rlhf_gym.envs.wrappers.reward",
    "VectorLastTokens": "rlhf_gym.envs.wrappers.observation",
    "VectorPotentialShaping": "rlhf_gym.envs.wrappers.reward",
    "VectorSmallVocabulary": "rlhf_gym.envs.wrappers.action",
    "VectorVecEnv": "rlhf_gym.envs.sb3",
    "TokenEnv": "rlhf_gym.envs.token_env",
    "TokenVectorEnv": "rlhf_gym.envs.token_vector_env",
    "TokenVecEnv": "rlhf_gym.envs.sb3",
    "TurnEnv": "rlhf_gym.envs.turn_env",
    "TurnVectorEnv": "rlhf_gym.envs.turn_vector_env",
    "make_sb3_env": "rlhf_gym.envs.sb3",
}


def __getattr__(name: str) -> Any:
    """Import an environment when it is first asked for: registering must not cost seconds (stable-baselines3 loads torch)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
