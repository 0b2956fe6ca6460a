"""Tasks: prompts, a reward and a length limit. `load_task` finds one by name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task

# The place of each task's factory: a module is imported only when its task is loaded.
BUILT_IN = {
    "sentiment": "rlhf_gym.tasks.sentiment:sentiment_task",
    # Small vocabularies of their own: no language model.
    "copy": "rlhf_gym.tasks.symbols:copy_task",
    "reverse": "rlhf_gym.tasks.symbols:reverse_task",
    "sort": "rlhf_gym.tasks.symbols:sort_task",
    "brackets": "rlhf_gym.tasks.symbols:brackets_task",
    "arithmetic": "rlhf_gym.tasks.symbols:arithmetic_task",
    # On the embedded language model.
    "words": "rlhf_gym.tasks.words:words_task",
    "length": "rlhf_gym.tasks.length:length_task",
    "format": "rlhf_gym.tasks.format_control:format_task",
    "detox": "rlhf_gym.tasks.detox:detox_task",
    "stars": "rlhf_gym.tasks.stars:stars_task",
    # Prompts and rewards of one's own.
    "table": "rlhf_gym.tasks.table:table_task",
    # Data sets of the Hugging Face hub.
    "hub": "rlhf_gym.tasks.hub:hub_task",
    # reasoning-gym's generators.
    "reasoning": "rlhf_gym.tasks.reasoning:reasoning_task",
}

__all__ = ["BUILT_IN", "Task", "load_task"]


def load_task(name: str, /, **options: Any) -> Task:
    """Build a task by name.

    Args:
        name: one of :data:`BUILT_IN`, or ``module:function`` of a factory of your own that returns a :class:`Task`.
        options: the factory's keyword arguments.

    Raises:
        TaskError: no such task, or options that the task does not take.
    """
    place = BUILT_IN.get(name, name)
    module_name, _, function = place.partition(":")
    if not function:
        near = get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise TaskError(f"there is no task {name!r}; {hint}expected one of {', '.join(BUILT_IN)}, or 'module:function'")
    try:
        factory: Callable[..., Task] = getattr(import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise TaskError(f"cannot find the task {name!r}: {error}") from error
    try:
        return factory(**options)
    except TypeError as error:
        raise TaskError(f"task {name!r}: {error}") from error
