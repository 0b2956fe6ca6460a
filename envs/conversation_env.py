"""A task as a conversation: several turns with a simulated user; a step is one answer of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from rlhf_gym.envs.conversation_users import UserSpec, as_user
from rlhf_gym.envs.dialogue_env import Continuation, DialogueEnv, copied
from rlhf_gym.errors import TaskError
from rlhf_gym.lm.response_text import joined
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.rewards.service.overlap import is_slow
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.chat import Message
from rlhf_gym.tasks.users import UserReply


class ConversationEnv(DialogueEnv):
    """Several turns: the task's prompt, the policy's answer, the user's reply, the next answer, ...

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one; its limits hold for each answer.
        tokenizer: as for the token level; only the format ``"tokens"`` uses it.
        user: who replies; see :data:`~rlhf_gym.envs.conversation_users.UserSpec`. None: the lines in each prompt's column
            ``user_lines``.
        max_turns: the most answers in an episode.
        reward_at: ``"turn"``: every answer is scored, with the user's last message as its prompt; ``"end"``: all answers
            together, line by line, with the first message as their prompt, and 0 before. Rewards may take the columns
            ``messages`` (the conversation, the answer included), ``turn`` (from 1) and, where the user rates answers,
            ``user_rating`` besides the prompt's own.
        format: ``"text"`` or ``"tokens"``; see :class:`~rlhf_gym.envs.turn_env.TurnEnv`.
        template: how the policy is shown the conversation: ``"continuation"``, ``"transcript"`` or Jinja. None: the
            tokenizer's chat template, or a transcript where there is none.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest answer as a text; None allows 16 a token of the task's limit.
        max_context: longest conversation that is shown, in characters or tokens; one that outgrows it ends. None: enough for
            every answer, and for messages of the user of 512 characters or 64 tokens each.
        prompt_order: ``"epochs"`` or ``"random"``, as for the turn level; :func:`~rlhf_gym.envs.wrap_text_env` knows curricula.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Raises:
        TaskError, ConfigError: the task, the user or the template cannot be used, with the reason.
    """

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
        prompt_order: Literal["random", "epochs"] = "epochs",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(
            task,
            tokenizer,
            max_turns=max_turns,
            reward_at=reward_at,
            format=format,
            template=template,
            reward=reward,
            task_options=task_options,
            max_characters=max_characters,
            max_context=max_context,
            prompt_order=prompt_order,
            render_mode=render_mode,
        )
        if user is None:
            _check_lines(self.task)
        self.user = None if user is None else as_user(user)

    @property
    def slow(self) -> bool:
        """True where the user (by an attribute ``slow``) or the reward waits for something."""
        return super().slow or is_slow(self.user)

    def follow(self, messages: list[Message], turn: int) -> Continuation:
        """The user's reply; see :meth:`DialogueEnv.follow`. In the last turn, a user who rates answers is asked for that alone.

        Args:
            messages: the conversation.
            turn: the answer's number, from 1.

        Raises:
            TaskError: the user said something other than a text.
        """
        last = turn == self.max_turns
        rate = getattr(self.user, "rate", None)
        said: Any
        if last:
            said = None if rate is None else UserReply(None, rate(copied(messages), self.np_random))
        else:
            said = self._said(messages, turn)
        line, rating = (said.text, said.rating) if isinstance(said, UserReply) else (said, None)
        if line is not None and not isinstance(line, str):
            raise TaskError(f"the user said {line!r:.80} ({type(line).__name__}); expected a text, or None to end")
        rated = {"user_rating": rating} if rate is not None or rating is not None else {}
        message = None if line is None else {"role": "user", "content": line}
        return Continuation(message, "max_turns" if last else "user" if line is None else "", dict(rated), dict(rated))

    def close(self) -> None:
        """Close the user, where there is something to close: a page on which people answer."""
        close = getattr(self.user, "close", None)
        if close is not None:
            close()

    def _said(self, messages: list[Message], turn: int) -> Any:
        """What the user says, or None if the user ends the conversation."""
        if self.user is not None:
            return self.user(copied(messages), self.np_random)
        lines = self.prompt.columns["user_lines"]
        return lines[turn - 1] if turn <= len(lines) else None

    def to_score(
        self, messages: list[Message], turn: int, follows: Continuation, *, ended: bool
    ) -> tuple[str, str] | None:
        """See :meth:`DialogueEnv.to_score`.

        Args:
            messages: the conversation; it ends with the answer.
            turn: the answer's number, from 1.
            follows: the user's reply.
            ended: True if the conversation ends.
        """
        if self.reward_at == "turn":
            return (self.prompt.text if turn == 1 else messages[-2]["content"]), messages[-1]["content"]
        if not ended:
            return None
        answers = [m["content"] for m in messages[-2 * turn + 1 :] if m["role"] == "assistant"]
        return self.prompt.text, joined(answers, "\n")


def _check_lines(task: Task) -> None:
    for i, prompt in enumerate(task.prompts):
        lines = prompt.columns.get("user_lines")
        if not isinstance(lines, list | tuple) or not all(isinstance(line, str) for line in lines):
            raise TaskError(
                f"prompt {i} of task {task.name!r} has no list of texts in its column 'user_lines' (got {lines!r:.60}), "
                "and the environment has no user: give it one, e.g. user=['tell me more.']"
            )
