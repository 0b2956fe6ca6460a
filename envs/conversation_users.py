"""Users by their names: scripted, a language model, a service, a person in the browser; swapping them is one argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_gym.errors import ConfigError
from rlhf_gym.judge.chat_user import ChatUser
from rlhf_gym.objects import load_object
from rlhf_gym.tasks.users import ModelUser, ScriptedUser, User

UserSpec = Callable[..., Any] | Sequence[str] | Mapping[str, Any] | str
"""A user; a list of lines; a name; or a mapping of the options of one.

Names: ``"scripted:FILE"`` (a YAML or JSON list of lines, or a mapping of the options of
:class:`~rlhf_gym.tasks.users.ScriptedUser`), ``"lm:MODEL"`` (``lm:embedded``, a path, a name of the hub), ``"chat:URL"`` (a
chat-completions service; ``chat:URL#MODEL`` where it serves several), ``"web"`` (a person in the browser) and
``"module:function"``. Mappings have a key ``lines``, ``model``, ``chat`` or ``web`` besides the user's other options.
"""

WEB = "rlhf_gym.web.talking:WebUser"
"""The place of the user in the browser; its libraries are an extra, and it is loaded when it is asked for."""


def as_user(spec: UserSpec) -> User:
    """A user from what an environment was given.

    Raises:
        ConfigError: nothing that could be one.
    """
    if isinstance(spec, str):
        return _by_name(spec)
    if isinstance(spec, Mapping):
        return _by_options(spec)
    if callable(spec):
        return spec
    return ScriptedUser(spec)


def _by_name(name: str) -> User:
    kind, _, rest = name.partition(":")
    if name == "web":
        return _by_options({"web": None})
    if kind == "scripted" and rest:
        return _from_file(rest)
    if kind == "lm" and rest:
        return ModelUser(rest)
    if kind == "chat" and rest:
        return ChatUser(rest)
    if ":" not in name and not name.endswith(".py"):
        raise ConfigError(
            f"there is no user {name!r}; expected scripted:FILE, lm:MODEL, chat:URL, web or module:function, or a list of lines"
        )
    found: User = load_object(name, kind="user")
    return found


def _by_options(spec: Mapping[str, Any]) -> User:
    """A user from a mapping, one of whose keys says which."""
    kinds: dict[str, Callable[..., User]] = {"lines": ScriptedUser, "model": ModelUser, "chat": ChatUser, "web": _web}
    kind = next((k for k in kinds if k in spec), None)
    if kind is None:
        raise ConfigError(
            f"a user needs 'lines', 'model', 'chat' or 'web', got {', '.join(map(repr, spec)) or 'nothing'}"
        )
    options = dict(spec)
    first = {"chat": "url", "web": "store"}.get(kind, kind)
    options[first] = options.pop(kind)
    try:
        return kinds[kind](**options)
    except TypeError as error:
        raise ConfigError(f"a user was given options that it does not take: {error}") from error


def _web(**options: Any) -> User:
    made: User = load_object(WEB, kind="user")(**options)
    return made


def _from_file(path: str) -> User:
    """A scripted user from a file.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"the user's lines in {path} cannot be read: {error}") from error
    if isinstance(found, Mapping) and "lines" in found:
        return _by_options(found)
    if not isinstance(found, list):
        raise ConfigError(f"{path} holds {type(found).__name__}; expected a list of lines, or a mapping with 'lines'")
    return ScriptedUser(found)
