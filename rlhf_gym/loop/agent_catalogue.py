"""Agents by name, and how a run's settings differ from their own. Importing this file imports no agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from functools import cache
from typing import TYPE_CHECKING, Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.objects import is_place, load_object
from rlhf_gym.text import nearest

if TYPE_CHECKING:
    from rlhf_gym.agents import TokenAlgorithm

AGENTS = {
    "ppo": "PPO", "nlpo": "NLPO", "trpo": "TRPO", "a2c": "A2C", "grpo": "GRPO", "gspo": "GSPO", "rloo": "RLOO",
    "remax": "ReMax",
    "reinforce": "REINFORCE", "reinforce_plus_plus": "ReinforcePlusPlus", "online_dpo": "OnlineDPO", "raft": "RAFT", "es": "ES",
    "preference_optimization": "PreferenceOptimization", "ilql": "ILQL", "sft": "SFT",
}  # fmt: skip
"""The built-in agents: name in a configuration, class in :mod:`rlhf_gym.agents`."""

RUN_DEFAULTS: Mapping[str, Any] = {"n_episodes": 64, "learning_rate_decay": "linear"}
"""Defaults of a run that differ from the agent's own; every other default is the agent's."""

SET_ELSEWHERE = {
    "temperature": "sampling.temperature", "top_k": "sampling.top_k", "top_p": "sampling.top_p", "seed": "run.seed",
    "device": "model.device", "lora": "model.lora", "language_model": "model.name", "reference": "model.name",
    "on_too_long": "task.on_too_long",
}  # fmt: skip
"""Settings of agents that another section of the configuration sets."""

GIVEN = ("data", "preferences", "trajectories")
"""Arguments of agents that learn from given responses."""

LOOP_KEYS_FOR: Mapping[str, tuple[str, ...]] = {
    "value_start": ("value_start",), "teacher": ("kl_coef",), "target_column": ("data",), "data": GIVEN, "data_format": GIVEN,
    "data_columns": GIVEN,
}  # fmt: skip
"""The loop's own keys that only some agents have, with the arguments by which these agents are known."""


@cache
def find_agent(name: str) -> type[TokenAlgorithm]:
    """Find an agent's class.

    Args:
        name: a key of :data:`AGENTS`, ``module:Class`` or ``path/file.py:Class``.

    Raises:
        ConfigError: there is none of that name, or what is there is no agent.
    """
    import rlhf_gym.agents
    from rlhf_gym.agents import TokenAlgorithm

    if name in AGENTS:
        found: Any = getattr(rlhf_gym.agents, AGENTS[name])
    elif is_place(name):
        found = load_object(name, kind="agent")
    else:
        raise ConfigError(
            f"there is no agent {name!r}{nearest(name, AGENTS)} Expected one of {', '.join(AGENTS)}, module:Class or "
            "path/file.py:Class"
        )
    if not (isinstance(found, type) and issubclass(found, TokenAlgorithm)):
        raise ConfigError(f"agent {name!r} is no subclass of rlhf_gym.agents.TokenAlgorithm; see docs/new-algorithm.md")
    return found


def other_agent_with(setting: str, cls: type[TokenAlgorithm]) -> str | None:
    """Find a built-in agent that has a setting which this one lacks; None where no agent has it.

    Args:
        setting: the setting's name.
        cls: the agent that lacks it.
    """
    import rlhf_gym.agents

    others = (getattr(rlhf_gym.agents, name) for name in AGENTS.values())
    return next((other.__name__ for other in others if other is not cls and setting in other.Settings.names()), None)


def needs_more_than_settings(cls: type[TokenAlgorithm]) -> bool:
    """True for an agent that must be given something that no configuration can hold, such as SFT's data."""
    from rlhf_gym.agents.common.settings import settings_of

    return any(known.is_argument and known.default is MISSING for known in settings_of(cls.Settings).values())
