"""A suite's task as a run loads it: its prompts split into those to train on, to validate with, and to test with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlhf_gym.errors import TaskError
from rlhf_gym.loop.run_task import with_validation
from rlhf_gym.tasks import Task, load_task


def split_task(*, task: str, options: Mapping[str, Any], part: str, validation_prompts: int, test_prompts: int) -> Task:
    """Load a task and split its prompts.

    Validation prompts are taken from those to train on by a hash of their text: they are the same for every seed and contender.

    Args:
        task: its name or place.
        options: its options.
        part: ``test`` holds out the task's own held-out prompts, ``validation`` the validation prompts. Neither is trained on.
        validation_prompts: prompts to validate with; at most half of the different texts.
        test_prompts: most prompts to test with, the first of them.

    Raises:
        TaskError: the task holds no prompts out.
    """
    loaded = load_task(task, **options)
    if not loaded.held_out:
        raise TaskError(
            f"task {task!r} with the options {dict(options)} holds no prompts out, so that a benchmark could only test on "
            "those that were trained on: give it more prompts (a larger difficulty) or another split"
        )
    known = {prompt.text for prompt in loaded.held_out}
    loaded = replace(loaded, prompts=[prompt for prompt in loaded.prompts if prompt.text not in known])
    trained, validation = with_validation(loaded, validation_prompts)
    held_out = validation if part == "validation" else list(loaded.held_out)[:test_prompts]
    return replace(trained, held_out=held_out)
