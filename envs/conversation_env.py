"""A task as a conversation: several turns with a simulated user; a step is one answer of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.picture import Frame
from rlhf_gym.envs.prompts import slot_generator
from rlhf_gym.envs.rendering import RENDER_MODES, Painter, check_render_mode, conversation_frame
from rlhf_gym.envs.scoring import skipped_column
from rlhf_gym.envs.task_parts import as_task, as_tokenizer, reward_of
from rlhf_gym.envs.turn_spaces import AnyText, as_ids_action, as_text_action, check_format, longest_text
from rlhf_gym.envs.vector_api import row_of
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.tokenizer import AnyTokenizer, end_ids
from rlhf_gym.rewards.base import score
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.chat import Message, render_messages
from rlhf_gym.tasks.samples import Prompt, column_names, columns_of
from rlhf_gym.tasks.users import UserSpec, as_user
from rlhf_gym.text import visible

LINE_TOKENS, LINE_CHARACTERS = 64, 512
"""Room for each message of the user where ``max_context`` is not given, in tokens and in characters."""


class ConversationEnv(gym.Env[Any, Any]):
    """Several turns: the task's prompt, the policy's answer, the user's reply, the next answer, ...

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one; its limits hold for each answer.
        tokenizer: as for the token level; only the format ``"tokens"`` uses it.
        user: who replies; see :data:`~rlhf_gym.tasks.users.UserSpec`. None: the lines in each prompt's column ``user_lines``.
        max_turns: the most answers in an episode.
        reward_at: ``"turn"``: every answer is scored, with the user's last message as its prompt; ``"end"``: all answers
            together, line by line, with the first message as their prompt, and 0 before. Rewards may take the columns
            ``messages`` (the conversation, the answer included) and ``turn`` (from 1) besides the prompt's own.
        format: ``"text"`` or ``"tokens"``; see :class:`~rlhf_gym.envs.turn_env.TurnEnv`.
        template: how the policy is shown the conversation: ``"continuation"``, ``"transcript"`` or Jinja. None: the
            tokenizer's chat template, or a transcript where there is none.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest answer as a text; None allows 16 a token of the task's limit.
        max_context: longest conversation that is shown, in characters or tokens; one that outgrows it ends. None: enough for
            every answer, and for messages of the user of 512 characters or 64 tokens each.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Raises:
        TaskError, ConfigError: the task, the user or the template cannot be used, with the reason.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        task: Task | str = "sentiment",
        tokenizer: AnyTokenizer | str | None = None,
        *,
        user: UserSpec | None = None,
        max_turns: int = 3,
        reward_at: Literal["turn", "end"] = "turn",
        format: Literal["text", "tokens"] = "text",  # noqa: A002 - what Gymnasium's users write
        template: str | None = None,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_characters: int | None = None,
        max_context: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        check_format(format)
        if reward_at not in ("turn", "end"):
            raise ConfigError(f"reward_at must be 'turn' or 'end', got {reward_at!r}")
        if max_turns < 1:
            raise ConfigError(f"max_turns must be at least 1, got {max_turns}")
        self.task = as_task(task, task_options)
        self.reward = reward_of(reward, self.task)
        self.max_turns, self.reward_at, self.render_mode = max_turns, reward_at, render_mode
        self.user = None if user is None else as_user(user)
        if user is None:
            _check_lines(self.task)
        self._format: _AsText | _AsTokens
        if format == "text":
            self._format = _AsText(self.task, max_turns, template, max_characters, max_context)
        else:
            self._format = _AsTokens(self.task, max_turns, template, tokenizer, max_context)
        self.observation_space, self.action_space = self._format.observation_space, self._format.action_space
        self._columns = column_names(self.task.prompts)
        self.prompt = self.task.prompts[0]
        self.messages: list[Message] = []
        self.turn = 0
        self._running = False
        self._last_reward: float | None = None  # of the last turn, for pictures
        self._painter = Painter()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a prompt; ``info["messages"]`` is the conversation so far.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: not used.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._np_random = slot_generator(seed, 0)  # setting `np_random` would forget the seed
        self.prompt = self.task.prompts[int(self.np_random.integers(len(self.task.prompts)))]
        self.messages = first_messages(self.prompt)
        self.turn, self._running, self._last_reward = 0, True, None
        self._print(self.messages)
        return self._format.observe(self.messages), {"messages": _copied(self.messages)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Answer; the user replies, unless the conversation has ended.

        If the user or the reward fails, the conversation is still where it was before the answer.

        Raises:
            ResetNeeded: no episode was started, or it has ended.
            InvalidAction: the action is outside the action space.
            TaskError: the user said something other than a text.
            RewardError: the reward failed.
        """
        if not self._running:
            raise gym.error.ResetNeeded(
                f"step() where {'the episode has ended' if self.messages else 'no episode was started'}: call reset()"
            )
        response = self.task.cut(self._format.read(action))
        turn = self.turn + 1
        answered = messages = [*self.messages, {"role": "assistant", "content": response}]
        line = self._reply(answered, turn) if turn < self.max_turns else None
        ended_by = "max_turns" if turn == self.max_turns else "user" if line is None else ""
        if line is not None:
            messages = [*answered, {"role": "user", "content": line}]
            if not self._format.fits(messages):
                ended_by, messages = "room", answered
        reward, scored = self._score(answered, turn, ended=bool(ended_by))
        new = messages[len(self.messages) :]
        self.turn, self.messages, self._running, self._last_reward = turn, messages, not ended_by, reward
        self._painter.note(0, reward)
        info: dict[str, Any] = {"response": response, "turn": turn, **scored, "messages": _copied(messages)}
        if ended_by:
            info["ended_by"] = ended_by
        self._print(new)
        return self._format.observe(messages), reward, bool(ended_by), False, info

    def render(self) -> str | Frame | None:
        """The conversation so far: a message a line (``ansi``) or a picture; None before the first reset and for ``human``."""
        if not self.messages or self.render_mode in (None, "human"):
            return None
        if self.render_mode == "ansi":
            return _lines(self.messages)
        return conversation_frame(self.messages, self._last_reward, self._painter)

    def _reply(self, messages: list[Message], turn: int) -> str | None:
        """The user's next message, or None if the user ends the conversation."""
        if self.user is not None:
            line = self.user(_copied(messages), self.np_random)
        else:
            lines = self.prompt.columns["user_lines"]
            line = lines[turn - 1] if turn <= len(lines) else None
        if line is not None and not isinstance(line, str):
            raise TaskError(f"the user said {line!r:.80} ({type(line).__name__}); expected a text, or None to end")
        return line

    def _score(self, messages: list[Message], turn: int, *, ended: bool) -> tuple[float, dict[str, Any]]:
        """The reward of the answer that the messages end with, and what ``info`` says of it."""
        if self.reward_at == "end" and not ended:
            return 0.0, {"reward_terms": {}}
        answers = [m["content"] for m in messages[-2 * turn + 1 :] if m["role"] == "assistant"]
        if self.reward_at == "end":
            prompt, response = self.prompt.text, "\n".join(answers)
        else:
            prompt, response = (self.prompt.text if turn == 1 else messages[-2]["content"]), answers[-1]
        columns = columns_of([self.prompt], self._columns) | {"messages": [_copied(messages)], "turn": [turn]}
        scored = score(self.reward, [prompt], [response], columns, may_skip=True)
        return float(scored.values[0]), row_of({"reward_terms": scored.terms, **skipped_column(scored)}, 0)

    def _print(self, messages: list[Message]) -> None:
        if self.render_mode == "human":
            print(_lines(messages))


def first_messages(prompt: Prompt) -> list[Message]:
    """The messages that a prompt begins with: its column ``messages``, or its text as the user's."""
    given = prompt.columns.get("messages")
    return [dict(m) for m in given] if given else [{"role": "user", "content": prompt.text}]


def _copied(messages: list[Message]) -> list[Message]:
    return [dict(m) for m in messages]


def _lines(messages: list[Message]) -> str:
    return visible("\n".join(f"{m['role']}: {m['content']}" for m in messages))


def _check_lines(task: Task) -> None:
    for i, prompt in enumerate(task.prompts):
        lines = prompt.columns.get("user_lines")
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise TaskError(
                f"prompt {i} of task {task.name!r} has no list of texts in its column 'user_lines' (got {lines!r:.60}), "
                "and the environment has no user: give it one, e.g. user=['tell me more.']"
            )


class _AsText:
    """The conversation as a text: the policy reads and writes texts."""

    def __init__(
        self, task: Task, max_turns: int, template: str | None, max_characters: int | None, max_context: int | None
    ) -> None:
        self.template = template or "transcript"
        self.max_characters = longest_text(task, max_characters)
        longest = max(len(self._show(first_messages(p))) for p in task.prompts)
        self.room = max_context or longest + max_turns * (self.max_characters + LINE_CHARACTERS)
        _check_room(longest, self.room, "characters", task)
        self.observation_space = AnyText(self.room)
        self.action_space = AnyText(self.max_characters)

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
        max_turns: int,
        template: str | None,
        tokenizer: AnyTokenizer | str | None,
        max_context: int | None,
    ) -> None:
        self.tokenizer = as_tokenizer(tokenizer, task)
        self._text, self._ends = ResponseText(self.tokenizer, task.stop), end_ids(self.tokenizer)
        self.template, self.limit = template, task.max_new_tokens
        longest = max(len(self._encode(first_messages(p))) for p in task.prompts)
        self.room = max_context or longest + max_turns * (task.max_new_tokens + LINE_TOKENS)
        _check_room(longest, self.room, "tokens", task)
        size = self.tokenizer.vocab_size
        self.observation_space = gym.spaces.Dict(
            {
                "ids": gym.spaces.Box(0, size - 1, (self.room,), np.int64),
                "length": gym.spaces.Box(0, self.room, (1,), np.int64),
            }
        )
        self.action_space = gym.spaces.MultiDiscrete(np.full(self.limit, size, dtype=np.int64))

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
