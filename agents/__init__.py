"""The agents: algorithms of stable-baselines3's form over token actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_gym.agents.a2c import A2C
    from rlhf_gym.agents.best_of_n import BestOfN
    from rlhf_gym.agents.common.algorithm import TokenAlgorithm
    from rlhf_gym.agents.common.callbacks import IterationCallback
    from rlhf_gym.agents.common.completions import Completions
    from rlhf_gym.agents.common.divergence import SaveDivergence, replay_divergence
    from rlhf_gym.agents.common.policy import LMPolicy
    from rlhf_gym.agents.common.validation import Validation
    from rlhf_gym.agents.critic_free import CriticFree
    from rlhf_gym.agents.es import ES
    from rlhf_gym.agents.grpo import GRPO, GSPO
    from rlhf_gym.agents.ilql import ILQL
    from rlhf_gym.agents.nlpo import NLPO
    from rlhf_gym.agents.online_dpo import OnlineDPO
    from rlhf_gym.agents.ppo import PPO
    from rlhf_gym.agents.preference_optimization import PreferenceOptimization
    from rlhf_gym.agents.raft import RAFT
    from rlhf_gym.agents.reinforce import REINFORCE, ReinforcePlusPlus
    from rlhf_gym.agents.remax import ReMax
    from rlhf_gym.agents.rloo import RLOO
    from rlhf_gym.agents.sft import SFT
    from rlhf_gym.agents.trpo import TRPO

__all__ = [
    "A2C",
    "ES",
    "GRPO",
    "GSPO",
    "ILQL",
    "NLPO",
    "PPO",
    "RAFT",
    "REINFORCE",
    "RLOO",
    "SFT",
    "TRPO",
    "BestOfN",
    "Completions",
    "CriticFree",
    "IterationCallback",
    "LMPolicy",
    "OnlineDPO",
    "PreferenceOptimization",
    "ReMax",
    "ReinforcePlusPlus",
    "SaveDivergence",
    "TokenAlgorithm",
    "Validation",
    "replay_divergence",
]

_PLACES = {
    "A2C": "rlhf_gym.agents.a2c",
    "BestOfN": "rlhf_gym.agents.best_of_n",
    "Completions": "rlhf_gym.agents.common.completions",
    "CriticFree": "rlhf_gym.agents.critic_free",
    "ES": "rlhf_gym.agents.es",
    "GRPO": "rlhf_gym.agents.grpo",
    "GSPO": "rlhf_gym.agents.grpo",
    "ILQL": "rlhf_gym.agents.ilql",
    "IterationCallback": "rlhf_gym.agents.common.callbacks",
    "LMPolicy": "rlhf_gym.agents.common.policy",
    "OnlineDPO": "rlhf_gym.agents.online_dpo",
    "NLPO": "rlhf_gym.agents.nlpo",
    "PPO": "rlhf_gym.agents.ppo",
    "PreferenceOptimization": "rlhf_gym.agents.preference_optimization",
    "RAFT": "rlhf_gym.agents.raft",
    "REINFORCE": "rlhf_gym.agents.reinforce",
    "RLOO": "rlhf_gym.agents.rloo",
    "ReMax": "rlhf_gym.agents.remax",
    "SFT": "rlhf_gym.agents.sft",
    "TRPO": "rlhf_gym.agents.trpo",
    "ReinforcePlusPlus": "rlhf_gym.agents.reinforce",
    "SaveDivergence": "rlhf_gym.agents.common.divergence",
    "TokenAlgorithm": "rlhf_gym.agents.common.algorithm",
    "Validation": "rlhf_gym.agents.common.validation",
    "replay_divergence": "rlhf_gym.agents.common.divergence",
}


def __getattr__(name: str) -> Any:
    """Import an agent when it is first asked for: torch and transformers take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
