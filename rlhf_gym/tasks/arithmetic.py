"""Arithmetic: sums, differences and products of two numbers, written digit by digit."""

from __future__ import annotations

import string

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.symbols import exact, matching, symbol_task, whole_number

OPERATORS = "+-*"


def arithmetic_task(
    *,
    difficulty: int = 1,
    digits: int | None = None,
    operators: str | None = None,
    partial: bool = True,
    num_prompts: int = 512,
    seed: int = 0,
) -> Task:
    """Work out the prompt: ``7+5=`` asks for ``12``. A difference's first number is never the smaller one.

    Args:
        difficulty: 1 or more; sets what is not set below.
        digits: most digits of a number, 1..9; by default 1 for difficulties 1 and 2, 2 for 3 and 4, and so on.
        operators: some of ``+-*``; by default ``+`` for odd difficulties, all for even ones.
        partial: the reward is the share of places that are right; False: 1 for the whole answer, else 0.
        num_prompts: prompts to draw.
        seed: of the draws.

    Raises:
        TaskError: a number out of its range, or an operator that is not known.
    """
    whole_number("difficulty", difficulty, 1)
    digits = min(9, (difficulty + 1) // 2) if digits is None else digits
    operators = ("+" if difficulty % 2 else OPERATORS) if operators is None else operators
    whole_number("digits", digits, 1, 9)
    if not operators or set(operators) - set(OPERATORS):
        raise TaskError(f"operators must be some of {OPERATORS!r}, got {operators!r}")
    chosen = sorted(set(operators))

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        a, b = (int(n) for n in rng.integers(10**digits, size=2))
        operator = chosen[rng.integers(len(chosen))]
        if operator == "-":
            a, b = max(a, b), min(a, b)
        result = {"+": a + b, "-": a - b, "*": a * b}[operator]
        return f"{a}{operator}{b}=", {"answer": str(result)}

    longest = max({"+": digits + 1, "-": digits, "*": 2 * digits}[operator] for operator in chosen)
    return symbol_task(
        "arithmetic",
        string.digits + "".join(chosen) + "=",
        draw,
        max_new_tokens=longest + 1,
        reward=matching if partial else exact,
        metrics={"exact": exact},
        num_prompts=num_prompts,
        seed=seed,
    )
