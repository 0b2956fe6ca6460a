"""Prompts and samples: the two values that all parts exchange.

A *prompt* is the text that the language model continues or answers; a *sample* is one prompt with one response.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One prompt of a task.

    Attributes:
        text: the prompt, before any chat template.
        columns: the data set's other columns (target, label, ...), handed to rewards by name.
    """

    text: str
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One prompt with one response, as text and as token ids.

    Attributes:
        prompt: the prompt, its columns included.
        response: the response's text, cut before any stop sequence, special tokens removed.
        prompt_ids: the ids that the model was given (chat template applied).
        response_ids: the ids as generated, the end-of-sequence token included where there is one.
        ended: True if the response ended by itself (EOS or a stop sequence), False at the length limit.
        paid: of a conversation, what its environment paid in all; None elsewhere, and where one of its rewards failed.
    """

    prompt: Prompt
    response: str
    prompt_ids: tuple[int, ...] = ()
    response_ids: tuple[int, ...] = ()
    ended: bool = True
    paid: float | None = None


def column_names(prompts: Iterable[Prompt]) -> list[str]:
    """The names of all columns that some of these prompts have."""
    return list(dict.fromkeys(name for p in prompts for name in p.columns))


def columns_of(prompts: Sequence[Prompt], names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """The prompts' columns by name; None where a prompt has none of that name.

    Args:
        prompts: some of a task's prompts.
        names: the names of all of the task's columns, so that a reward finds the same ones whichever prompts share its
            batch; None: those that these prompts have.
    """
    return {
        name: [p.columns.get(name) for p in prompts] for name in (column_names(prompts) if names is None else names)
    }


def is_held_out(text: str) -> bool:
    """True for a prompt that is kept for evaluation: a sixth of them, by a hash of the text, for every seed."""
    return hashlib.sha256(text.encode()).digest()[0] < 43
