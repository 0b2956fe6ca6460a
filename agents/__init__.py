"""The agents: algorithms of stable-baselines3's form over token actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_gym.agents.on_policy import TokenOnPolicyAlgorithm
    from rlhf_gym.agents.policy import LMPolicy
    from rlhf_gym.agents.ppo import PPO

__all__ = ["PPO", "LMPolicy", "TokenOnPolicyAlgorithm"]

_PLACES = {
    "LMPolicy": "rlhf_gym.agents.policy",
    "PPO": "rlhf_gym.agents.ppo",
    "TokenOnPolicyAlgorithm": "rlhf_gym.agents.on_policy",
}


def __getattr__(name: str) -> Any:
    """Import an agent when it is first asked for: torch and transformers take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
