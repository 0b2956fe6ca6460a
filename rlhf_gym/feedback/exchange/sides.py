"""Prompts and responses as people's files have them: texts, messages in several spellings, prompts repeated or implied.

What comes out is what a store holds: a prompt and responses that are texts, and the prompt's messages where it is a
conversation.
What holds no text is refused with a reason that is counted.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_gym.feedback.exchange.transcripts import (
    HUMAN,
    as_transcript,
    is_talk,
    is_transcript,
    prompt_of_messages,
    shared_prompt,
    split_turns,
    turns_of_transcript,
)

Message = Mapping[str, Any]
_ROLES = {"human": "user", "gpt": "assistant", "prompter": "user", "bot": "assistant", "chatbot": "assistant"}


PROMPTS = ("prompt", "instruction", "question", "input", "query", "context", "text")
"""Names of the column that holds the prompt; the first that a record has counts."""


def prompt_column(record: Mapping[str, Any]) -> str | None:
    """The name of the column that holds the prompt; None where no name is known."""
    known = {name.casefold(): name for name in record}
    return next((known[name] for name in PROMPTS if name in known), None)


class NoTextError(ValueError):
    """Something that should be a text and is none; the message is a reason in the plural, as it is counted."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        text: as text; of several messages, their transcript.
        columns: the messages, where it was given as messages, or as a transcript of some.
    """

    text: str
    columns: dict[str, Any]


def text_of(value: Any, what: str = "a text") -> str:
    """A text, or the joined parts of a message's content where all of them are texts.

    Args:
        value: what stands where a text should.
        what: its name, for the reason.

    Raises:
        NoTextError: it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(part, Mapping) for part in value):
        if all(part.get("type", "text") == "text" and isinstance(part.get("text"), str) for part in value):
            return "".join(part["text"] for part in value)
        raise NoTextError("messages with parts that are no text (images, audio, tools)")
    found = "null" if value is None else "empty" if value in ([], {}) else type(value).__name__
    raise NoTextError(f"rows in which {what} is no text but {found}")


def messages_in(value: Any, what: str = "a message") -> list[Message]:
    """Messages with ``role`` and ``content``, also of those with ``from`` and ``value``; other fields stay.

    Args:
        value: a message or a list of them; or a mapping with a list of them as ``messages``.
        what: the name of what holds them, for the reason.

    Raises:
        NoTextError: they are no messages, or one of them has no text.
    """
    if isinstance(value, Mapping):
        value = value.get("messages", [value])
    found: list[Message] = []
    for message in value:
        if not isinstance(message, Mapping):
            raise NoTextError(f"rows in which {what} is neither a text nor messages")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if not isinstance(role, str):
            raise NoTextError("messages without a role")
        if content is None and (message.get("tool_calls") or message.get("function_call")):
            raise NoTextError("messages that call tools and say nothing")
        content = text_of(content, "a message's content")
        rest = {k: v for k, v in message.items() if k not in ("role", "from", "content", "value")}
        if message.get("tool_calls"):
            raise NoTextError("messages that call tools")
        found.append({"role": _ROLES.get(role, role), "content": content, **rest})
    return found


def side_of(value: Any, what: str) -> str | list[Message]:
    """One side of a comparison: a text, or messages, also where a CSV field spells them.

    Args:
        value: as the file has it.
        what: the column's name, for the reason.

    Raises:
        NoTextError: it is neither.
    """
    if isinstance(value, str):
        return spelled_messages(value) or value
    if value is None or not isinstance(value, Mapping | Sequence) or not value:
        return text_of(value, f"{what!r}")
    return messages_in(value, f"{what!r}")


def spelled_messages(text: str) -> list[Message] | None:
    """The messages that a text spells in JSON or in Python, as tables do; None for any other text."""
    found = spelled(text) if text.startswith("[{") else None
    return messages_in(found) if is_talk(found) else None


def spelled(text: str) -> Any:
    """The value that a text spells in JSON or in Python; None for any other text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def prompt_of(value: Any, what: str = "prompt") -> Prompt:
    """A prompt that is a text or messages.

    Args:
        value: as the file has it.
        what: the column's name, for the reason.

    Raises:
        NoTextError: it is neither.
    """
    found = side_of(value, what)
    if isinstance(found, str):
        return _of_text(found)
    return Prompt(prompt_of_messages(found), {"messages": found})


def _of_text(text: str) -> Prompt:
    text = as_transcript(text)
    turns = turns_of_transcript(text)
    return Prompt(text, {} if turns is None else {"messages": turns})


def compared(prompt: Any, chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """The prompt and the two responses of a comparison, each a text or messages, the prompt given, repeated or implied.

    Args:
        prompt: as the file has it; None where it is only implied.
        chosen: the better side.
        rejected: the worse side.

    Raises:
        NoTextError: there are no two texts to compare.
    """
    better, worse = side_of(chosen, "chosen"), side_of(rejected, "rejected")
    if isinstance(better, str) != isinstance(worse, str):
        raise NoTextError("pairs of a text and messages")
    if isinstance(better, str) and isinstance(worse, str):
        return _compared_texts(prompt, better, worse)
    assert not isinstance(better, str)
    assert not isinstance(worse, str)
    given = None if prompt is None else side_of(prompt, "prompt")
    before = _begins(better, worse) if given is None or isinstance(given, str) else _stripped(given, better, worse)
    if given is None and not before and max(len(better), len(worse)) > 1:
        raise NoTextError("pairs whose prompts differ")
    better, worse = better[len(before) :], worse[len(before) :]
    if len(better) != 1 or len(worse) != 1:
        raise NoTextError("responses of several messages")
    if not {better[0]["role"], worse[0]["role"]} <= {"assistant"}:
        raise NoTextError("responses that are not the assistant's")
    if given is not None:
        # The messages tell more than a prompt beside them, which is often the first or the last of the user's turns.
        whole = before or given
    elif before:
        whole = before
    else:
        raise NoTextError("pairs without a common prompt")
    return prompt_of(whole), better[0]["content"], worse[0]["content"]


def _compared_texts(prompt: Any, better: str, worse: str) -> tuple[Prompt, str, str]:
    if prompt is not None:
        given = prompt_of(prompt)
        # Only a conversation is repeated before its answers: any other prompt may be what both responses happen to begin with.
        one, other = as_transcript(better), as_transcript(worse)
        talk = is_transcript(given.text) and HUMAN in given.text
        if talk and one.startswith(given.text) and other.startswith(given.text):
            return given, one[len(given.text) :], other[len(given.text) :]
        if all(side.startswith(HUMAN) and given.text.strip() in side for side in (one, other)):
            return transcripts(one, other)  # what stands as the prompt is only a part of it
        return given, better, worse
    text, better, worse = shared_prompt(better, worse)
    return Prompt(text, {}), better, worse


def transcripts(chosen: Any, rejected: Any) -> tuple[Prompt, str, str]:
    """The prompt and the two responses of Anthropic's transcripts, split after the last turn marker.

    Args:
        chosen: the better transcript.
        rejected: the worse one.

    Raises:
        NoTextError: a side is no transcript, the prompts differ, or a response is empty.
    """
    sides = [
        split_turns(as_transcript(text_of(side, name)))
        for side, name in ((chosen, "'chosen'"), (rejected, "'rejected'"))
    ]
    if sides[0] is None or sides[1] is None:
        raise NoTextError("transcripts without an assistant's turn")
    (prompt, better), (other, worse) = sides[0], sides[1]
    if prompt != other:
        raise NoTextError("pairs whose prompts differ")
    if not better.strip() or not worse.strip():
        raise NoTextError("pairs with an empty response")
    return _of_text(prompt), better, worse


def _begins(one: list[Message], other: list[Message]) -> list[Message]:
    """The messages that both begin with, but for the last of either, which is the response."""
    most = min(len(one), len(other)) - 1
    return one[: next((i for i in range(most) if one[i] != other[i]), most)]


def _stripped(prompt: list[Message], one: list[Message], other: list[Message]) -> list[Message]:
    """The prompt where both sides repeat it before a response, else nothing."""
    n = len(prompt)
    return prompt if one[:n] == prompt == other[:n] and min(len(one), len(other)) > n else []
