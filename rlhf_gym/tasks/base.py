"""A task: prompts, a reward, a length limit and the metrics that judge it. Knows nothing of models or algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.text import cut_at_stop

if TYPE_CHECKING:
    import gymnasium as gym

    from rlhf_gym.lm.tokenizer import AnyTokenizer


@dataclass(frozen=True)
class Conversation:
    """The environment of a task that is a conversation, and how a policy talks with it.

    Attributes:
        environment: makes it: a ``gymnasium.Env`` whose observations and actions are texts, and whose rewards are the task's.
        template: writes messages as token ids: a name of :data:`~rlhf_gym.tasks.chat.TEMPLATES`, or Jinja. None: the
            tokenizer's chat template, or ``"continuation"`` where it has none.
        chat: True where observations are messages of one conversation; False where each is all that the policy is to read.
        vocabulary: the texts that turns are made of, as a hint for small models; empty allows every token.
        max_turns: the most turns in an episode.
        max_context: the most tokens of a conversation.
        slow: True for environments that wait for something: they answer in threads, and other slots are decoded meanwhile.
            None: as their attribute ``slow`` says.
        on_overflow: what becomes of a conversation with no room left for a turn: ``"end"`` truncates it, ``"drop_oldest"``
            takes out its oldest turns, but for the first messages, ``"refuse"`` raises an error.
    """

    environment: Callable[[], gym.Env[Any, Any]]
    template: str | None = None
    chat: bool = True
    vocabulary: tuple[str, ...] = ()
    max_turns: int = 16
    max_context: int = 256
    slow: bool | None = None
    on_overflow: Literal["end", "drop_oldest", "refuse"] = "end"


@dataclass(frozen=True)
class Task:
    """Prompts, a reward, a length limit, and the metrics that judge responses.

    Attributes:
        name: short name, e.g. ``"sentiment"``.
        prompts: prompts to train on.
        held_out: prompts never trained on, for evaluation.
        reward: scores samples (see :class:`~rlhf_gym.rewards.base.Reward`); None when the loop brings its own (a reward model).
        max_new_tokens: the length limit of a response, in tokens; reaching it ends the episode.
        min_new_tokens: EOS is not allowed before this many tokens.
        stop: texts that end a response where they appear; the response is cut before them.
        metrics: further rewards that are reported, never optimised, by name.
        judge: a second reward, independent of ``reward``, by which a run's evaluation reports a win rate, too; None for none.
        tokenizer: the tokenizer of a task that has a vocabulary of its own; an environment may be given another.
        conversation: of a task that is a conversation, whose environment gives the rewards; its limits then hold for each turn.

    Raises:
        TaskError: no prompts, or limits that allow no response.
    """

    name: str
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt] = ()
    reward: Callable[..., Any] | None = None
    max_new_tokens: int = 32
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    metrics: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    judge: Callable[..., Any] | None = None
    tokenizer: AnyTokenizer | None = None
    conversation: Conversation | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise TaskError(f"task {self.name!r} has no prompts; give it at least one")
        if self.max_new_tokens < 1:
            raise TaskError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise TaskError(
                f"min_new_tokens must lie in 0..max_new_tokens ({self.max_new_tokens}), got {self.min_new_tokens}"
            )

    def cut(self, text: str) -> str:
        """A response up to the first of the task's stop sequences in it."""
        return cut_at_stop(text, self.stop)


def whole_number(what: str, value: object, low: int, high: int | None = None) -> None:
    """Refuse a value that is not a whole number between two bounds.

    Args:
        what: the option's name, for the message.
        value: as given.
        low: the lowest number allowed.
        high: the highest number allowed; None: there is no highest.

    Raises:
        TaskError: the value is no whole number, or outside the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise TaskError(
            f"{what} must be a whole number {f'of at least {low}' if high is None else f'in {low}..{high}'}, got {value!r}"
        )
