"""A tool: a name, a description and a function of texts and numbers that returns a text."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from rlhf_gym.errors import ConfigError, RlhfGymError, TaskError
from rlhf_gym.objects import load_object
from rlhf_gym.text import nearest, shorten, visible

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
TYPES: Mapping[type, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}
"""The types of arguments, and their names for the policy."""

BUILT_IN = {
    "calculator": "rlhf_gym.envs.tools.calculator:calculator_tool",
    "search": "rlhf_gym.envs.tools.document_search:search_tool",
    "python": "rlhf_gym.envs.tools.sandbox:python_tool",
}
"""The place of each built-in tool's factory."""


class ToolError(RlhfGymError):
    """A tool cannot do what a call asks of it; the policy is shown the message, and may try again."""


@dataclass(frozen=True)
class Tool:
    """Something that the policy may call.

    Attributes:
        name: lower-case letters, digits and underscores.
        description: one sentence that the policy is shown.
        run: called with the arguments by name; returns the result as a text. It raises :class:`ToolError` for what the policy
            did wrong; any other error is the tool's own and ends the step. It may be called from several threads at once.
        parameters: the arguments' types (``str``, ``int``, ``float``, ``bool``) by name, in order. The first one is what a tag
            or a code block holds.
        required: names of the arguments that every call must give.
        argument_pattern: a regular expression of the first argument in calls that a mask forces; see
            :meth:`~rlhf_gym.envs.tools.call_format.CallFormat.pattern`.
        example: a first argument, for the instructions.
        slow: True for a tool that waits for something else than this process: agents decode other slots meanwhile.

    Raises:
        ConfigError: a name, a type or a required argument that cannot be.
    """

    name: str
    description: str
    run: Callable[..., str]
    parameters: Mapping[str, type] = field(default_factory=lambda: {"text": str})
    required: frozenset[str] = frozenset({"text"})
    argument_pattern: str = "[a-zA-Z0-9 .,?-]+"
    example: str = "..."
    slow: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"a tool's name must be lower-case letters, digits and underscores, at most 32; got {self.name!r}"
            )
        if not self.parameters:
            raise ConfigError(f"the tool {self.name!r} takes no argument; expected at least one")
        for name, kind in self.parameters.items():
            if kind not in TYPES:
                raise ConfigError(
                    f"argument {name!r} of the tool {self.name!r} has the type {getattr(kind, '__name__', kind)!r}; expected "
                    "str, int, float or bool"
                )
        if unknown := self.required - set(self.parameters):
            raise ConfigError(f"the tool {self.name!r} requires {sorted(unknown)[0]!r}, which is no argument of it")

    @property
    def main(self) -> str:
        """The name of the first argument."""
        return next(iter(self.parameters))

    def signature(self) -> str:
        """The tool in one line, as the policy is shown it: ``search(query: text, count: whole number, optional)``."""
        parts = [
            f"{name}: {TYPES[kind]}{'' if name in self.required else ', optional'}"
            for name, kind in self.parameters.items()
        ]
        return f"{self.name}({', '.join(parts)}): {self.description}"


def function_tool(function: Callable[..., Any]) -> Tool:
    """A plain function as a tool: its name, the first line of its docstring, its parameters.

    Args:
        function: takes texts and numbers by name, annotated; returns what ``str`` can show. An attribute ``slow`` of it is the
            tool's.

    Raises:
        ConfigError: it has no name or no docstring, or parameters that a call cannot give.
    """
    name = getattr(function, "__name__", "")
    lines = (inspect.getdoc(function) or "").splitlines()
    if not name or not lines:
        raise ConfigError(
            f"the tool {name or function!r:.60} needs a name and a docstring, whose first line the policy is shown"
        )
    try:
        hints, signature = get_type_hints(function), inspect.signature(function)
    except (NameError, TypeError, ValueError) as error:
        raise ConfigError(f"the parameters of the tool {name!r} cannot be read: {error}") from error
    parameters: dict[str, type] = {}
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"the tool {name!r} takes {parameter}; expected arguments that have names")
        parameters[parameter.name] = hints.get(parameter.name, str)
    required = frozenset(p.name for p in signature.parameters.values() if p.default is p.empty)
    return Tool(name, lines[0], function, parameters, required, slow=bool(getattr(function, "slow", False)))


ToolSpec = Tool | Callable[..., Any] | str | Mapping[str, Any]
"""A tool, a function, a name (``"calculator"``, ``"module:function"``), or a mapping of one name to the tool's options."""


def as_tools(specs: Sequence[ToolSpec] | ToolSpec) -> tuple[Tool, ...]:
    """The tools that an environment was given.

    Args:
        specs: one or several; see :data:`ToolSpec`.

    Raises:
        ConfigError: none, two of one name, or something that is no tool.
    """
    listed = [specs] if isinstance(specs, str | Mapping | Tool) or callable(specs) else list(specs)
    tools = tuple(_as_tool(spec) for spec in listed)
    if not tools:
        raise ConfigError(f"no tools were given; expected some of {', '.join(BUILT_IN)}, or functions of your own")
    names = [tool.name for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two tools have the name {twice[0]!r}; give one of them another")
    return tools


def _as_tool(spec: ToolSpec) -> Tool:
    if isinstance(spec, Tool):
        return spec
    if isinstance(spec, str):
        spec = {spec: {}}
    if isinstance(spec, Mapping):
        return _by_name(spec)
    if callable(spec):
        return function_tool(spec)
    raise ConfigError(f"{spec!r:.60} is no tool; expected a name, a function, a Tool or a mapping of a name to options")


def _by_name(spec: Mapping[str, Any]) -> Tool:
    if len(spec) != 1:
        raise ConfigError(f"a tool's mapping has one key, its name; got {', '.join(map(repr, spec)) or 'none'}")
    [(name, options)] = spec.items()
    if name not in BUILT_IN and ":" not in name:
        raise ConfigError(f"there is no tool {name!r}{nearest(name, BUILT_IN)}; expected one of {', '.join(BUILT_IN)}, or "
                          "module:function")  # fmt: skip
    if not isinstance(options, Mapping):
        raise ConfigError(f"the options of the tool {name!r} must be a mapping, got {type(options).__name__}")
    found = load_object(BUILT_IN.get(name, name), kind="tool", call=False)
    if name not in BUILT_IN and not options:
        return _as_tool(found)
    try:
        made = found(**options)
    except TypeError as error:
        raise ConfigError(f"the tool {name!r} was given options that it does not take: {error}") from error
    return _as_tool(made)


def typed(tool: Tool, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call in the tool's types; texts become numbers where the tool wants numbers.

    Args:
        tool: the tool.
        given: the arguments as the call has them.

    Raises:
        ToolError: an argument is missing, unknown or of another type, with the tool's signature.
    """
    how = f"Expected {tool.signature().partition(': ' + tool.description)[0]}."
    if unknown := [name for name in given if name not in tool.parameters]:
        raise ToolError(f"{tool.name} has no argument {shorten(str(unknown[0]), 40)}. {how}")
    if missing := [name for name in tool.parameters if name in tool.required and name not in given]:
        raise ToolError(f"{tool.name} needs the argument {missing[0]!r}. {how}")
    out: dict[str, Any] = {}
    for name, value in given.items():
        kind = tool.parameters[name]
        try:
            out[name] = _converted(value, kind)
        except ValueError:
            raise ToolError(
                f"The argument {name!r} of {tool.name} must be {TYPES[kind]}, got {visible(repr(value), 40)}. {how}"
            ) from None
    return out


def _converted(value: Any, kind: type) -> Any:
    """A value in a type of :data:`TYPES`; ValueError where it is none."""
    if isinstance(value, str) and kind is not str:
        text = value.strip()
        if kind is bool and text in ("true", "false"):
            return text == "true"
        if kind is bool or len(text) > 32:
            raise ValueError
        return kind(text)
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a model that is asked for a text writes 42 as often as "42"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError
    return value


def run_tool(tool: Tool, arguments: Mapping[str, Any]) -> str:
    """Run a call, its arguments checked.

    Args:
        tool: the tool.
        arguments: as the call has them.

    Raises:
        ToolError: the policy's fault, with a message for it.
        TaskError: the tool itself failed, or returned something other than a text or a number.
    """
    checked = typed(tool, arguments)
    try:
        result = tool.run(**checked)
    except RlhfGymError:
        raise
    except Exception as error:
        raise TaskError(
            f"the tool {tool.name!r} failed: {type(error).__name__}: {visible(str(error), 200)}; have it raise ToolError for "
            "what the policy should be shown"
        ) from error
    if not isinstance(result, str | int | float):
        raise TaskError(f"the tool {tool.name!r} returned {type(result).__name__}; expected a text")
    return str(result)
