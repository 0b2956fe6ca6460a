"""Length control: go on with a film review in a given number of words."""

from __future__ import annotations

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.review_requests import request_task


def length_task(
    *,
    targets: tuple[int, ...] | list[int] = (4, 8, 12, 16, 20),
    max_new_tokens: int = 48,
    num_prompts: int | None = None,
    seed: int = 0,
) -> Task:
    """Go on in as many words as the prompt says: ``in 12 words: the plot follows a young doctor``.

    Args:
        targets: the numbers of words that the prompts name, each at least 1.
        max_new_tokens: the length limit.
        num_prompts: number of prompts to train on; None takes all.
        seed: of the order and the numbers.

    Raises:
        TaskError: no target, or one below 1.
    """
    if not targets or any(isinstance(t, bool) or not isinstance(t, int) or t < 1 for t in targets):
        raise TaskError(f"targets must be whole numbers of at least 1, got {targets!r}")

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, int]]:
        target = targets[int(rng.integers(len(targets)))]
        return f"in {target} words: ", {"target": target}

    return request_task(
        "length",
        draw,
        reward=closeness,
        metrics={"exact": exact_length, "words": word_count},
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        seed=seed,
    )


def closeness(prompts: list[str], responses: list[str], target: list[int]) -> list[float]:
    """``1 - |words - target| / target``, at least 0: 1 at the target, 0 for nothing and for twice as many or more.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        target: the column with the wanted numbers of words.

    >>> closeness([""] * 3, ["one two", "one", "a b c d e"], target=[2, 2, 2])
    [1.0, 0.5, 0.0]
    """
    lengths = [len(response.split()) for response in responses]
    return [max(0.0, 1 - abs(n - wanted) / wanted) for n, wanted in zip(lengths, target, strict=True)]


def exact_length(prompts: list[str], responses: list[str], target: list[int]) -> list[float]:
    """1 where the response has exactly as many words as wanted, else 0.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        target: the column with the wanted numbers of words.
    """
    return [float(len(response.split()) == wanted) for response, wanted in zip(responses, target, strict=True)]


def word_count(prompts: list[str], responses: list[str]) -> list[float]:
    """The number of words: what white space separates.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
    """
    return [float(len(response.split())) for response in responses]
