"""Chat templates of transformers tokenizers: which one is used, and what it makes of a conversation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_gym.errors import ModelError

Messages: TypeAlias = Sequence[Mapping[str, Any]]

SEVERAL_TURNS = "several_turns"
"""The column that is True where a prompt's responses hold all further turns of a conversation, and not one answer."""


class Opening(list[Mapping[str, Any]]):
    """The first messages of a conversation whose responses hold all its further turns, as a transcript."""


def prompt_messages(columns: Mapping[str, Any]) -> Messages | None:
    """The chat messages of a prompt with these columns; None where it is no conversation."""
    messages: Messages | None = columns.get("messages")
    return Opening(messages) if messages and columns.get(SEVERAL_TURNS) is True else messages


def with_template(hub: Any, setting: str, name: str) -> Any:
    """The transformers tokenizer with the chat template that is asked for.

    Args:
        hub: the transformers tokenizer, not changed.
        setting: ``auto``, ``on``, ``off`` or a file.
        name: for messages.

    Raises:
        ModelError: there is no template, or no such file.
    """
    template = getattr(hub, "chat_template", None)
    if setting == "on" and not template:
        raise ModelError(
            f"chat_template is 'on', but the tokenizer of {name!r} has no chat template; give a file with one, or 'off'"
        )
    if setting in ("auto", "on") or (setting == "off" and not template):
        return hub
    if setting == "off":
        template = None
    else:
        try:
            template = Path(setting).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"chat_template must be auto, on, off or a file with a template in Jinja; {setting!r} cannot be read: {error}"
            ) from error
        if not template.strip():
            raise ModelError(f"the file {setting!r}, given as chat_template, is empty; expected a template in Jinja")
    hub = copy.deepcopy(hub)
    hub.chat_template = template
    return hub


def render_chat(hub: Any, messages: Messages, *, add_generation_prompt: bool) -> str:
    """A conversation as the tokenizer's chat template writes it.

    A template that refuses the system's role (Gemma's) gets its words before the user's first, as its authors advise.

    Args:
        hub: a transformers tokenizer with a chat template.
        messages: the conversation.
        add_generation_prompt: end where the assistant is to speak.

    Raises:
        ModelError: a message holds something other than text.
        Exception: whatever the template raises.
    """
    given = text_messages(messages)

    def render(conversation: list[dict[str, Any]]) -> str:
        return str(hub.apply_chat_template(conversation, add_generation_prompt=add_generation_prompt, tokenize=False))

    try:
        return render(given)
    except Exception:
        if [m.get("role") for m in given[:2]] != ["system", "user"]:
            raise
        system, user, *rest = given
        try:
            return render([{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest])
        except Exception:
            pass
        raise


def content_text(content: Any) -> str:
    """The text of a message's content: itself, or its parts joined, ``[{"type": "text", "text": ...}]``.

    Raises:
        ModelError: it is neither, or a part is no text.
    """
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    if parts and all(
        isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in parts
    ):
        return "".join(part["text"] for part in parts)
    raise ModelError(
        "the content of a chat message must be a text, or parts that are all texts, [{'type': 'text', 'text': ...}]; got "
        f"{content!r:.80}"
    )


def text_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages whose content is text; one that calls tools may have none.

    Raises:
        ModelError: a content is no text.
    """
    silent = [m.get("content") is None and bool(m.get("tool_calls")) for m in messages]
    return [
        dict(m) if quiet else {**m, "content": content_text(m.get("content"))}
        for m, quiet in zip(messages, silent, strict=True)
    ]


def messages_before(messages: Any, response: str | None = None, *, text: str | None = None) -> Messages | None:
    """The conversation that a response answers; None where there is none, and the prompt's text is to be taken.

    Args:
        messages: the column ``messages`` of the prompt, or None.
        response: the response. Messages may end with it, as a conversation's do when it is scored.
        text: the prompt as one text. Messages that end with another turn of the assistant are not this response's prompt,
            which is then the text alone: that must be something that the user says in them, and no transcript of several
            turns, which a chat template would take for one turn of the user.

    Raises:
        ModelError: a content is no text, or messages end with the assistant's and the text is no turn of the user's.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return None
    if not all(isinstance(m, Mapping) and "role" in m and "content" in m for m in messages):
        return None
    talk = text_messages(messages)
    if talk[-1]["role"] != "assistant":
        return talk
    if len(talk) > 1 and talk[-1]["content"] == response:
        return talk[:-1]
    if text is not None and any(m["role"] == "user" and m["content"] == text for m in talk):
        return None
    raise ModelError(
        f"expected chat messages that end with the user's (or with the response itself), got messages that end with the "
        f"assistant's {talk[-1]['content']!r:.80}: leave that turn out"
    )
