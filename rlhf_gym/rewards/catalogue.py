"""The built-in rewards as `rlhf-gym rewards` lists them: each in the words of its own docstring."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

from rlhf_gym.rewards.spec import BUILT_IN, built_in

_MARKUP = re.compile(r":\w+:`~?([^`]*)`|``([^`]*)``")


def listing() -> str:
    """A line for each built-in reward: its name and what it gives."""
    width = max(map(len, BUILT_IN))
    return "\n".join(f"{name:{width}}  {_words(built_in(name)).splitlines()[0]}" for name in BUILT_IN)


def described(name: str) -> str:
    """What one reward gives, and its options with their defaults.

    Raises:
        ConfigError: there is no such built-in reward.
    """
    factory = built_in(name)
    options = [
        f"{p.name}: {'...' if p.default is p.empty else json.dumps(p.default)}"
        for p in inspect.signature(factory).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    line = f"{{reward: {name}{''.join(', ' + option for option in options)}}}"
    return f"{_words(factory)}\n\nIn YAML, and on a command line in quotes:\n    {line}"


def _words(factory: Any) -> str:
    """A docstring without its markup, and without what says which errors Python raises."""
    text = (inspect.getdoc(factory) or "").partition("\n\nRaises:")[0].partition("\n\n>>>")[0]
    return _MARKUP.sub(lambda found: (found[1] or found[2]).rpartition(".")[2] if found[1] else found[2], text)
