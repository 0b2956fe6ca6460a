"""The task, the tokenizer and the reward of an environment: each as it was given, by its name, or by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_gym.envs.missing import libraries_needed
from rlhf_gym.errors import TaskError
from rlhf_gym.lm.tokenizer import AnyTokenizer, Tokenizer, load_tokenizer, wrap_tokenizer
from rlhf_gym.rewards.base import TermReward, as_term
from rlhf_gym.tasks import Task, load_task


def as_task(task: Task | str, options: dict[str, Any] | None) -> Task:
    """A task as it is, or the task of that name.

    Args:
        task: a task or the name of one.
        options: the options of a task given by name.

    Raises:
        TaskError: no such task, or options for a task that is already built.
        LibraryMissingError: the task needs a library that is not installed.
    """
    if isinstance(task, str):
        with libraries_needed():
            return load_task(task, **(options or {}))
    if options:
        raise TaskError(f"task_options {options!r} are for a task given by name; task {task.name!r} is already built")
    return task


def as_tokenizer(tokenizer: AnyTokenizer | str | None, task: Task) -> Tokenizer:
    """The tokenizer given, or else the task's own, or else the embedded model's.

    Args:
        tokenizer: a tokenizer, ours or a transformers one; the name of a model; or None.
        task: the task.

    Raises:
        TaskError: its EOS or padding is missing, outside its vocabulary, or one and the same.
        ModelError: there is no tokenizer of that name.
    """
    given = next((one for one in (tokenizer, task.tokenizer) if one is not None), "embedded")
    chosen = load_tokenizer(given) if isinstance(given, str) else wrap_tokenizer(given)
    _check_special_ids(chosen)
    return chosen


def reward_of(reward: Callable[..., Any] | None, task: Task) -> TermReward:
    """The reward given, or else the task's own; its signature is read here, once.

    Args:
        reward: replaces the task's reward; None takes the task's.
        task: the task.

    Raises:
        TaskError: there is neither.
        RewardError: it is a class, it cannot be called, or its parameters are not those of a reward.
    """
    chosen = task.reward if reward is None else reward
    if chosen is None:
        raise TaskError(f"task {task.name!r} has no reward of its own; give the environment one: reward=...")
    return as_term(chosen)


def _check_special_ids(tokenizer: Tokenizer) -> None:
    for what, value in (("EOS", tokenizer.eos_id), ("padding", tokenizer.pad_id)):
        given: object = value  # a user's own tokenizer need not have been type-checked
        if not isinstance(given, int | np.integer) or not 0 <= given < tokenizer.vocab_size:
            raise TaskError(
                f"the tokenizer {tokenizer.name!r} has no id for {what} (got {given!r}); expected one of "
                f"0..{tokenizer.vocab_size - 1}. Give it one: without it no response could end or be padded."
            )
    if tokenizer.eos_id == tokenizer.pad_id:
        raise TaskError(
            f"the tokenizer {tokenizer.name!r} uses id {tokenizer.eos_id} both for EOS and for padding; the "
            "end of a response could not be distinguished from padding. Give it a pad token of its own."
        )
