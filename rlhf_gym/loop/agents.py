"""Agents by name: ours, and classes in files and modules of the user's own; their settings checked before any work starts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import rlhf_gym.agents
from rlhf_gym.agents import TokenAlgorithm
from rlhf_gym.agents.common.settings import settings_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import AgentConfig
from rlhf_gym.objects import is_place, load_object
from rlhf_gym.text import nearest

AGENTS = {
    "ppo": "PPO", "nlpo": "NLPO", "trpo": "TRPO", "a2c": "A2C", "grpo": "GRPO", "gspo": "GSPO", "rloo": "RLOO",
    "reinforce": "REINFORCE", "reinforce_plus_plus": "ReinforcePlusPlus", "online_dpo": "OnlineDPO", "raft": "RAFT",
}  # fmt: skip
OF_THE_LOOP = {"name", "iterations", "n_envs", "learning_rate", "lr_schedule", "checkpoint_every"}


def find_agent(name: str) -> type[TokenAlgorithm]:
    """The class of that name.

    Raises:
        ConfigError: there is none, or what is there is no agent.
    """
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


def agent_options(config: AgentConfig) -> dict[str, Any]:
    """The constructor's arguments that the configuration gives; what it leaves at null is the agent's own business.

    Raises:
        ConfigError: a setting that this agent does not have, or that contradicts another; no such agent.
    """
    cls = find_agent(config.name)
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in OF_THE_LOOP}
    options = {name: value for name, value in values.items() if value is not None}
    known = cls.Settings.names()
    if strange := [name for name in options if name not in known]:
        raise ConfigError(f"agent.{strange[0]} is set, but {cls.__name__} has no such setting; leave it at null")
    if options.get("clip_range_vf") == 0:
        options["clip_range_vf"] = None
    if options.get("value_start") == "policy":
        del options["value_start"]
    group_size = getattr(cls.Settings.of(options, cls.__name__), "group_size", cls.group_size)
    n_envs = config.n_envs or config.n_episodes
    if n_envs % group_size:
        raise ConfigError(
            f"{cls.__name__} puts {group_size} neighbouring environments in a group (agent.group_size), which must "
            f"divide their number ({n_envs}; agent.n_envs or agent.n_episodes)"
        )
    return options


def learning_rate(config: AgentConfig) -> float:
    """The rate at the start of a round: the configuration's, or the agent's own."""
    if config.learning_rate is not None:
        return config.learning_rate
    own = settings_of(find_agent(config.name).Settings)["learning_rate"].default
    return float(own(1.0) if callable(own) else own)
