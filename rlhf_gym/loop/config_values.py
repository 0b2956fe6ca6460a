"""The value of one setting: read from a text, converted to the setting's type, written as YAML."""

from __future__ import annotations

import collections.abc
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from rlhf_gym.errors import ConfigError
from rlhf_gym.text import nearest


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


def convert(value: Any, expected: Any, name: str) -> Any:
    """Make a value of the expected type.

    An integer is taken for a float, and so is a text such as ``1e-4``, which YAML 1.1 does not read as a number. A list is
    taken for a tuple, and so is a text: its parts between commas. Nothing else is converted.

    Args:
        value: the given value.
        expected: the type: a plain one, a literal, a tuple or list of such, a mapping, or any of these or None.
        name: the setting's full name, for messages.

    Raises:
        ConfigError: the value is of another type; says what was given and what is expected.
    """
    origin, args = get_origin(expected) or expected, get_args(expected)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        return convert(value, next(a for a in args if a is not NoneType), name)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        hint = nearest(str(value), list(map(str, args)))
        raise ConfigError(f"{name} must be one of {', '.join(map(str, args))}; got {describe(value)}{hint}")
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{name} must be a mapping of names to values, got {describe(value)}")
        return dict(value)
    if origin in (tuple, list):
        if isinstance(value, str):
            value = [part for part in (part.strip() for part in value.split(",")) if part]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list, got {describe(value)}")
        return origin(convert(item, args[0], f"{name}[{i}]") if args else item for i, item in enumerate(value))
    if expected not in (int, float, bool, str):
        raise ConfigError(
            f"{name} cannot be set from a configuration, which holds numbers, texts, lists and mappings; leave it out"
        )
    if expected is float and not isinstance(value, bool) and (number := _finite(value)) is not None:
        return number
    if expected is not float and isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    finite = "a finite number" if isinstance(value, float) else "a number"
    words = {int: "a whole number", float: finite, bool: "true or false", str: "a text"}
    raise ConfigError(f"{name} must be {words[expected]}, got {describe(value)}")


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def describe(value: object) -> str:
    """Write a value with its type, for messages."""
    if value is None or isinstance(value, bool):
        return to_yaml(value)
    kind = {str: "the text", int: "the number", float: "the number", list: "the list"}.get(type(value))
    return f"{kind or type(value).__name__} {value!r}"


def literal_choices(expected: Any) -> Sequence[str]:
    """The texts that a literal type (or None) allows; empty for other types."""
    parts = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def to_yaml(value: Any) -> str:
    """Write a value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    texts = [item for item in (plain if isinstance(plain, list) else [plain]) if isinstance(item, str)]
    # Line ends and the like stand as escapes, which YAML has in double quotes only.
    printable = all(text.isprintable() for text in texts)
    style = None if printable else '"'
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=printable, default_style=style)
    return str(text).removesuffix("...\n").strip()
