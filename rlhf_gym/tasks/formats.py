"""Format control: go on with a film review in a given form."""

from __future__ import annotations

import re

import numpy as np

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards.builtin import Repetition, words
from rlhf_gym.rewards.perplexity import Perplexity
from rlhf_gym.tasks.base import Task
from rlhf_gym.tasks.requests import request_task

_TEXT = r"[^.!?\"()]+"  # no sign that ends a sentence, a quotation or an aside
FEWEST_WORDS = 3

# What is asked, and what a response must match as a whole, white space around it apart.
FORMATS = {
    "one sentence": rf"{_TEXT}\.",
    "a question": rf"{_TEXT}\?",
    "an exclamation": rf"{_TEXT}!",
    "two sentences": rf"{_TEXT}[.!?] {_TEXT}[.!?]",
    "a quotation": rf"\"{_TEXT}[.!?]?\"\.?",
    "an aside": rf"\({_TEXT}[.!?]?\)\.?",
}

# The signs that a form begins with (none: a word) and ends with.
_BEGINS = {"a quotation": '"', "an aside": "("}
_ENDS = {
    "one sentence": (".",),
    "a question": ("?",),
    "an exclamation": ("!",),
    "two sentences": (".", "!", "?"),
    "a quotation": ('"', '".'),
    "an aside": (")", ")."),
}


def format_task(
    *,
    formats: tuple[str, ...] | list[str] = tuple(FORMATS),
    partial: bool = True,
    max_response_tokens: int = 40,
    num_prompts: int | None = None,
    seed: int = 0,
) -> Task:
    """Go on in the form that the prompt names: ``as a question: the plot follows a young doctor``.

    Args:
        formats: which of :data:`FORMATS` are asked for.
        partial: a response that begins or ends as the form does earns a quarter for each; False: only the whole form counts.
        max_response_tokens: the length limit.
        num_prompts: how many prompts to train on; None takes all.
        seed: of the order and the forms.

    Raises:
        TaskError: no form, or an unknown one.
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
        metrics={"in_format": in_format, "repetition": Repetition(n=2), "perplexity": Perplexity()},
        max_response_tokens=max_response_tokens,
        num_prompts=num_prompts,
        seed=seed,
    )


def in_format(prompts: list[str], responses: list[str], format: list[str]) -> list[float]:  # noqa: A002 - the column's name
    """1 where the response has the wanted form and at least three words, else 0.

    >>> in_format([""] * 3, [" was it worth it?", "why?", " it was. not bad!"], ["a question", "a question", "two sentences"])
    [1.0, 0.0, 1.0]
    """
    return [float(_fits(response, name)) for response, name in zip(responses, format, strict=True)]


def near_format(prompts: list[str], responses: list[str], format: list[str]) -> list[float]:  # noqa: A002 - likewise
    """1 where :func:`in_format` is; else a quarter each for beginning and for ending as the form does, in three words or more.

    >>> near_format([""] * 3, ["so it was?", "it was. was it?", '"so it was'], ["a question", "a question", "a quotation"])
    [1.0, 0.5, 0.25]
    """
    return [1.0 if _fits(r, name) else _near(r.strip(), name) for r, name in zip(responses, format, strict=True)]


def _near(text: str, name: str) -> float:
    if len(words(text)) < FEWEST_WORDS:
        return 0.0
    sign = _BEGINS.get(name)
    begins = text.startswith(sign) if sign else text[0].isalnum()
    return 0.25 * begins + 0.25 * text.endswith(_ENDS[name])


def _fits(response: str, name: str) -> bool:
    fits = re.fullmatch(FORMATS[name], response.strip()) is not None
    return fits and len(words(response)) >= FEWEST_WORDS
