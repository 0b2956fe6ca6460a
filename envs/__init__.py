"""The environments: text generation as a Markov decision process over tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf_gym.envs.registration import ENVIRONMENTS, register_all

if TYPE_CHECKING:
    from rlhf_gym.envs.adapters import GemEnv, TextArenaEnv
    from rlhf_gym.envs.conversation_env import ConversationEnv
    from rlhf_gym.envs.dialogue_vector_env import ConversationVectorEnv, ToolVectorEnv
    from rlhf_gym.envs.masks import TokenMask
    from rlhf_gym.envs.sb3 import TokenVecEnv, make_sb3_env
    from rlhf_gym.envs.sb3_vector import VectorVecEnv
    from rlhf_gym.envs.text_vec_env import TextVecEnv, make_conversation_env, wrap_text_env
    from rlhf_gym.envs.token_env import TokenEnv
    from rlhf_gym.envs.token_vector_env import TokenVectorEnv
    from rlhf_gym.envs.tool_env import ToolEnv
    from rlhf_gym.envs.turn_env import TurnEnv
    from rlhf_gym.envs.turn_vector_env import TurnVectorEnv
    from rlhf_gym.envs.wrappers.action import SmallVocabulary, VectorSmallVocabulary
    from rlhf_gym.envs.wrappers.kl_reward import KLReward, VectorKLReward
    from rlhf_gym.envs.wrappers.observation import EmbeddedTokens, LastTokens, VectorEmbeddedTokens, VectorLastTokens
    from rlhf_gym.envs.wrappers.shaping import PotentialShaping, VectorPotentialShaping

__all__ = [
    "ENVIRONMENTS",
    "ConversationEnv",
    "ConversationVectorEnv",
    "EmbeddedTokens",
    "GemEnv",
    "KLReward",
    "LastTokens",
    "OpenEnvEnv",
    "PotentialShaping",
    "SmallVocabulary",
    "TextArenaEnv",
    "TextVecEnv",
    "TokenEnv",
    "TokenMask",
    "TokenVecEnv",
    "TokenVectorEnv",
    "ToolEnv",
    "ToolVectorEnv",
    "TurnEnv",
    "TurnVectorEnv",
    "VectorEmbeddedTokens",
    "VectorKLReward",
    "VectorLastTokens",
    "VectorPotentialShaping",
    "VectorSmallVocabulary",
    "VectorVecEnv",
    "make_conversation_env",
    "make_sb3_env",
    "register_all",
    "wrap_text_env",
]

_PLACES = {
    "ConversationEnv": "rlhf_gym.envs.conversation_env",
    "ConversationVectorEnv": "rlhf_gym.envs.dialogue_vector_env",
    "EmbeddedTokens": "rlhf_gym.envs.wrappers.observation",
    "GemEnv": "rlhf_gym.envs.adapters",
    "KLReward": "rlhf_gym.envs.wrappers.kl_reward",
    "LastTokens": "rlhf_gym.envs.wrappers.observation",
    "OpenEnvEnv": "rlhf_gym.envs.openenv_env",
    "PotentialShaping": "rlhf_gym.envs.wrappers.shaping",
    "SmallVocabulary": "rlhf_gym.envs.wrappers.action",
    "TextArenaEnv": "rlhf_gym.envs.adapters",
    "TextVecEnv": "rlhf_gym.envs.text_vec_env",
    "TokenEnv": "rlhf_gym.envs.token_env",
    "TokenMask": "rlhf_gym.envs.masks",
    "TokenVecEnv": "rlhf_gym.envs.sb3",
    "TokenVectorEnv": "rlhf_gym.envs.token_vector_env",
    "ToolEnv": "rlhf_gym.envs.tool_env",
    "ToolVectorEnv": "rlhf_gym.envs.dialogue_vector_env",
    "TurnEnv": "rlhf_gym.envs.turn_env",
    "TurnVectorEnv": "rlhf_gym.envs.turn_vector_env",
    "VectorEmbeddedTokens": "rlhf_gym.envs.wrappers.observation",
    "VectorKLReward": "rlhf_gym.envs.wrappers.kl_reward",
    "VectorLastTokens": "rlhf_gym.envs.wrappers.observation",
    "VectorPotentialShaping": "rlhf_gym.envs.wrappers.shaping",
    "VectorSmallVocabulary": "rlhf_gym.envs.wrappers.action",
    "VectorVecEnv": "rlhf_gym.envs.sb3_vector",
    "make_conversation_env": "rlhf_gym.envs.text_vec_env",
    "make_sb3_env": "rlhf_gym.envs.sb3",
    "wrap_text_env": "rlhf_gym.envs.text_vec_env",
}


def __getattr__(name: str) -> Any:
    """Import an environment when it is first asked for: registering must not cost seconds (stable-baselines3 loads torch)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
