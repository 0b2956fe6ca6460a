"""A task with tools: the policy calls them, sees their results, and answers; a step is one message of the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_gym.envs.dialogue_env import Continuation, DialogueEnv, first_messages
from rlhf_gym.envs.tools.call_format import CallFormat, FormatName, MalformedCall, ToolCall
from rlhf_gym.envs.tools.tool import ToolError, ToolSpec, as_tools, run_tool
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.chat import Message
from rlhf_gym.tasks.samples import Prompt


@dataclass(frozen=True)
class CallRecord:
    """What the policy's calls of an episode came to.

    Attributes:
        calls: well-formed calls that were executed.
        failed: those of them that the tool refused.
        malformed: messages that began like a call and were none.
    """

    calls: int = 0
    failed: int = 0
    malformed: int = 0


class ToolEnv(DialogueEnv):
    """The task's prompt, a call, its result, another call, ..., an answer.

    A message with a call (see :class:`~rlhf_gym.envs.tools.call_format.CallFormat`) is executed, and the result is the next
    message; a message without one is the answer, which ends the episode and is scored. A malformed call, or arguments that a
    tool does not take, are answered with a message that says what was expected; they are counted, and never an error.

    Args:
        task: a :class:`~rlhf_gym.tasks.Task` or the name of one; its limits hold for each message.
        tokenizer: as for the token level; only the format ``"tokens"`` uses it.
        tools: what the policy may call; see :data:`~rlhf_gym.envs.tools.tool.ToolSpec`.
        call_format: ``"xml"``, ``"json"`` or ``"code"``.
        max_turns: the most messages of the policy in an episode. The last one is not executed where it is a call: nothing would
            see its result.
        max_result: longest result in characters; what is longer is cut, and says so.
        result_role: the role of results: ``"tool"``, or ``"user"`` for chat templates that know no tools.
        instructions: a system message at the beginning: True: the tools and the format in words; False: none; or a text.
        reward_at: ``"end"``: the answer is scored, with the task's prompt, and 0 before; an episode that ends without one is
            scored with an empty response. ``"turn"``: every message is scored. Rewards may take the columns ``messages``,
            ``turn`` (from 1), ``answered`` (True for an answer), and ``calls``, ``failed_calls`` and ``malformed_calls`` of the
            episode so far.
        format: ``"text"`` or ``"tokens"``; see :class:`~rlhf_gym.envs.turn_env.TurnEnv`.
        template: how the policy is shown the conversation: ``"continuation"``, ``"transcript"`` or Jinja. None: the
            tokenizer's chat template, or a transcript where there is none.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest message as a text; None allows 16 a token of the task's limit.
        max_context: longest conversation that is shown, in characters or tokens; one that outgrows it ends. None: enough for
            every message, and for results of 512 characters or 64 tokens each.
        prompt_order: ``"epochs"`` or ``"random"``, as for the turn level; :func:`~rlhf_gym.envs.wrap_text_env` knows curricula.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Raises:
        TaskError, ConfigError: the task, a tool or the template cannot be used, with the reason.
    """

    def __init__(
        self,
        task: Task | str = "calculation",
        tokenizer: AnyTokenizer | str | None = None,
        *,
        tools: Sequence[ToolSpec] | ToolSpec = ("calculator",),
        call_format: FormatName = "xml",
        max_turns: int = 4,
        max_result: int = 400,
        result_role: Literal["tool", "user"] = "tool",
        instructions: bool | str = True,
        reward_at: Literal["turn", "end"] = "end",
        format: Literal["text", "tokens"] = "text",  # noqa: A002 - what Gymnasium's users write
        template: str | None = None,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_characters: int | None = None,
        max_context: int | None = None,
        prompt_order: Literal["random", "epochs"] = "epochs",
        render_mode: str | None = None,
    ) -> None:
        if isinstance(max_result, bool) or not isinstance(max_result, int) or max_result < 1:
            raise ConfigError(f"max_result must be a whole number of at least 1, got {max_result!r}")
        if result_role not in ("tool", "user"):
            raise ConfigError(f"result_role must be 'tool' or 'user', got {result_role!r}")
        self.calls = CallFormat(call_format, as_tools(tools))
        self.max_result, self.result_role = max_result, result_role
        self.instructions = self.calls.instructions() if instructions is True else instructions or ""
        self.record = CallRecord()
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
        if max_turns > 1:  # a template that cannot show a result would fail in the middle of an episode
            trial = [{"role": "assistant", "content": self.calls.example()}, self._result("")]
            try:
                self._format.fits([*self.opening(self.task.prompts[0]), *trial])
            except Exception as error:
                raise ConfigError(
                    f"the template cannot show a tool's result in the role {result_role!r}: {error}; "
                    "try result_role='user', or another template"
                ) from error

    @property
    def slow(self) -> bool:
        """True where a tool or the reward waits for something."""
        return super().slow or any(tool.slow for tool in self.calls.tools.values())

    def opening(self, prompt: Prompt) -> list[Message]:
        """The instructions, and the prompt. A prompt whose messages begin with a system message has both in one."""
        messages = first_messages(prompt)
        if not self.instructions:
            return messages
        if messages[0]["role"] == "system":
            joined = f"{messages[0]['content']}\n\n{self.instructions}"
            return [{"role": "system", "content": joined}, *messages[1:]]
        return [{"role": "system", "content": self.instructions}, *messages]

    def follow(self, messages: list[Message], turn: int) -> Continuation:
        """The result of the call in the policy's message; see :meth:`DialogueEnv.follow`.

        Args:
            messages: the conversation.
            turn: the message's number, from 1.

        Raises:
            TaskError: a tool failed by itself.
        """
        call = self.calls.parse(messages[-1]["content"])
        record, last = self.record, turn == self.max_turns
        message = None
        info: dict[str, Any] = {}
        if isinstance(call, MalformedCall):
            record = CallRecord(record.calls, record.failed, record.malformed + 1)
            message = self._result(f"error: {call.message}")
        elif call is not None and not last:
            text, failed = self._run(call)
            record = CallRecord(record.calls + 1, record.failed + failed, record.malformed)
            message = self._result(text)
            info["tool"] = call.tool
        counts = {
            "answered": call is None,
            "calls": record.calls,
            "failed_calls": record.failed,
            "malformed_calls": record.malformed,
        }
        ended_by = "answer" if call is None else "max_turns" if last else ""
        return Continuation(None if last else message, ended_by, info | counts, dict(counts), record)

    def _run(self, call: ToolCall) -> tuple[str, bool]:
        """The result of a call as the policy is shown it, and True where the tool refused it."""
        try:
            text, failed = run_tool(self.calls.tools[call.tool], call.arguments), False
        except ToolError as error:
            text, failed = f"error: {error}", True
        if len(text) > self.max_result:
            text = f"{text[: self.max_result]} [cut: {len(text):,} characters]"
        if call.more:
            text += "\n[only the first call of a message is executed]"
        return text, failed

    def _result(self, text: str) -> Message:
        return {"role": self.result_role, "content": text}

    def to_score(
        self, messages: list[Message], turn: int, follows: Continuation, *, ended: bool
    ) -> tuple[str, str] | None:
        """See :meth:`DialogueEnv.to_score`.

        Args:
            messages: the conversation; it ends with the policy's message.
            turn: the message's number, from 1.
            follows: the tool's result.
            ended: True if the episode ends.
        """
        if self.reward_at == "turn":
            return self.prompt.text, messages[-1]["content"]
        if not ended:
            return None
        return self.prompt.text, messages[-1]["content"] if follows.columns["answered"] else ""

    def begin(self, state: Any) -> None:
        """See :meth:`DialogueEnv.begin`."""
        self.record = state if isinstance(state, CallRecord) else CallRecord()
