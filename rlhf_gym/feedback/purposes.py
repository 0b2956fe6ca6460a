"""The purpose of an answer: to teach preferences, or to measure or train the person who gives it.

Answers to check questions, practice and repetitions say something about people. They are kept, and left out where
preferences are learned or handed on, unless somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

from rlhf_gym.feedback.queries import Judgement, Query

Purpose = Literal["preference", "check", "practice", "repeat"]
OTHER_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)[1:]
"""The purposes of answers that are not preferences to be learned."""


def expected(columns: Any) -> Mapping[str, Any] | None:
    """The expected answer in a query's columns; None for a query that is no check question, whatever is stored there."""
    answer = columns.get("expected") if isinstance(columns, Mapping) else None
    return answer if is_answer(answer) else None


def is_answer(value: Any) -> bool:
    """True for a mapping that says what the right answer to a query is."""
    return isinstance(value, Mapping) and any(name in value for name in ("choice", "tie", "ranking", "ratings"))


def is_practice(columns: Mapping[str, Any]) -> bool:
    """True for a practice question: the rater sees the expected answer afterwards."""
    return columns.get("practice") is True


def purpose_of(query: Query, judgement: Judgement) -> Purpose:
    """The purpose of an answer: as it was put to the rater, or else as its query says.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    kind = judgement.details.get("kind")
    if kind in OTHER_PURPOSES:
        return cast(Purpose, kind)
    if expected(query.columns) is None:
        return "preference"
    return "practice" if is_practice(query.columns) else "check"


def to_learn_from(answers: Iterable[tuple[Query, Judgement]]) -> list[tuple[Query, Judgement]]:
    """The answers that preferences are learned from: no check questions, no practice, no repetitions."""
    return [(query, judgement) for query, judgement in answers if purpose_of(query, judgement) == "preference"]
