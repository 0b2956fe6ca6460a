"""Configurations as YAML and as overrides: reading, checking, merging, writing; messages name the nearest key."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import SECTIONS, Config, Section, bounds
from rlhf_gym.text import closest, nearest

Settings = dict[str, dict[str, Any]]
"""A configuration as plain values: section, key, value. May hold only some of them."""

QUICK: Settings = {
    "sampling": {"prompts": 32},
    "reward_model": {"epochs": 1},
    "agent": {"iterations": 3, "n_episodes": 32, "batch_size": 16, "n_epochs": 2},
    "evaluation": {"prompts": 32},
}
"""What ``--quick`` sets: the whole loop at a size that only shows that it works."""


def build(settings: Settings) -> Config:
    """A configuration from plain values, defaults elsewhere.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, each by its full name.
    """
    check_keys(settings)
    sections = {
        name: cls(**{key: convert(value, hints(cls)[key], f"{name}.{key}") for key, value in settings[name].items()})
        for name, cls in SECTIONS.items()
        if name in settings
    }
    return Config(**sections)  # type: ignore[arg-type]


def merge(*layers: Settings) -> Settings:
    """Later layers win, key by key."""
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

    Where the setting is a text, the value is taken as it stands (a path may look like YAML), ``null`` excepted.

    Raises:
        ConfigError: not of that form, or no such key.

    >>> parse_override("agent.kl_coef=0.1")
    {'agent': {'kl_coef': 0.1}}
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if equals and not dot and (near := _key_elsewhere(section)):
        raise ConfigError(f"--set takes section.key=value; did you mean {near!r}?")
    if not equals or not dot:
        raise ConfigError(f"--set takes section.key=value, e.g. agent.kl_coef=0.05; got {text!r}")
    check_keys({section: {key: value}})
    expected = hints(SECTIONS[section])[key]
    optional = get_origin(expected) in (Union, UnionType)
    if expected is str or (optional and str in get_args(expected) and value != "null"):
        return {section: {key: value}}
    try:
        return {section: {key: yaml.safe_load(value)}}
    except yaml.YAMLError:
        return {section: {key: value}}


def check_keys(settings: object) -> None:
    """Every section and key exists, or a message that names the nearest one."""
    if not isinstance(settings, Mapping):
        raise ConfigError(f"expected sections ({', '.join(SECTIONS)}), got {describe(settings)}")
    for section, values in settings.items():
        if section not in SECTIONS:
            raise ConfigError(f"there is no section {section!r}; {_nearest(str(section))}")
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"section {section!r} must hold keys and values, got {describe(values)}")
        known = [f.name for f in fields(SECTIONS[section])]  # type: ignore[arg-type]
        for key in values or {}:
            if key not in known:
                raise ConfigError(f"there is no key '{section}.{key}'; {_nearest(f'{section}.{key}')}")


def _nearest(name: str) -> str:
    """Which valid key a wrong one was meant to be: the same key elsewhere first, then the likeliest spelling."""
    section, _, key = name.partition(".")
    if section not in SECTIONS:
        close = closest(section, SECTIONS) or _key_elsewhere(section)
        return f"did you mean {close!r}?" if close else f"expected one of {', '.join(SECTIONS)}"
    own = [f.name for f in fields(SECTIONS[section])]  # type: ignore[arg-type]
    match = closest(key, own)
    close = _key_elsewhere(key, cutoff=1.0) or (match and f"{section}.{match}") or _key_elsewhere(key)
    return f"did you mean {close!r}?" if close else f"expected one of {', '.join(own)}"


def _key_elsewhere(key: str, cutoff: float = 0.7) -> str | None:
    """The full name of the key that is likest, whatever its section; None where none is like it."""
    names = {f.name: f"{section}.{f.name}" for section, f in all_fields()}
    match = closest(key, names, cutoff)
    return match and names[match]


def convert(value: Any, expected: Any, name: str) -> Any:
    """A value of the expected type, or a message that says what was given and what is expected.

    Integers do as floats, and so do texts such as ``1e-4``, which YAML 1.1 does not take for a number. Lists do as
    tuples, and so does a text, as its parts between commas. Nothing else is bent into shape.
    """
    origin, args = get_origin(expected), get_args(expected)
    if origin in (Union, UnionType):
        if value is None:
            return None
        return convert(value, next(a for a in args if a is not NoneType), name)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        hint = nearest(str(value), args)
        raise ConfigError(f"{name} must be one of {', '.join(args)}; got {describe(value)}{hint}")
    if origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} must be a mapping of names to values, got {describe(value)}")
        return dict(value)
    if origin is tuple:
        if isinstance(value, str):
            value = [part for part in (part.strip() for part in value.split(",")) if part]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list, got {describe(value)}")
        return tuple(convert(item, args[0], f"{name}[{i}]") for i, item in enumerate(value))
    if expected is float and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif (expected is bool or not isinstance(value, bool)) and isinstance(value, expected):
        return value
    finite = "a finite number" if isinstance(value, float) else "a number"
    words = {int: "a whole number", float: finite, bool: "true or false", str: "a text"}
    raise ConfigError(f"{name} must be {words[expected]}, got {describe(value)}")


def describe(value: object) -> str:
    """A value with its type, for messages."""
    if value is None or isinstance(value, bool):
        return to_yaml(value)
    kind = {str: "the text", int: "the number", float: "the number", list: "the list"}.get(type(value))
    return f"{kind or type(value).__name__} {value!r}"


def hints(cls: type) -> dict[str, Any]:
    """The types of a section's fields."""
    return get_type_hints(cls)


def all_fields() -> Iterator[tuple[str, Field[Any]]]:
    """Every setting with its section's name, in order."""
    for name, cls in SECTIONS.items():
        for f in fields(cls):  # type: ignore[arg-type]
            yield name, f


def to_settings(config: Config) -> Settings:
    """The opposite of :func:`build`, every key named."""
    return {name: _plain(getattr(config, name)) for name in SECTIONS}


def _plain(section: Section) -> dict[str, Any]:
    values = ((f.name, getattr(section, f.name)) for f in fields(section))  # type: ignore[arg-type]
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values}


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The full names of the settings that differ, with both values."""
    before, after = to_settings(old), to_settings(new)
    return {
        f"{section}.{f.name}": (before[section][f.name], after[section][f.name])
        for section, f in all_fields()
        if before[section][f.name] != after[section][f.name]
    }


def dump(config: Config, *, with_help: bool = False) -> str:
    """The configuration as YAML, each key with its help as a comment if asked for."""
    lines = [] if with_help else ["# The resolved configuration of this run; `rlhf-gym config` explains every key."]
    for name, cls in SECTIONS.items():
        if with_help:
            lines += ["", f"# {(cls.__doc__ or '').strip()}"] if lines else [f"# {(cls.__doc__ or '').strip()}"]
        lines.append(f"{name}:")
        for f in fields(cls):  # type: ignore[arg-type]
            value = getattr(getattr(config, name), f.name)
            if with_help:
                lines += textwrap.wrap(_help(cls, f), 110, initial_indent="  # ", subsequent_indent="  #   ")
            lines.append(f"  {f.name}: {to_yaml(value)}")
    return "\n".join(lines) + "\n"


def _help(cls: type, f: Field[Any]) -> str:
    limits = bounds(f.metadata)
    choices = literal_choices(hints(cls)[f.name])
    named = f" ({limits})" if limits else f" ({' | '.join(choices)})" if choices else ""
    return f"{f.metadata['help']}{named}"


def literal_choices(expected: Any) -> Sequence[str]:
    """The texts that a field of literals takes, None apart; empty for other fields."""
    parts = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def to_yaml(value: Any) -> str:
    """One value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    texts = [item for item in (plain if isinstance(plain, list) else [plain]) if isinstance(item, str)]
    # Line ends and the like stand as escapes, which YAML has in double quotes only.
    printable = all(text.isprintable() for text in texts)
    style = None if printable else '"'
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=printable, default_style=style)
    return str(text).removesuffix("...\n").strip()
