"""Configurations as YAML and as overrides: reading, checking, merging, writing; messages name the nearest key."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.agent_catalogue import find_agent, needs_more_than_settings
from rlhf_gym.loop.config import SECTIONS, AgentConfig, Config
from rlhf_gym.loop.sections import DEFAULT_AGENT, Key, keys, unknown_agent_key
from rlhf_gym.text import closest, nearest

Settings = dict[str, dict[str, Any]]
"""A configuration as plain values: section, key, value. May hold only some of them."""

QUICK: Settings = {
    "sampling": {"prompts": 32},
    "reward_model": {"epochs": 1},
    "agent": {"iterations": 3, "n_episodes": 32, "batch_size": 16, "n_epochs": 2},
    "evaluation": {"prompts": 32},
}
"""Settings of ``--quick`` with PPO: the whole loop at a size that only shows that it works."""


LATE = ("reward_model", "agent")
"""Sections whose keys :func:`build` checks: they come from dataclasses elsewhere, whose import takes seconds."""


class Override(str):
    """The text of a setting of such a section; :func:`build` finds its type."""


def build(settings: Settings) -> Config:
    """Make a configuration from plain values, with defaults elsewhere.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, each by its full name.
    """
    check_keys(settings)
    agent = agent_of(settings)
    sections: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        known = keys(section, agent)
        given = settings.get(section) or {}
        if section in LATE:
            _check_known(section, given, known, agent)
        values = {name: _value(given, name, key) for name, key in known.items()}
        own = {f.name: values.pop(f.name) for f in fields(cls) if f.name in values}  # type: ignore[arg-type]
        sections[section] = cls(**own, settings=values) if section in LATE else cls(**own)  # type: ignore[call-arg]
    _check_agent(sections["agent"])
    return Config(**sections)


def quick(agent: str) -> Settings:
    """The settings of ``--quick``: those of :data:`QUICK` that the agent has, without ``n_epochs`` for one that does not clip.

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


def _value(given: Mapping[str, Any], name: str, key: Key) -> Any:
    if name not in given:
        return key.default
    value = given[name]
    converted = convert(parse(value, key.type) if isinstance(value, Override) else value, key.type, key.name)
    key.check(converted)
    return converted


def _check_agent(config: AgentConfig) -> None:
    """Refuse settings of an agent that contradict one another."""
    cls = find_agent(config.name)
    size = config.settings.get("group_size", cls.group_size)
    if config.environments % size:
        raise ConfigError(
            f"{cls.__name__} puts {size} environments in a group (agent.group_size), which must divide their number "
            f"({config.environments}; agent.n_envs, or agent.n_episodes where that is null)"
        )
    if needs_more_than_settings(cls):
        return  # the run's task gives it, later
    try:
        cls.Settings.of(config.settings, cls.__name__)
    except ConfigError as error:
        raise ConfigError(f"agent {config.name}: {error}") from None


def merge(*layers: Settings) -> Settings:
    """Merge layers of settings; for each key the last layer that has it counts."""
    out: Settings = {}
    for layer in layers:
        for section, values in layer.items():
            out.setdefault(section, {}).update(values)
    return out


def load_settings(path: Path | str) -> Settings:
    """Read a YAML file.

    Raises:
        ConfigError: no such file, no YAML, or not a mapping of sections.
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
        raise ConfigError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if settings is None:
        return {}
    try:
        check_keys(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return {str(name): dict(section or {}) for name, section in settings.items()}


def parse_override(text: str) -> Settings:
    """``section.key=value`` as settings; the value is YAML (``null``, ``true``, ``0.05``, ``[a, b]``).

    Where the setting is a text, the value is taken as it stands (a path may look like YAML), ``null`` excepted. Settings
    of the sections :data:`LATE` stay texts until :func:`build` knows their types.

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
    return {section: {key: Override(value) if section in LATE else parse(value, keys(section)[key].type)}}


def parse(text: str, expected: Any) -> Any:
    """Parse a value: YAML, or the text itself where a text is expected.

    Args:
        text: e.g. ``0.05``.
        expected: the setting's type.
    """
    optional = get_origin(expected) in (Union, UnionType)
    if expected is str or (optional and str in get_args(expected) and text != "null"):
        return str(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return str(text)


def check_keys(settings: object) -> None:
    """Refuse unknown sections and keys, and name the nearest; the keys of :data:`LATE` sections are left to :func:`build`.

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
        if section not in LATE:
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


def convert(value: Any, expected: Any, name: str) -> Any:
    """Make a value of the expected type.

    Integers do as floats, and so do texts such as ``1e-4``, which YAML 1.1 does not take for a number. Lists do as
    tuples, and so does a text, as its parts between commas. Nothing else is converted.

    Args:
        value: the given value.
        expected: the type: a plain one, a literal, a tuple or list of such, a mapping, or any of these or None.
        name: the setting's full name, for messages.

    Raises:
        ConfigError: the value is of another type; says what was given and what is expected.
    """
    origin, args = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        return convert(value, next(a for a in args if a is not NoneType), name)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        hint = nearest(str(value), list(map(str, args)))
        raise ConfigError(f"{name} must be one of {', '.join(map(str, args))}; got {describe(value)}{hint}")
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} must be a mapping of names to values, got {describe(value)}")
        return dict(value)
    if origin in (tuple, list):
        if isinstance(value, str):
            value = [part for part in (part.strip() for part in value.split(",")) if part]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list, got {describe(value)}")
        return origin(convert(item, args[0], f"{name}[{i}]") for i, item in enumerate(value))
    if expected is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif (expected is bool or not isinstance(value, bool)) and isinstance(value, expected):
        return value
    if expected not in (int, float, bool, str):
        raise ConfigError(
            f"{name} cannot be set from a configuration, which holds numbers and texts only; leave it out"
        )
    finite = "a finite number" if isinstance(value, float) else "a number"
    words = {int: "a whole number", float: finite, bool: "true or false", str: "a text"}
    raise ConfigError(f"{name} must be {words[expected]}, got {describe(value)}")


def describe(value: object) -> str:
    """Write a value with its type, for messages."""
    if value is None or isinstance(value, bool):
        return to_yaml(value)
    kind = {str: "the text", int: "the number", float: "the number", list: "the list"}.get(type(value))
    return f"{kind or type(value).__name__} {value!r}"


def all_keys(agent: str = DEFAULT_AGENT) -> Iterator[tuple[str, str, Key]]:
    """Every setting of a configuration with its section and name, in order.

    Args:
        agent: the agent whose settings are among them.
    """
    for section in SECTIONS:
        for name, key in keys(section, agent).items():
            yield section, name, key


def to_settings(config: Config) -> Settings:
    """All settings of a configuration as plain values, the inverse of :func:`build`."""
    return {
        section: {name: _plain(config, section, name) for name in keys(section, config.agent.name)}
        for section in SECTIONS
    }


def _plain(config: Config, section: str, name: str) -> Any:
    holder = getattr(config, section)
    value = holder.settings[name] if section in LATE and name in holder.settings else getattr(holder, name)
    return list(value) if isinstance(value, tuple) else value


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The full names of the settings that differ, with both values; None where one of the agents has no such setting.

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
    """Write the configuration as YAML.

    Args:
        config: the configuration to write.
        with_help: put each key's help and bounds above it, as comments.
    """
    lines = [] if with_help else ["# The resolved configuration of this run; `rlhf-gym config` explains every key."]
    values = to_settings(config)
    for section, cls in SECTIONS.items():
        if with_help:
            lines += ["", f"# {(cls.__doc__ or '').strip()}"] if lines else [f"# {(cls.__doc__ or '').strip()}"]
        lines.append(f"{section}:")
        for name, key in keys(section, config.agent.name).items():
            if with_help:
                lines += textwrap.wrap(_help(key), 110, initial_indent="  # ", subsequent_indent="  #   ")
            lines.append(f"  {name}: {to_yaml(values[section][name])}")
    return "\n".join(lines) + "\n"


def _help(key: Key) -> str:
    choices = literal_choices(key.type)
    named = f" ({key.bounds})" if key.bounds else f" ({' | '.join(map(str, choices))})" if choices else ""
    return re.sub(r"\bNone\b", "null", key.help) + named


def literal_choices(expected: Any) -> Sequence[str]:
    """The texts that a field of literals accepts, without None; empty for other fields."""
    parts = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def to_yaml(value: Any) -> str:
    """Write one value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    texts = [item for item in (plain if isinstance(plain, list) else [plain]) if isinstance(item, str)]
    # Line ends and the like stand as escapes, which YAML has in double quotes only.
    printable = all(text.isprintable() for text in texts)
    style = None if printable else '"'
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=printable, default_style=style)
    return str(text).removesuffix("...\n").strip()
