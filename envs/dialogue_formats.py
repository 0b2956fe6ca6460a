"""The two formats of conversations, texts and token ids: how one is shown to the policy, and how its message is read."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.task_parts import as_tokenizer
from rlhf_gym.envs.turn_spaces import AnyText, as_ids_action, as_text_action, check_format, longest_text
from rlhf_gym.errors import TaskError
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.tokenizer import AnyTokenizer, end_ids
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.chat import Message, render_messages

LINE_TOKENS, LINE_CHARACTERS = 64, 512
"""Room for each message of the other side where ``max_context`` is not given, in tokens and in characters."""


class DialogueFormat(Protocol):
    """Shows conversations as observations, and reads actions as messages."""

    observation_space: gym.spaces.Space[Any]
    action_space: gym.spaces.Space[Any]

    def fits(self, messages: list[Message]) -> bool:
        """True if the conversation is not longer than the room for it."""
        ...

    def observe(self, messages: list[Message]) -> Any:
        """The observation of a conversation: its end, where it is longer than the room."""
        ...

    def read(self, action: Any) -> str:
        """The message in an action.

        Raises:
            InvalidAction: the action is outside the action space.
        """
        ...


def dialogue_format(
    name: Literal["text", "tokens"],
    task: Task,
    openings: list[list[Message]],
    *,
    tokenizer: AnyTokenizer | str | None,
    max_turns: int,
    template: str | None,
    max_characters: int | None,
    max_context: int | None,
) -> DialogueFormat:
    """A format by its name.

    Args:
        name: ``"text"`` or ``"tokens"``.
        task: its limits hold for each message.
        openings: the messages that each prompt begins with.
        tokenizer: for the format ``"tokens"``.
        max_turns: most messages of the policy.
        template: how the conversation is shown.
        max_characters: longest message as a text.
        max_context: longest conversation.

    Raises:
        ConfigError: there is no such format.
        TaskError: an opening is longer than ``max_context``.
    """
    check_format(name)
    if name == "text":
        return _AsText(task, openings, max_turns, template, max_characters, max_context)
    return _AsTokens(task, openings, max_turns, template, tokenizer, max_context)


class _AsText:
    """The conversation as a text: the policy reads and writes texts."""

    def __init__(
        self,
        task: Task,
        openings: list[list[Message]],
        max_turns: int,
        template: str | None,
        max_characters: int | None,
        max_context: int | None,
    ) -> None:
        self.template = template or "transcript"
        self.max_characters = longest_text(task, max_characters)
        longest = max(len(self._show(opening)) for opening in openings)
        self.room = max_context or longest + max_turns * (self.max_characters + LINE_CHARACTERS)
        _check_room(longest, self.room, "characters", task)
        self.observation_space: gym.spaces.Space[Any] = AnyText(self.room)
        self.action_space: gym.spaces.Space[Any] = AnyText(self.max_characters)

    def _show(self, messages: list[Message]) -> str:
        return render_messages(messages, self.template)

    def fits(self, messages: list[Message]) -> bool:
        return len(self._show(messages)) <= self.room

    def observe(self, messages: list[Message]) -> str:
        # The conversation with the last answer may be longer than the room: its end is shown.
        return self._show(messages)[-self.room :]

    def read(self, action: Any) -> str:
        return as_text_action(action, self.max_characters)


class _AsTokens:
    """The conversation as token ids: the policy reads and writes token ids."""

    def __init__(
        self,
        task: Task,
        openings: list[list[Message]],
        max_turns: int,
        template: str | None,
        tokenizer: AnyTokenizer | str | None,
        max_context: int | None,
    ) -> None:
        self.tokenizer = as_tokenizer(tokenizer, task)
        self._text, self._ends = ResponseText(self.tokenizer, task.stop), end_ids(self.tokenizer)
        self.template, self.limit = template, task.max_new_tokens
        longest = max(len(self._encode(opening)) for opening in openings)
        self.room = max_context or longest + max_turns * (task.max_new_tokens + LINE_TOKENS)
        _check_room(longest, self.room, "tokens", task)
        size = self.tokenizer.vocab_size
        self.observation_space: gym.spaces.Space[Any] = gym.spaces.Dict(
            {
                "ids": gym.spaces.Box(0, size - 1, (self.room,), np.int64),
                "length": gym.spaces.Box(0, self.room, (1,), np.int64),
            }
        )
        every = np.full(self.limit, size, dtype=np.int64)
        self.action_space: gym.spaces.Space[Any] = gym.spaces.MultiDiscrete(every)

    def _encode(self, messages: list[Message]) -> list[int]:
        is_chat = getattr(self.tokenizer, "is_chat", False)
        if is_chat and self.template is None:
            ids: list[int] = self.tokenizer.encode_messages(messages)  # type: ignore[attr-defined]
            return ids
        shown = render_messages(messages, self.template or "transcript")
        # A chat model's `encode_prompt` would put the text into the model's own template once more.
        return self.tokenizer.encode(shown) if is_chat else self.tokenizer.encode_prompt(shown)

    def fits(self, messages: list[Message]) -> bool:
        return len(self._encode(messages)) <= self.room

    def observe(self, messages: list[Message]) -> dict[str, Any]:
        shown = self._encode(messages)[-self.room :]
        ids = np.full(self.room, self.tokenizer.pad_id, dtype=np.int64)
        ids[: len(shown)] = shown
        return {"ids": ids, "length": np.array([len(shown)], dtype=np.int64)}

    def read(self, action: Any) -> str:
        ids = as_ids_action(action, self.limit, self.tokenizer)
        end = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        return self._text.read(ids[:end])[0]


def _check_room(longest: int, room: int, unit: str, task: Task) -> None:
    if longest > room:
        raise TaskError(
            f"the longest prompt of task {task.name!r} takes {longest} {unit}, more than max_context={room}"
        )
