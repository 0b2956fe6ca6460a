"""Sort: write the digits of the prompt from the smallest to the largest."""

from __future__ import annotations

import string

import numpy as np

from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.symbols import exact, matching, symbol_task, whole_number


def sort_task(
    *,
    difficulty: int = 1,
    length: int | None = None,
    num_digits: int | None = None,
    partial: bool = True,
    num_prompts: int = 512,
    seed: int = 0,
) -> Task:
    """Write the prompt's digits in ascending order: ``3141>`` asks for ``1134``.

    Args:
        difficulty: 1 or more; sets what is not set below.
        length: digits in a prompt; by default ``1 + difficulty``.
        num_digits: different digits, 2..10, from 0 up; by default ``3 + difficulty``, at most 10.
        partial: the reward is the share of places that are right; False: 1 for the whole answer, else 0.
        num_prompts: prompts to draw.
        seed: of the draws.

    Raises:
        TaskError: a number out of its range.
    """
    whole_number("difficulty", difficulty, 1)
    length = 1 + difficulty if length is None else length
    num_digits = min(10, 3 + difficulty) if num_digits is None else num_digits
    whole_number("length", length, 1)
    whole_number("num_digits", num_digits, 2, 10)
    digits = string.digits[:num_digits]

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        text = "".join(digits[i] for i in rng.integers(num_digits, size=length))
        return text + ">", {"answer": "".join(sorted(text))}

    return symbol_task(
        "sort",
        digits + ">",
        draw,
        max_new_tokens=length + 1,
        reward=matching if partial else exact,
        metrics={"exact": exact},
        num_prompts=num_prompts,
        seed=seed,
    )
