"""Calls in a policy's messages: three formats, read by one class that never raises for what a policy wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from rlhf_gym.envs.tools.tool import Tool
from rlhf_gym.errors import ConfigError
from rlhf_gym.text import shorten, visible

FormatName = Literal["json", "xml", "code"]
LONGEST_CALL = 20_000
"""Most characters of a call; a longer one is malformed."""


@dataclass(frozen=True)
class ToolCall:
    """A well-formed call.

    Attributes:
        tool: the tool's name, one of those that there are.
        arguments: by name, as written; a tag and a code block give texts. The tool checks them.
        more: True where the message has another call behind this one, which is not executed.
    """

    tool: str
    arguments: Mapping[str, Any] = field(hash=False)
    more: bool = False


@dataclass(frozen=True)
class MalformedCall:
    """Something that begins like a call and is none.

    Attributes:
        message: what is wrong and what was expected, for the policy.
    """

    message: str


class CallFormat:
    r"""Finds the first call in a message.

    - ``"json"``: ``{"name": "calculator", "arguments": {"expression": "2+3"}}`` (also inside ``<tool_call>...</tool_call>``);
    - ``"xml"``: ``<calculator>2+3</calculator>``, the first argument between the tags and others as attributes:
      ``<search count="2">rivers</search>``;
    - ``"code"``: a fenced block whose language is the tool's name: `````calculator``, a line with ``2+3``, and ````` ``.

    A message without a call is an answer. Tags and blocks of other names are text; in JSON, an object with the keys of a call
    is one, whatever it names.

    Args:
        name: the format.
        tools: the tools that there are.

    Raises:
        ConfigError: there is no such format.

    >>> from rlhf_gym.envs.tools.calculator import calculator_tool
    >>> CallFormat("xml", [calculator_tool()]).parse("Let me see: <calculator>2+3</calculator>")
    ToolCall(tool='calculator', arguments={'expression': '2+3'}, more=False)
    """

    def __init__(self, name: FormatName, tools: Sequence[Tool]) -> None:
        if name not in get_args(FormatName):
            raise ConfigError(f"call_format must be one of {', '.join(get_args(FormatName))}, got {name!r}")
        self.name = name
        self.tools = {tool.name: tool for tool in tools}
        names = "|".join(self.tools)
        self._begin = re.compile(
            {
                "json": r'<tool_call>|\{\s*"(?:name|arguments)"\s*:',
                "xml": rf"<(?P<tool>{names})(?P<given>(?:\s[^<>]{{0,200}})?)>",
                "code": rf"^```(?P<tool>{names})[ \t]*\r?$",
            }[name],
            re.MULTILINE,
        )

    def parse(self, text: str) -> ToolCall | MalformedCall | None:
        """The first call in a message, or what is wrong with it; None for a message without one.

        Args:
            text: the policy's message.
        """
        found = self._begin.search(text)
        if found is None:
            return None
        if self.name == "json":
            return self._json(text, found)
        body, end = self._body(text, found)
        if end < 0:
            return MalformedCall(f"The call of {found['tool']} has no end. Expected: {self.example(found['tool'])}")
        if len(body) > LONGEST_CALL:
            return MalformedCall(f"The call of {found['tool']} is longer than {LONGEST_CALL:,} characters.")
        tool = self.tools[found["tool"]]
        arguments: dict[str, Any] = {}
        if self.name == "xml" and found["given"].strip():
            pairs = re.findall(r'([A-Za-z_]\w*)="([^"]*)"', found["given"])
            if re.sub(r'\s*[A-Za-z_]\w*="[^"]*"', "", found["given"]).strip():
                return MalformedCall(
                    f"The attributes of <{tool.name}> cannot be read: {visible(found['given'].strip(), 60)}. Expected "
                    'name="value".'
                )
            arguments = dict(pairs)
        if tool.main in arguments:
            return MalformedCall(f"The argument {tool.main!r} stands between the tags, not among the attributes.")
        return ToolCall(tool.name, {tool.main: body, **arguments}, self._begin.search(text, end) is not None)

    def _body(self, text: str, found: re.Match[str]) -> tuple[str, int]:
        """What a tag or a block holds, and the place behind it; -1 where it has no end."""
        if self.name == "xml":
            closing = f"</{found['tool']}>"
            end = text.find(closing, found.end())
            return text[found.end() : end].strip(), end + len(closing) if end >= 0 else -1
        last = re.compile(r"^```[ \t]*\r?$", re.MULTILINE).search(text, found.end())
        if last is None:
            return "", -1
        return text[found.end() : last.start()].replace("\r\n", "\n").strip("\n"), last.end()

    def _json(self, text: str, found: re.Match[str]) -> ToolCall | MalformedCall:
        start = text.find("{", found.start())
        if start < 0 or len(text) - start > LONGEST_CALL:
            long = start >= 0 and len(text) - start > LONGEST_CALL
            why = f"is longer than {LONGEST_CALL:,} characters" if long else "holds no JSON object"
            return MalformedCall(f"The call {why}. Expected: {self.example()}")
        try:
            value, end = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "it cannot be read"
            return MalformedCall(f"The call is not valid JSON ({why}). Expected: {self.example()}")
        arguments = value.get("arguments", {})
        if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
            return MalformedCall(f"A call needs a name and an object of arguments. Expected: {self.example()}")
        if value["name"] not in self.tools:
            return MalformedCall(
                f"There is no tool {shorten(value['name'], 40)}. The tools are: {', '.join(self.tools)}."
            )
        return ToolCall(value["name"], arguments, self._begin.search(text, end) is not None)

    def example(self, tool: str | None = None) -> str:
        """A call as it should be.

        Args:
            tool: the tool's name; None takes the first.
        """
        chosen = self.tools[tool] if tool else next(iter(self.tools.values()))
        return self.write(chosen.name, chosen.example)

    def write(self, tool: str, argument: str) -> str:
        """A call of a tool with its first argument, in this format.

        Args:
            tool: the tool's name.
            argument: the first argument.
        """
        if self.name == "json":
            return json.dumps({"name": tool, "arguments": {self.tools[tool].main: argument}}, ensure_ascii=False)
        if self.name == "xml":
            return f"<{tool}>{argument}</{tool}>"
        return f"```{tool}\n{argument}\n```"

    def instructions(self) -> str:
        """The tools and the format, in words: a system message."""
        tools = "\n".join(f"- {tool.signature()}" for tool in self.tools.values())
        return (
            f"You may use tools. To call one, write for example\n{self.example()}\nand stop; its result is the next message. A "
            f"message without a call is your answer.\n{tools}"
        )

    def pattern(self, *, answer: str | None = None) -> str:
        """A regular expression of well-formed calls, for a :class:`~rlhf_gym.envs.masks.TokenMask`: ``mask={"pattern": ...}``.

        What matches is one call with its first argument, as the tool's ``argument_pattern`` allows it.

        Args:
            answer: a regular expression of answers, which are then allowed besides calls; None: calls only.
        """
        calls = []
        for tool in self.tools.values():
            around = self.write(tool.name, _HERE)
            before, after = (re.sub(r"([\\.+*?()|\[\]{}^$&~#-])", r"\\\1", part) for part in around.split(_HERE))
            calls.append(f"{before}({tool.argument_pattern}){after}".replace("\n", r"\n"))
        return "|".join(calls if answer is None else [*calls, f"({answer})"])


_HERE = "@"
