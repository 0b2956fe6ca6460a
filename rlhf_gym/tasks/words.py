"""Constrained generation: go on with a film review so that given words occur (the shape of CommonGen, Lin et al. 2020)."""

from __future__ import annotations

import numpy as np

from rlhf_gym.rewards.builtin.text_statistics import words
from rlhf_gym.tasks.base import Task, whole_number
from rlhf_gym.tasks.review_requests import request_task

# Words that the untrained model generates now and then: a word never generated is never rewarded. No prompt has them otherwise.
WORDS = (
    "action", "best", "character", "characters", "city", "family", "funny", "girl", "good", "great",
    "hard", "house", "life", "little", "love", "money", "movie", "real", "scene",
    "series", "time", "town", "wife", "world",
)  # fmt: skip


def words_task(
    *,
    num_words: int = 2,
    max_new_tokens: int = 32,
    num_prompts: int | None = None,
    seed: int = 0,
) -> Task:
    """Go on so that the words that the prompt names occur: ``with love and money: the plot follows a young doctor``.

    Args:
        num_words: words to use, 1..6.
        max_new_tokens: the length limit.
        num_prompts: number of prompts to train on; None takes all.
        seed: of the order and the words.

    Raises:
        TaskError: a number out of its range.
    """
    whole_number("num_words", num_words, 1, 6)

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, list[str]]]:
        wanted = [WORDS[i] for i in rng.choice(len(WORDS), size=num_words, replace=False)]
        return f"with {' and '.join(wanted)}: ", {"words": wanted}

    return request_task(
        "words",
        draw,
        reward=coverage,
        metrics={"all_words": all_words},
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        seed=seed,
    )


def coverage(prompts: list[str], responses: list[str], words: list[list[str]]) -> list[float]:
    """The share of the wanted words that occur in the response, case ignored, whole words only: 0 to 1.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        words: the column with the wanted words.

    >>> coverage([""] * 2, ["A slow night.", "a nightmare"], words=[["night", "police"]] * 2)
    [0.5, 0.0]
    """
    return [_share(response, wanted) for response, wanted in zip(responses, words, strict=True)]


def all_words(prompts: list[str], responses: list[str], words: list[list[str]]) -> list[float]:
    """1 where every wanted word occurs, else 0.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        words: the column with the wanted words.
    """
    return [float(share == 1) for share in coverage(prompts, responses, words)]


def _share(response: str, wanted: list[str]) -> float:
    found = set(words(response))
    return sum(word in found for word in wanted) / len(wanted)
