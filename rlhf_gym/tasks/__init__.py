"""Tasks: prompts, a reward and a length limit. `load_task` finds one by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlhf_gym.errors import RlhfGymError, TaskError
from rlhf_gym.objects import is_place, load_object, place_in_code
from rlhf_gym.tasks.base import Task
from rlhf_gym.text import nearest

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
    # For tools.
    "calculation": "rlhf_gym.tasks.calculation:calculation_task",
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
        name: one of :data:`BUILT_IN`, or ``module:function`` or ``path/to/file.py:function`` of a factory of your own that
            returns a :class:`Task`.
        options: the factory's keyword arguments.

    Raises:
        TaskError: no such task, options that the task does not take, or a factory that fails or gives no task.
    """
    if name not in BUILT_IN and not is_place(name):
        raise TaskError(
            f"there is no task {name!r}{nearest(name, BUILT_IN)} Expected one of {', '.join(BUILT_IN)}, module:function or "
            "path/to/file.py:function"
        )
    factory: Callable[..., Task] = load_object(BUILT_IN.get(name, name), kind="task", error=TaskError)
    try:
        task = factory(**options)
    except RlhfGymError:
        raise
    except Exception as error:  # a factory runs whatever the user wrote
        if name in BUILT_IN and not isinstance(error, TypeError):
            raise
        raise TaskError(f"task {name!r}: {type(error).__name__}: {error}{place_in_code(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"task {name!r} gave an object of type {type(task).__name__}, expected a rlhf_gym.tasks.Task")
    return task
