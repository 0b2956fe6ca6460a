"""Turns the values that a rater function returns into answers to queries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from numbers import Integral
from typing import Any

from rlhf_gym.feedback.queries import Query
from rlhf_gym.text import shorten


class NotAnAnswerError(ValueError):
    """A function returned something that is not an answer; the message begins with "returned"."""


def answer_from_pairs(query: Query, values: Sequence[Any]) -> dict[str, Any]:
    """The answer that follows from comparisons of each two responses (Copeland: wins minus losses decide).

    Args:
        query: a pair, ranking or best query with ``k`` responses.
        values: ``k (k - 1) / 2`` returned values, in the order of ``itertools.combinations(range(k), 2)``.

    Returns:
        The answer as keyword arguments of :class:`~rlhf_gym.feedback.queries.Judgement`.

    Raises:
        NotAnAnswerError: a value is not 0, 1 or None.
    """
    k = len(query.responses)
    wins = [0] * k
    for (i, j), value in zip(combinations(range(k), 2), values, strict=True):
        if value is None:
            continue
        if not _is_index(value, 2):
            raise NotAnAnswerError(f"returned {_shown(value)}; expected 0 (a is better), 1 (b is better) or None")
        better, worse = (j, i) if value else (i, j)
        wins[better] += 1
        wins[worse] -= 1
    groups = [tuple(i for i in range(k) if wins[i] == level) for level in sorted(set(wins), reverse=True)]
    return _answer(query, groups)


def answer_from_candidates(query: Query, value: Any) -> dict[str, Any]:
    """The answer in the value of a function that was shown all responses.

    Args:
        query: a pair, ranking or best query with ``k`` responses.
        value: the index of the best response, a ranking, or None.

    Returns:
        The answer as keyword arguments of :class:`~rlhf_gym.feedback.queries.Judgement`.

    Raises:
        NotAnAnswerError: the value is none of these, or only names the best response of a ranking query.
    """
    k = len(query.responses)
    if value is None:
        return _answer(query, [tuple(range(k))])
    if _is_index(value, k):
        if query.query_type == "ranking" and k > 2:
            raise NotAnAnswerError(
                f"returned {value}, the index of the best; a ranking query needs all in order, best first, such as "
                f"{list(range(k))}: return that, or begin a run that asks for the best only (rater.query_type=best)"
            )
        return _answer(query, [(int(value),), tuple(i for i in range(k) if i != value)])
    if isinstance(value, list | tuple) and value:
        groups = [tuple(group) if isinstance(group, list | tuple) else (group,) for group in value]
        named = [i for group in groups for i in group]
        if all(groups) and all(_is_index(i, k) for i in named) and len(set(named)) == len(named):
            return _answer(query, [tuple(map(int, group)) for group in groups])
    raise NotAnAnswerError(
        f"returned {_shown(value)}; expected the index of the best (0 to {k - 1}), a ranking (a list of indices, best "
        "first) or None"
    )


def batch_of(returned: Any, number: int) -> list[Any]:
    """The values that a batched function returned, one for each prompt.

    Args:
        returned: the function's return value.
        number: prompts that it was called with.

    Raises:
        NotAnAnswerError: it is not a list with one value for each prompt.
    """
    if isinstance(returned, Sequence) and not isinstance(returned, str) and len(returned) == number:
        return list(returned)
    got = (
        f"{len(returned)} answers"
        if isinstance(returned, list | tuple)
        else f"an object of type {type(returned).__name__}"
    )
    raise NotAnAnswerError(f"returned {got}; expected a list of {number} answers, one for each prompt")


def _answer(query: Query, groups: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Groups of responses, best group first, as the query type wants them; no single best of several is a skip."""
    groups = [group for group in groups if group]
    first = groups[0]
    if query.query_type == "ranking":
        return {"ranking": tuple(groups)}
    if len(first) == 1:
        return {"choice": first[0]}
    return {"tie": True} if query.query_type == "pair" else {"skipped": True}


def _is_index(value: Any, k: int) -> bool:
    """True for a whole number in 0..k-1. True and False are refused: they may mean either response."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < k


def _shown(value: Any) -> str:
    hint = " (give int(...): True and False may mean either response)" if isinstance(value, bool) else ""
    return f"{shorten(repr(value))}{hint}"
