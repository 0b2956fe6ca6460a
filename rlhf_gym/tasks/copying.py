"""Copy and reverse: write the letters of the prompt again, from the front or from the back."""

from __future__ import annotations

import string

import numpy as np

from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.symbols import exact, matching, symbol_task, whole_number


def copy_task(
    *,
    difficulty: int = 1,
    length: int | None = None,
    num_symbols: int | None = None,
    partial: bool = True,
    num_prompts: int = 512,
    seed: int = 0,
) -> Task:
    """Write the prompt's letters in their order: ``abca>`` asks for ``abca``.

    Args:
        difficulty: 1 or more; sets what is not set below.
        length: letters in a prompt; by default ``1 + difficulty``.
        num_symbols: different letters, 2..26; by default ``2 + 2 * difficulty``, at most 26.
        partial: the reward is the share of places that are right; False: 1 for the whole answer, else 0.
        num_prompts: prompts to draw.
        seed: of the draws.

    Raises:
        TaskError: a number out of its range.
    """
    return _copying("copy", False, difficulty, length, num_symbols, partial, num_prompts, seed)


def reverse_task(
    *,
    difficulty: int = 1,
    length: int | None = None,
    num_symbols: int | None = None,
    partial: bool = True,
    num_prompts: int = 512,
    seed: int = 0,
) -> Task:
    """Write the prompt's letters from the last to the first: ``abcc>`` asks for ``ccba``.

    Arguments and errors as :func:`copy_task`'s.
    """
    return _copying("reverse", True, difficulty, length, num_symbols, partial, num_prompts, seed)


def _copying(
    name: str,
    backwards: bool,
    difficulty: int,
    length: int | None,
    num_symbols: int | None,
    partial: bool,
    num_prompts: int,
    seed: int,
) -> Task:
    whole_number("difficulty", difficulty, 1)
    length = 1 + difficulty if length is None else length
    num_symbols = min(26, 2 + 2 * difficulty) if num_symbols is None else num_symbols
    whole_number("length", length, 1)
    whole_number("num_symbols", num_symbols, 2, 26)
    letters = string.ascii_lowercase[:num_symbols]

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        text = "".join(letters[i] for i in rng.integers(num_symbols, size=length))
        return text + ">", {"answer": text[::-1] if backwards else text}

    return symbol_task(
        name,
        letters + ">",
        draw,
        max_new_tokens=length + 1,
        reward=matching if partial else exact,
        metrics={"exact": exact},
        num_prompts=num_prompts,
        seed=seed,
    )
