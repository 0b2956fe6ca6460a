"""Queries whose answer is known: gold ones tell how careful a rater is, practice ones tell the rater what is meant.

A gold query is a query of round 0 with a column ``gold``: ``{"choice": 1}``, ``{"tie": true}``, ``{"ranking": [[2], [0, 1]]}``
or ``{"ratings": {"overall": [5, 1]}}``, responses named by their index in the query. With ``practice: true`` beside it, it is
asked at the beginning, and the rater is told what was expected, with the column ``explanation``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query, check_judgement

_FIELDS = ("prompt", "responses", "form", "gold", "practice", "explanation", "messages")


def expected(columns: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The known answer, None where there is none."""
    gold = columns.get("gold")
    known = isinstance(gold, Mapping) and any(name in gold for name in ("choice", "tie", "ranking", "ratings"))
    return gold if known else None


def is_practice(columns: Mapping[str, Any]) -> bool:
    """Whether the rater is told afterwards."""
    return columns.get("practice") is True


def meets(judgement: Judgement, columns: Mapping[str, Any]) -> bool:
    """Whether an answer is the known one. How strongly is not asked; of ratings, only which response is above which."""
    gold = expected(columns)
    if gold is None or judgement.skipped:
        return False
    if "choice" in gold:
        return bool(judgement.choice == gold["choice"])
    if gold.get("tie"):
        return judgement.tie
    if "ranking" in gold:
        return judgement.ranking is not None and [set(g) for g in judgement.ranking] == [
            set(g) for g in gold["ranking"]
        ]
    return judgement.ratings is not None and all(
        _order(judgement.ratings.get(name, ())) == _order(values) for name, values in gold["ratings"].items()
    )


def known_queries(path: str | None) -> list[Query]:
    """The queries of a JSON Lines file, one a line, each with its answer; none where there is no file.

    ``{"prompt": "2 + 2?", "responses": ["4", "5"], "gold": {"choice": 0}, "practice": true, "explanation": "..."}``, with
    ``form`` where it is no pair, and ``messages`` where the prompt is a conversation.

    Raises:
        ConfigError: the file cannot be read, or a line is no such query; it says which.
    """
    if path is None:
        return []
    found: list[Query] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the known answers {path} cannot be read ({error}); give a JSON Lines file") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_known(json.loads(line), len(found)))
            except (ValueError, TypeError, KeyError, FeedbackError) as error:
                what = f"misses {error}" if isinstance(error, KeyError) else str(error)
                raise ConfigError(f"{path}, line {number}: no query with a known answer: {what}") from error
    return found


def _known(row: Mapping[str, Any], index: int) -> Query:
    strange = [name for name in row if name not in _FIELDS]
    if strange:
        raise ValueError(f"there is no field {strange[0]!r}; expected {', '.join(_FIELDS)}")
    if expected(row) is None:
        raise ValueError(f"gold must say choice, tie, ranking or ratings; got {row.get('gold')!r}")
    columns = {name: row[name] for name in ("gold", "practice", "explanation", "messages") if name in row}
    query = Query(
        prompt=row["prompt"], responses=tuple(row["responses"]), form=row.get("form", "pair"), round=0, index=index,
        columns=columns,
    )  # fmt: skip
    answer = {name: _tuples(value) for name, value in row["gold"].items()}
    check_judgement(query, Judgement(query_id=query.id, rater="known", **answer))  # an answer that the query can have
    return query


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _tuples(inner) for name, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _order(values: Any) -> list[list[int]]:
    """Of each two values, which is larger: 1, 0 or -1; None counts as nothing at all."""
    known = [(i, v) for i, v in enumerate(values) if v is not None]
    return [[i, j, (a > b) - (a < b)] for n, (i, a) in enumerate(known) for j, b in known[n + 1 :]]
