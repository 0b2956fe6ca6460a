"""Check questions, whose answer is known: they measure how careful a rater is, or teach a new rater by practice.

A check question is a query of round 0 with a column ``expected``: ``{"choice": 1}``, ``{"tie": true}``,
``{"ranking": [[2], [0, 1]]}`` or ``{"ratings": {"overall": [5, 1]}}``; responses are named by their index in the query. With
the column ``practice: true`` it comes at the beginning; after the answer the page says whether it was the expected one, and
shows the column ``explanation``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.purposes import expected, is_answer
from rlhf_gym.feedback.queries import Judgement, Query, check_judgement

_FIELDS = ("prompt", "responses", "query_type", "expected", "practice", "explanation", "messages")


def refuse_old_check_questions(queries: Iterable[tuple[str, Mapping[str, Any]]], place: str) -> None:
    """Refuse a store whose check questions have their answer in the column ``gold``, as they had before it was renamed.

    They would be handed out, counted and fitted to as ordinary queries.

    Args:
        queries: id and columns of the store's queries of round 0.
        place: the store's place, for the message.

    Raises:
        FeedbackError: there is such a query.
    """
    for query_id, columns in queries:
        if isinstance(columns, Mapping) and "expected" not in columns and is_answer(columns.get("gold")):
            raise FeedbackError(
                f"query {query_id} of the feedback store {place} is a check question of an earlier version: its answer is in "
                "the column 'gold', and is now expected in 'expected'. Make a new store of the queries, with that column "
                "renamed; a run begins anew"
            )


def meets(judgement: Judgement, columns: Mapping[str, Any]) -> bool:
    """True if a judgement gives the answer that its check question expects.

    The strength of a choice is not compared; of ratings, only the order of the responses is.

    Args:
        judgement: the rater's answer.
        columns: the check question's.
    """
    answer = expected(columns)
    if answer is None or judgement.skipped:
        return False
    if "choice" in answer:
        return bool(judgement.choice == answer["choice"])
    if answer.get("tie"):
        return judgement.tie
    if "ranking" in answer:
        return judgement.ranking is not None and [set(g) for g in judgement.ranking] == [
            set(g) for g in answer["ranking"]
        ]
    return judgement.ratings is not None and all(
        _order(judgement.ratings.get(name, ())) == _order(values) for name, values in answer["ratings"].items()
    )


def check_questions(path: str | None) -> list[Query]:
    """Read check questions from a JSON Lines file, one a line; an empty list if no file is named.

    ``{"prompt": "2 + 2?", "responses": ["4", "5"], "expected": {"choice": 0}, "practice": true, "explanation": "..."}``, with
    ``query_type`` where it is no pair, and ``messages`` where the prompt is a conversation.

    Raises:
        ConfigError: the file cannot be read, or a line is no check question; the message says which.
    """
    if path is None:
        return []
    found: list[Query] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the check questions {path} cannot be read ({error}); give a JSON Lines file") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_question(json.loads(line), len(found)))
            except (ValueError, TypeError, KeyError, FeedbackError) as error:
                what = f"misses {error}" if isinstance(error, KeyError) else str(error)
                raise ConfigError(f"{path}, line {number}: no check question: {what}") from error
    return found


def _question(row: Mapping[str, Any], index: int) -> Query:
    strange = [name for name in row if name not in _FIELDS]
    if strange:
        raise ValueError(f"there is no field {strange[0]!r}; expected {', '.join(_FIELDS)}")
    if expected(row) is None:
        raise ValueError(f"expected must say choice, tie, ranking or ratings; got {row.get('expected')!r}")
    columns = {name: row[name] for name in ("expected", "practice", "explanation", "messages") if name in row}
    query = Query(
        prompt=row["prompt"], responses=tuple(row["responses"]), query_type=row.get("query_type", "pair"), round=0, index=index,
        columns=columns,
    )  # fmt: skip
    answer = {name: _tuples(value) for name, value in row["expected"].items()}
    check_judgement(query, Judgement(query_id=query.id, rater="check", **answer))  # an answer that the query can have
    return query


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _order(values: Any) -> list[list[int]]:
    """The order of each two values: 1, 0 or -1; a pair with None is left out."""
    known = [(i, v) for i, v in enumerate(values) if v is not None]
    return [[i, j, (a > b) - (a < b)] for n, (i, a) in enumerate(known) for j, b in known[n + 1 :]]
