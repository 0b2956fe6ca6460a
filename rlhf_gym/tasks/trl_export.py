"""A task exported for TRL: a data set and reward functions, for `GRPOTrainer`, `RLOOTrainer` and their kin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards import score
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.samples import Prompt, columns_of

ROW = "rlhf_gym_row"
"""The column by which a reward function finds a prompt's own columns: those may hold what Arrow cannot."""


@dataclass(frozen=True)
class TrlExport:
    """The arguments of a trainer of TRL.

    Attributes:
        train_dataset: a ``datasets.Dataset`` with the column ``prompt``; the task's other columns that Arrow can hold are there
            too.
        eval_dataset: the prompts held out, or None.
        reward_funcs: the task's reward, then its metrics.
        reward_weights: 1 for the reward, 0 for the metrics: reported, never optimised.
    """

    train_dataset: Any
    eval_dataset: Any
    reward_funcs: list[Callable[..., list[float]]]
    reward_weights: list[float]


def to_trl(task: Task, *, conversational: bool = False, reward: Callable[..., Any] | None = None) -> TrlExport:
    """Export a task.

    ``GRPOTrainer(model, args=GRPOConfig(reward_weights=export.reward_weights, max_completion_length=task.max_new_tokens),
    train_dataset=export.train_dataset, reward_funcs=export.reward_funcs)`` trains on it.

    Args:
        task: the task.
        conversational: prompts as chat messages, for chat models; otherwise as texts.
        reward: replaces the task's.

    Raises:
        TaskError: there is no reward, or ``datasets`` is not installed.
    """
    chosen = reward or task.reward
    if chosen is None:
        raise TaskError(f"task {task.name!r} has no reward of its own; give the export one: reward=...")
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise TaskError("exporting a task for TRL needs datasets: pip install 'rlhf-gym[hub]'") from error
    prompts = [*task.prompts, *task.held_out]
    rows = [_row(i, prompt, conversational) for i, prompt in enumerate(prompts)]
    keep = _plain_columns(prompts)
    for row, prompt in zip(rows, prompts, strict=True):
        row |= {name: prompt.columns[name] for name in keep}
    split = len(task.prompts)
    named = [(task.name, chosen), *task.metrics.items()]
    return TrlExport(
        train_dataset=datasets.Dataset.from_list(rows[:split]),
        eval_dataset=datasets.Dataset.from_list(rows[split:]) if rows[split:] else None,
        reward_funcs=[TrlReward(name, one, task, prompts) for name, one in named],
        reward_weights=[1.0] + [0.0] * len(task.metrics),
    )


class TrlReward:
    """A reward as TRL calls one: ``(prompts, completions, **columns)``, texts or chat messages.

    Args:
        name: the name it is logged under.
        reward: the reward.
        task: cuts responses at its stop sequences.
        prompts: the prompts, in the order of the column ``rlhf_gym_row``.
    """

    def __init__(self, name: str, reward: Callable[..., Any], task: Task, prompts: Sequence[Prompt]) -> None:
        self.__name__ = name
        self.reward, self.task, self.prompts = reward, task, prompts

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        """Score a batch.

        Raises:
            TaskError: the trainer left out the column ``rlhf_gym_row`` (``remove_unused_columns`` must be off).
        """
        if ROW not in columns:
            raise TaskError(
                f"the reward {self.__name__!r} was not given the column {ROW!r}; set remove_unused_columns=False in the trainer"
            )
        rows = [self.prompts[int(i)] for i in columns[ROW]]
        texts = [self.task.cut(_text(completion)) for completion in completions]
        scored = score(self.reward, [row.text for row in rows], texts, columns_of(rows), name=self.__name__)
        values: list[float] = scored.values.tolist()
        return values


def _text(completion: Any) -> str:
    """The text of a completion: itself, or what the last message says."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""


def _row(index: int, prompt: Prompt, conversational: bool) -> dict[str, Any]:
    if not conversational:
        return {"prompt": prompt.text, ROW: index}
    messages = prompt.columns.get("messages") or [{"role": "user", "content": prompt.text}]
    return {"prompt": [dict(m) for m in messages], ROW: index}


def _plain_columns(prompts: Sequence[Prompt]) -> list[str]:
    """Columns that every prompt has and that are texts, numbers or lists of texts throughout."""
    kinds: tuple[Callable[[Any], bool], ...] = (
        lambda value: isinstance(value, str),
        lambda value: isinstance(value, bool),
        lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63,
        lambda value: isinstance(value, float),
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    )
    names = [n for n in prompts[0].columns if n not in ("prompt", "completion", "completion_ids", ROW)]
    return [n for n in names if any(all(n in p.columns and kind(p.columns[n]) for p in prompts) for kind in kinds)]
