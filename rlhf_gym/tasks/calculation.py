"""Arithmetic that a small language model cannot do in its head, and can with a calculator."""

from __future__ import annotations

import re

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task, whole_number
from rlhf_gym.tasks.samples import Prompt, is_held_out

OPERATORS = "+-*"
_NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?![\d.]*\d)")


def right_number(prompts: list[str], responses: list[str], answer: list[str]) -> list[float]:
    """1 where the last whole number in the response is the answer, else 0; commas between thousands are read over.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        answer: the column with the right answers.

    >>> right_number(["?"] * 4, ["12", "That is 1,012.", "12 or 13", "12.5"], ["12", "1012", "12", "12"])
    [1.0, 1.0, 0.0, 0.0]
    """
    found = [_NUMBER.findall(response) for response in responses]
    return [float(bool(f) and f[-1].replace(",", "") == a) for f, a in zip(found, answer, strict=True)]


def calculation_task(
    *,
    digits: int = 4,
    terms: int = 2,
    operators: str = OPERATORS,
    num_prompts: int = 512,
    seed: int = 0,
) -> Task:
    """Compute an expression: ``What is 3847 * 9182?``; the reward is 1 for the right number, else 0.

    For :class:`~rlhf_gym.envs.tool_env.ToolEnv`; at the token level it is arithmetic without a tool. A sixth of the prompts is
    held out.

    Args:
        digits: most digits of a number, 1 to 9.
        terms: numbers of an expression, 2 to 6.
        operators: some of ``+-*``.
        num_prompts: distinct prompts to draw.
        seed: of the draws. Which prompts are held out does not depend on it.

    Raises:
        TaskError: a value out of its range.
    """
    whole_number("digits", digits, 1, 9)
    whole_number("terms", terms, 2, 6)
    whole_number("num_prompts", num_prompts, 1)
    if not isinstance(operators, str) or not operators or set(operators) - set(OPERATORS):
        raise TaskError(f"operators must be some of {OPERATORS!r}, got {operators!r}")
    rng = np.random.default_rng(seed)
    drawn: dict[str, Prompt] = {}
    misses = 0
    while len(drawn) < num_prompts and misses < 1000:
        numbers = rng.integers(10**digits, size=terms).tolist()
        signs = [operators[i] for i in rng.integers(len(operators), size=terms - 1)]
        expression, value = _written(numbers, signs)
        text = f"What is {expression}?"
        misses = misses + 1 if text in drawn else 0
        drawn.setdefault(text, Prompt(text, {"answer": str(value), "expression": expression}))
    prompts = list(drawn.values())
    train = [p for p in prompts if not is_held_out(p.text)]
    return Task(
        name="calculation",
        prompts=train or prompts,
        held_out=[p for p in prompts if is_held_out(p.text)] if train else [],
        reward=right_number,
        max_new_tokens=64,
    )


def _written(numbers: list[int], signs: list[str]) -> tuple[str, int]:
    """An expression and its value; products come before sums, as everywhere."""
    text, total, product = str(numbers[0]), 0, numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        text += f" {sign} {number}"
        if sign == "*":
            product *= number
        else:
            total, product = total + product, number if sign == "+" else -number
    return text, total + product
