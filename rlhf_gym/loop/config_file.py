"""A configuration from its YAML file and ``--set``, checked key by key, and back to YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from rlhf_gym.errors import ConfigError, first_line
from rlhf_gym.loop.agent_catalogue import find_agent
from rlhf_gym.loop.config import SECTIONS, Config
from rlhf_gym.loop.config_checks import check_config
from rlhf_gym.loop.config_values import convert, describe, literal_choices, parse, to_yaml
from rlhf_gym.loop.sections import DEFAULT_AGENT, Key, adapted_defaults, keys, unknown_agent_key
from rlhf_gym.text import closest

Settings = dict[str, dict[str, Any]]
"""A configuration as plain values by section and key; keys that are left out have their defaults."""

QUICK: Settings = {
    "sampling": {"prompts": 32},
    "reward_model": {"epochs": 1},
    "agent": {"iterations": 3, "n_episodes": 32, "n_epochs": 2},
    "evaluation": {"prompts": 32},
}
"""Settings of ``--quick`` with PPO: the whole loop at a size that only shows that it works."""

HEAVY_SECTIONS = ("reward_model", "agent")
"""Sections whose settings stand in dataclasses that take seconds to import: only :func:`build` knows their keys."""


class Override(str):
    """The text of a setting in a heavy section, which :func:`build` parses."""


def build(settings: Settings) -> Config:
    """Make a configuration from plain values, with defaults for all others.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of bounds, or settings that contradict one another; each by its
            full name.
    """
    check_keys(settings)
    agent = agent_of(settings)
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        known = keys(section, agent)
        given = settings.get(section) or {}
        if section == "agent":
            given = {**preset_settings(given, agent), **given}
        if section in HEAVY_SECTIONS:
            _check_known(section, given, known, agent)
        values = {name: _value(given, name, key) for name, key in known.items()}
        if section == "agent":
            values |= adapted_defaults({name: values[name] for name in given}, agent)
        own = {f.name: values.pop(f.name) for f in fields(cls) if f.name in values}
        sections[section] = cls(**own, settings=values) if section in HEAVY_SECTIONS else cls(**own)
    config = Config(**sections)
    check_config(config)
    return config


def quick(agent: str) -> Settings:
    """The settings of ``--quick``: those of :data:`QUICK` that the agent has; no ``n_epochs`` for an agent that does not clip.

    Args:
        agent: the agent's name.
    """
    known = keys("agent", agent)
    values = {name: value for name, value in QUICK["agent"].items() if name in known}
    if "clip_range" in known and known["clip_range"].default is None:
        del values["n_epochs"]  # a plain policy gradient is right for fresh samples only
    return {**QUICK, "agent": values}


def agent_of(settings: Settings) -> str:
    """The name of the agent that some settings choose."""
    name = (settings.get("agent") or {}).get("name", DEFAULT_AGENT)
    return str(convert(name, str, "agent.name"))


def preset_settings(given: Mapping[str, Any], agent: str) -> dict[str, Any]:
    """The settings of the preset that the section ``agent`` names; empty where it names none.

    Args:
        given: the section's values by name.
        agent: the agent's name.

    Raises:
        ConfigError: the agent has no such preset.
    """
    name = _value(given, "preset", keys("agent", agent)["preset"])
    if name is None:
        return {}
    try:
        return find_agent(agent).preset(name)
    except ConfigError as error:
        raise ConfigError(f"agent.preset: {error}") from None


def _value(given: Mapping[str, Any], name: str, key: Key) -> Any:
    if name not in given:
        return key.default
    value = given[name]
    converted = convert(parse(value, key.type) if isinstance(value, Override) else value, key.type, key.name)
    key.check(converted)
    return converted


def merge(*layers: Settings) -> Settings:
    """Merge settings; where several have a key, the last one's value counts."""
    out: Settings = {}
    for layer in layers:
        for section, values in layer.items():
            out.setdefault(section, {}).update(values)
    return out


def load_settings(path: Path | str) -> Settings:
    """Read a YAML file of settings.

    Raises:
        ConfigError: there is no such file, it is not YAML, or not a mapping of sections with known keys.
    """
    path = Path(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"there is no configuration file {str(path)!r}; `rlhf-gym config > {path.name}` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{path}{where}: not YAML ({problem})") from error
    if settings is None:
        return {}
    try:
        check_keys(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return {str(name): dict(section or {}) for name, section in settings.items()}


def parse_override(text: str) -> Settings:
    """Parse ``section.key=value``; the value is YAML (``null``, ``true``, ``0.05``, ``[a, b]``).

    The value of a setting that is a text is taken as it is (a path may look like YAML), but for ``null``. Values of
    :data:`HEAVY_SECTIONS` stay texts until :func:`build` knows their types.

    Raises:
        ConfigError: not of that form, or no such key.

    >>> parse_override("sampling.top_p=0.9")
    {'sampling': {'top_p': 0.9}}
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if equals and not dot and (near := _key_elsewhere(section)):
        raise ConfigError(f"--set takes section.key=value; did you mean {near!r}?")
    if not equals or not dot:
        raise ConfigError(f"--set takes section.key=value, e.g. agent.kl_coef=0.05; got {text!r}")
    check_keys({section: {key: value}})
    return {section: {key: Override(value) if section in HEAVY_SECTIONS else parse(value, keys(section)[key].type)}}


def check_keys(settings: object) -> None:
    """Refuse unknown sections and keys, and name the nearest; keys of :data:`HEAVY_SECTIONS` are left to :func:`build`.

    Raises:
        ConfigError: an unknown section or key.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"expected sections ({', '.join(SECTIONS)}), got {describe(settings)}")
    for section, values in settings.items():
        if section not in SECTIONS:
            close = closest(str(section), SECTIONS) or _key_elsewhere(str(section))
            hint = f"did you mean {close!r}?" if close else f"expected one of {', '.join(SECTIONS)}"
            raise ConfigError(f"there is no section {section!r}; {hint}")
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"section {section!r} must hold keys and values, got {describe(values)}")
        if section not in HEAVY_SECTIONS:
            _check_known(section, values or {}, keys(section))


def _check_known(section: str, given: Mapping[str, Any], known: Mapping[str, Key], agent: str | None = None) -> None:
    for name in given:
        if name not in known:
            reason = unknown_agent_key(str(name), agent) if agent is not None and section == "agent" else None
            raise ConfigError(reason or f"there is no key '{section}.{name}'; {_nearest(section, str(name), known)}")


def _nearest(section: str, key: str, known: Mapping[str, Key]) -> str:
    """Suggest a key for a wrong one: the same key of another section first, then the nearest spelling."""
    match = closest(key, known)
    close = _key_elsewhere(key, cutoff=1.0) or (match and f"{section}.{match}") or _key_elsewhere(key)
    return f"did you mean {close!r}?" if close else f"expected one of {', '.join(known)}"


def _key_elsewhere(key: str, cutoff: float = 0.7) -> str | None:
    """The full name of the nearest key of any section; None if none is near."""
    names = {name: known.name for section in SECTIONS for name, known in keys(section).items()}
    match = closest(key, names, cutoff)
    return match and names[match]


def to_settings(config: Config) -> Settings:
    """All settings of a configuration as plain values: the inverse of :func:`build`."""
    return {
        section: {name: _plain(config, section, name) for name in keys(section, config.agent.name)}
        for section in SECTIONS
    }


def _plain(config: Config, section: str, name: str) -> Any:
    holder = getattr(config, section)
    value = holder.settings[name] if section in HEAVY_SECTIONS and name in holder.settings else getattr(holder, name)
    return list(value) if isinstance(value, tuple) else value


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, by their full names, with both values; None for a setting that one of the agents lacks.

    Args:
        old: one configuration.
        new: the other.
    """
    before, after = to_settings(old), to_settings(new)
    pairs = {
        f"{section}.{name}": (before[section].get(name), after[section].get(name))
        for section in SECTIONS
        for name in {**before[section], **after[section]}
    }
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def dump(config: Config, *, with_help: bool = False) -> str:
    """Write a configuration as YAML.

    Args:
        config: the configuration to write.
        with_help: write each key's help and bounds above it, as a comment.
    """
    lines = [] if with_help else ["# The resolved configuration of this run; `rlhf-gym config` explains every key."]
    values = to_settings(config)
    for section, cls in SECTIONS.items():
        if with_help:
            lines += [""] * bool(lines) + [f"# {(cls.__doc__ or '').strip()}"]
        lines.append(f"{section}:")
        for name, key in keys(section, config.agent.name).items():
            if with_help:
                lines += textwrap.wrap(_help(key), 110, initial_indent="  # ", subsequent_indent="  #   ")
            lines.append(f"  {name}: {to_yaml(values[section][name])}")
    return "\n".join(lines) + "\n"


def _help(key: Key) -> str:
    choices = literal_choices(key.type)
    named = f" ({key.bounds})" if key.bounds else f" ({' | '.join(map(str, choices))})" if choices else ""
    return key.help + named
