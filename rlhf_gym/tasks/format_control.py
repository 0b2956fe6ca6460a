"""Format control: continue a film review in a given format."""

from __future__ import annotations

import re

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards.builtin.text_statistics import words
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.review_requests import request_task

_TEXT = r"[^.!?\"()]+"  # no sign that ends a sentence, a quotation or an aside
FEWEST_WORDS = 3

# The requests, and the expression that a whole response must match, white space around it apart.
FORMATS = {
    "one sentence": rf"{_TEXT}\.",
    "a question": rf"{_TEXT}\?",
    "an exclamation": rf"{_TEXT}!",
    "two sentences": rf"{_TEXT}[.!?] {_TEXT}[.!?]",
    "a quotation": rf"\"{_TEXT}[.!?]?\"\.?",
    "an aside": rf"\({_TEXT}[.!?]?\)\.?",
}

_SIGNS = '.!?"()'

# The sign that a format begins with (none: a word), those it may end with, and the most signs it has.
_PLACES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "one sentence": ("", (".",), 1),
    "a question": ("", ("?",), 1),
    "an exclamation": ("", ("!",), 1),
    "two sentences": ("", (".", "!", "?"), 2),
    "a quotation": ('"', ('"', '".'), 4),
    "an aside": ("(", (")", ")."), 4),
}


def format_task(
    *,
    formats: tuple[str, ...] | list[str] = tuple(FORMATS),
    partial: bool = True,
    max_new_tokens: int = 40,
    num_prompts: int | None = None,
    seed: int = 0,
) -> Task:
    """Continue in the format that the prompt names: ``as a question: the plot follows a young doctor``.

    Args:
        formats: some of :data:`FORMATS`, which the prompts name.
        partial: a response with some of the format's signs earns up to a half (:func:`near_format`); False: only the whole
            format counts, which the embedded model hardly ever generates by chance.
        max_new_tokens: the length limit.
        num_prompts: number of prompts to train on; None takes all.
        seed: of the order and the formats.

    Raises:
        TaskError: no format, or an unknown one.
    """
    if not formats or any(name not in FORMATS for name in formats):
        raise TaskError(f"formats must be some of {', '.join(FORMATS)}; got {formats!r}")

    def draw(rng: np.random.Generator) -> tuple[str, dict[str, str]]:
        name = formats[int(rng.integers(len(formats)))]
        return f"as {name}: ", {"format": name}

    return request_task(
        "format",
        draw,
        reward=near_format if partial else in_format,
        metrics={"in_format": in_format},
        max_new_tokens=max_new_tokens,
        num_prompts=num_prompts,
        seed=seed,
    )


def in_format(prompts: list[str], responses: list[str], format: list[str]) -> list[float]:  # noqa: A002 - the column's name
    """1 where the response has the wanted format and at least three words, else 0.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        format: the column with the wanted formats' names.

    >>> in_format([""] * 3, [" was it worth it?", "why?", " it was. not bad!"], ["a question", "a question", "two sentences"])
    [1.0, 0.0, 1.0]
    """
    return [float(_fits(response, name)) for response, name in zip(responses, format, strict=True)]


def near_format(prompts: list[str], responses: list[str], format: list[str]) -> list[float]:  # noqa: A002 - likewise
    """1 where :func:`in_format` is; else, in three words or more, half of ``p / (1 + e)``.

    ``p``, 0 to 1, is the mean over the format's signs of 1 for one in its place and 1/2 for one elsewhere; ``e`` is how
    many signs there are beyond the format's. So each step towards the format earns more: a sign, its place, one sign fewer
    that is too many.

    Args:
        prompts: the prompts' texts.
        responses: the responses' texts.
        format: the column with the wanted formats' names.

    >>> near_format([""] * 3, ["so it was? yes", "it was. was it?", '"so it was'], ["a question", "a question", "a quotation"])
    [0.25, 0.25, 0.25]
    """
    return [1.0 if _fits(r, name) else _near(r.strip(), name) for r, name in zip(responses, format, strict=True)]


def _near(text: str, name: str) -> float:
    if len(words(text)) < FEWEST_WORDS:
        return 0.0
    opening, closings, most = _PLACES[name]
    placed = [1.0 if text.endswith(closings) else 0.5 * any(sign[0] in text[1:] for sign in closings)]
    if opening:
        placed.append(1.0 if text.startswith(opening) else 0.5 * (opening in text))
    if name == "two sentences":
        placed.append(float(sum(map(text.count, ".!?")) > 1))
    beyond = max(0, sum(map(text.count, _SIGNS)) - most)
    return 0.5 * sum(placed) / len(placed) / (1 + beyond)


def _fits(response: str, name: str) -> bool:
    fits = re.fullmatch(FORMATS[name], response.strip()) is not None
    return fits and len(words(response)) >= FEWEST_WORDS
