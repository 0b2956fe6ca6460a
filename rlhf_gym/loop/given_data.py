"""What agents learn from that do not generate: responses, preferences, rewards of a run, a store or a file; a task of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_gym.agents.common.given_pairs import encoded_pairs, encoded_preferences
from rlhf_gym.agents.common.given_trajectories import encoded_trajectories
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.chat_template import Messages, messages_before
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import encode_response
from rlhf_gym.loop.config import TaskConfig
from rlhf_gym.loop.preference_data import remarks_on
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.too_long import OnTooLong, TooLong, fit_task

DATA_TASK = "data"
"""The name of the task whose prompts are those of ``agent.data``."""
ENCODE: Mapping[str, Any] = {
    "data": encoded_pairs, "preferences": encoded_preferences, "trajectories": encoded_trajectories,
}  # fmt: skip
"""What encodes the rows of each argument."""


@dataclass(frozen=True, slots=True)
class Given:
    """One row to learn from.

    Attributes:
        prompt: its text.
        chosen: the response to imitate or to prefer, or one with a reward; None where only a bad one is known.
        rejected: the worse response; None where there is none.
        messages: the prompt as chat messages, where it is a conversation.
        reward: the reward of ``chosen``, or of each of its tokens; None where it has none.
    """

    prompt: str
    chosen: str | None
    rejected: str | None = None
    reward: float | tuple[float, ...] | None = None
    messages: Messages | None = field(default=None, compare=False, hash=False)

    @property
    def asked(self) -> str | Prompt:
        """The prompt as a text, or with its messages where there are some."""
        messages = messages_before(self.messages)
        return Prompt(self.prompt, {"messages": messages}) if messages else self.prompt

    @property
    def responses(self) -> list[str]:
        """The responses that there are."""
        return [text for text in (self.chosen, self.rejected) if text is not None]


@dataclass(frozen=True)
class GivenData:
    """Rows to learn from, rows of other prompts to measure on, and what was left out.

    Attributes:
        train: rows to learn from.
        held_out: rows whose prompts are not learned from.
        source: where they come from, in words.
        dropped: number of records that were left out, by reason.
        noted: number of what was taken and is worth saying.
    """

    train: Sequence[Given]
    held_out: Sequence[Given]
    source: str
    dropped: Counter[str]
    noted: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = f"{len(self.train)} rows of {self.source} to learn from, {len(self.held_out)} held out"
        return f"{rows}; {self.remarks}" if self.remarks else rows

    @property
    def remarks(self) -> str:
        """What was left out, and what was taken all the same and is worth saying, in words; empty for nothing."""
        return remarks_on(self.dropped, self.noted)

    def fitting(
        self, model: LanguageModel, max_new_tokens: int, on_too_long: OnTooLong
    ) -> tuple[GivenData, list[TooLong]]:
        """The rows with prompts that leave room for a response in a model's context.

        Args:
            model: the model that learns them.
            max_new_tokens: the length limit of a response.
            on_too_long: what is done with prompts that are too long.

        Returns:
            The rows, and what was done with prompts that were too long.

        Raises:
            TaskError: some are to be refused, or nothing is left to learn from or to hold out.
        """

        def prompts(rows: Sequence[Given]) -> list[Prompt]:
            return [Prompt(row.prompt, {"messages": row.messages, "row": row}) for row in rows]

        def fitted(prompts: Sequence[Prompt]) -> list[Given]:
            return [
                replace(p.columns["row"], prompt=p.text, messages=messages_before(p.columns["messages"]))
                for p in prompts
            ]

        task = Task(self.source, prompts(self.train), prompts(self.held_out), max_new_tokens=max_new_tokens)
        task, found = fit_task(task, model, on_too_long)
        if not found:
            return self, []
        rows = GivenData(fitted(task.prompts), fitted(task.held_out), self.source, self.dropped, self.noted)
        return rows, [replace(one, what=f"{one.what} of the data") for one in found]

    def without(self, prompts: AbstractSet[str]) -> GivenData:
        """The data without the rows to learn from that have one of these prompts."""
        return replace(self, train=[row for row in self.train if row.prompt not in prompts])

    def for_agent(self, rows: Sequence[Given], argument: str) -> list[Any]:
        """Rows to encode, each with its prompt.

        Args:
            rows: some of the rows.
            argument: ``data`` for pairs ``(prompt, response)``, ``preferences`` for triples ``(prompt, chosen, rejected)``,
                ``trajectories`` for triples ``(prompt, response, reward)``.
        """
        if argument == "data":
            return [(row.asked, row.chosen) for row in rows]
        if argument == "trajectories":
            return [(row.asked, row.chosen, row.reward) for row in rows]
        return [(row.asked, row.chosen, row.rejected) for row in rows]


@dataclass(frozen=True)
class EncodedData:
    """What an agent learns from that does not generate, as token ids.

    Attributes:
        argument: the agent's argument that it is: ``data``, ``preferences`` or ``trajectories``.
        train: encoded pairs, preferences or trajectories to learn from.
        held_out: those to measure on; empty where the agent learns the task's targets.
    """

    argument: str
    train: Sequence[Any]
    held_out: Sequence[Any] = ()

    @classmethod
    def of(
        cls, argument: str, train: Sequence[Any], held_out: Sequence[Any], model: LanguageModel, limits: Limits,
        on_too_long: OnTooLong,
    ) -> tuple[EncodedData, list[TooLong]]:  # fmt: skip
        """Encode rows once, for everything that learns from them.

        Args:
            argument: the agent's argument.
            train: rows as the agent takes them.
            held_out: those to measure on.
            model: its tokenizer encodes them.
            limits: the environment's.
            on_too_long: what is done with those that do not fit in the model's context.

        Returns:
            The rows, and what was done with those that were too long.

        Raises:
            ConfigError: a response that the limits do not allow.
            ModelError: a row does not fit, or none is left.
        """
        encode = ENCODE[argument]
        learned, found = encode(train, model, limits, on_too_long)
        measured, more = encode(held_out, model, limits, on_too_long) if held_out else ([], [])
        more = [replace(one, what=f"held-out {one.what.removesuffix(' to learn')}") for one in more]
        return cls(argument, learned, measured), [*found, *more]


class Unscored:
    """Stands for the reward of a task that has none: nothing is scored by it."""

    name = "unscored"

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        """Refuse to score.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("the prompts have no reward of their own to score responses by; give one: --reward REWARD")


def data_task(config: TaskConfig, given: GivenData, model: LanguageModel) -> tuple[Task, GivenData, list[TooLong]]:
    """The task ``data``: the prompts of the rows, without a reward; and the rows that fit in the model's context.

    Args:
        config: its limits; without a ``max_new_tokens`` the longest response fits, but in half the context at most.
        given: the rows.
        model: its tokenizer counts tokens.

    Returns:
        The task, the rows, and what was done with prompts that were too long.

    Raises:
        TaskError: settings that belong to other tasks; or prompts that are too long, and are to be refused.
    """
    if config.prompts is not None or config.held_out is not None or config.options:
        raise TaskError(
            "task data has the prompts of agent.data: leave out task.prompts, task.held_out and task.options"
        )
    longest = config.max_new_tokens
    if longest is None:
        texts = {text for row in (*given.train, *given.held_out) for text in row.responses}
        longest = min(max(len(encode_response(model.tokenizer, text)) for text in texts) + 1, model.context_length // 2)
    given, found = given.fitting(model, longest, config.on_too_long)
    task = Task(
        DATA_TASK, _prompts(given.train), _prompts(given.held_out), max_new_tokens=longest,
        min_new_tokens=config.min_new_tokens or 0, stop=config.stop or (),
    )  # fmt: skip
    return task, given, found


def _prompts(rows: Sequence[Given]) -> list[Prompt]:
    by_text = {row.prompt: Prompt(row.prompt, {"messages": row.messages} if row.messages else {}) for row in rows}
    return list(by_text.values())
