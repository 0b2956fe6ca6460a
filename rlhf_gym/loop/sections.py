"""The keys of a configuration's sections: the loop's own, and the settings of the chosen agent and of the reward model's fit.

An agent's settings are one dataclass, ``Agent.Settings``; those of a fit are :class:`~rlhf_gym.reward_model.FitConfig`. The
sections ``agent`` and ``reward_model`` hold the loop's own keys and then these, so that a run reaches every setting, those of a
user's own agent included. Agents are imported only when the keys of these two sections are needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.agent_catalogue import LOOP_KEYS_FOR, RUN_DEFAULTS, SET_ELSEWHERE, find_agent, other_agent_with
from rlhf_gym.loop.config import SECTIONS, AgentConfig
from rlhf_gym.ranges import bounds_in_words, bounds_of, is_within

DEFAULT_AGENT: str = next(f.default for f in fields(AgentConfig) if f.name == "name")  # type: ignore[assignment]


@dataclass(frozen=True)
class Key:
    """One setting of a configuration.

    Attributes:
        name: section and key, e.g. ``agent.kl_coef``.
        type: its type, e.g. ``float | None``.
        default: the value where none is given.
        help: one sentence.
        limits: the bounds of its value, by ``at_least``, ``above``, ``at_most``, ``below``.
    """

    name: str
    type: Any
    default: Any
    help: str
    limits: Mapping[str, float]

    @property
    def bounds(self) -> str:
        """The limits in words; empty where there are none."""
        return bounds_in_words(self.limits)

    def check(self, value: Any) -> None:
        """Refuse a number out of bounds.

        Raises:
            ConfigError: names the key, its bounds and the value.
        """
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not is_within(value, self.limits):
            raise ConfigError(f"{self.name} must be {self.bounds}, got {value}")


@cache
def keys(section: str, agent: str = DEFAULT_AGENT) -> dict[str, Key]:
    """The keys of a section by name, in order.

    Args:
        section: one of :data:`~rlhf_gym.loop.config.SECTIONS`.
        agent: the agent whose settings the section ``agent`` holds.

    Raises:
        ConfigError: there is no such agent.
    """
    cls = SECTIONS[section]
    found = [_key(section, cls, f) for f in fields(cls) if f.metadata]
    if section == "agent":
        found = _agent_keys(found, agent)
    if section == "reward_model":
        from rlhf_gym.reward_model import FitConfig

        found += [_key(section, FitConfig, f) for f in fields(FitConfig) if f.name not in SET_ELSEWHERE]
    return {key.name.partition(".")[2]: key for key in found}


def _key(section: str, cls: type, f: Field[Any]) -> Key:
    default = f.default if f.default is not MISSING else f.default_factory() if callable(f.default_factory) else None
    return Key(f"{section}.{f.name}", get_type_hints(cls)[f.name], default, f.metadata["help"], bounds_of(f.metadata))


def _agent_keys(own: list[Key], agent: str) -> list[Key]:
    """The loop's own keys that this agent needs, then the agent's settings that no other section sets."""
    from rlhf_gym.agents.common.settings import settings_of

    settings = find_agent(agent).Settings
    hints, names = get_type_hints(settings) | {"n_episodes": int}, settings.names()  # a run always names their number
    found = [
        key for key in own if not (known_by := LOOP_KEYS_FOR.get(key.name.partition(".")[2])) or names & {*known_by}
    ]
    for name, known in settings_of(settings).items():
        if known.is_argument or name in SET_ELSEWHERE:
            continue
        default = RUN_DEFAULTS.get(name, None if known.default is MISSING else known.default)
        found.append(Key(f"agent.{name}", hints[name], default, re.sub(r"\bNone\b", "null", known.help), known.bounds))
    return found


def adapted_defaults(given: Mapping[str, Any], agent: str) -> dict[str, Any]:
    """The defaults of the section ``agent`` that adapt to what was given, by name.

    Args:
        given: the section's values by name.
        agent: the agent's name.
    """
    known, n_envs = keys("agent", agent), given.get("n_envs")
    episodes = given.get("n_episodes", known["n_episodes"].default)
    if n_envs is not None and "n_episodes" not in given:
        episodes = max(episodes // n_envs, 1) * n_envs
    chosen = {**given, "n_episodes": episodes}
    return {"n_episodes": episodes, **find_agent(agent).Settings.adapted_defaults(chosen, n_envs or episodes)}


def unknown_agent_key(name: str, agent: str) -> str | None:
    """Say why the section ``agent`` lacks a key that exists elsewhere; None for a misspelling.

    Args:
        name: the key.
        agent: the agent's name.
    """
    cls = find_agent(agent)
    if name in SET_ELSEWHERE:
        return f"agent.{name} is set by {SET_ELSEWHERE[name]}"
    if name in cls.Settings.names():
        return f"agent.{name} is an argument of {cls.__name__} that a run does not set"
    if other_agent_with(name, cls):
        try:
            cls.Settings.of({name: None}, cls.__name__)
        except ConfigError as error:  # says which agents have it
            return f"agent.{name}: {error}"
    return None
