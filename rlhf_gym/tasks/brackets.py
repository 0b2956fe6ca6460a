"""Balanced brackets: close what the prompt opened, in the right order."""

from __future__ import annotations

import numpy as np

from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.symbols import symbol_task, whole_number

PAIRS = ("()", "[]", "{}", "<>")
_CLOSES = {pair[1]: pair[0] for pair in PAIRS}


def open_brackets(text: str) -> list[str] | None:
    """The brackets that are still open at the end of a text, outermost first; None if one closes that is not open.

    >>> open_brackets("([]{"), open_brackets("(]")
    (['(', '{'], None)
    """
    stack: list[str] = []
    for symbol in text:
        if symbol not in _CLOSES:
            stack.append(symbol)
        elif not stack or stack.pop() != _CLOSES[symbol]:
            return None
    return stack


def balanced(prompts: list[str], responses: list[str]) -> list[float]:
    """1 where prompt and response together are balanced, else 0.

    >>> balanced(["([", "(["], ["])", "]"])
    [1.0, 0.0]
    """
    return [float(open_brackets(p + r) == []) for p, r in zip(prompts, responses, strict=True)]


def closed(prompts: list[str], responses: list[str]) -> list[float]:
    """How much of what the prompt opened the response closes: 0 to 1, and 1 only where all is balanced.

    ``c / (n + f)``: the prompt leaves ``n`` brackets open, ``c`` of them are closed before the first mistake (a bracket that
    closes what is not open there), and ``f`` counts faults: that mistake, and brackets that the response opened and left open.

    >>> closed(["(["] * 4, ["])", "]", "])(", "])]"])
    [1.0, 0.5, 0.6666666666666666, 0.6666666666666666]
    """
    return [_closed(p, r) for p, r in zip(prompts, responses, strict=True)]


def _closed(prompt: str, response: str) -> float:
    before = open_brackets(prompt) or []
    stack, lowest, mistakes = list(before), len(before), 0
    for symbol in response:
        if symbol not in _CLOSES:
            stack.append(symbol)
        elif stack and stack[-1] == _CLOSES[symbol]:
            stack.pop()
            lowest = min(lowest, len(stack))
        else:
            mistakes = 1
            break
    left_open = len(stack) - lowest
    return (len(before) - lowest) / max(len(before) + mistakes + left_open, 1)


def brackets_task(
    *,
    difficulty: int = 1,
    depth: int | None = None,
    kinds: int | None = None,
    partial: bool = True,
    num_prompts: int = 512,
    seed: int = 0,
) -> Task:
    """Close the prompt's open brackets: ``([]{`` asks for ``})``.

    Args:
        difficulty: 1 or more; sets what is not set below.
        depth: brackets that a prompt leaves open; by default ``1 + difficulty``.
        kinds: kinds of brackets, 1..4; by default ``1 + difficulty``, at most 4.
        partial: the reward is :func:`closed`; False: 1 for a balanced whole, else 0.
        num_prompts: prompts to draw.
        seed: of the draws.

    Raises:
        TaskError: a number out of its range.
    """
    whole_number("difficulty", difficulty, 1)
    depth = 1 + difficulty if depth is None else depth
    kinds = min(len(PAIRS), 1 + difficulty) if kinds is None else kinds
    whole_number("depth", depth, 1)
    whole_number("kinds", kinds, 1, len(PAIRS))
    closing = {pair[0]: pair[1] for pair in PAIRS[:kinds]}
    openers = list(closing)

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        """A walk up to the depth that now and then closes what it has just opened, `depth` times at most."""
        stack: list[str] = []
        text, closings = "", 0
        while len(stack) < depth:
            if stack and closings < depth and rng.random() < 1 / 3:
                text += closing[stack.pop()]
                closings += 1
            else:
                stack.append(openers[rng.integers(kinds)])
                text += stack[-1]
        return text, {"answer": "".join(closing[s] for s in reversed(stack))}

    return symbol_task(
        "brackets",
        "".join(PAIRS[:kinds]),
        draw,
        max_new_tokens=depth + 1,
        reward=closed if partial else balanced,
        metrics={"balanced": balanced},
        num_prompts=num_prompts,
        seed=seed,
    )
