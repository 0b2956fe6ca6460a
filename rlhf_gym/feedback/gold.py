"""Queries whose answer is known: gold ones tell how careful a rater is, practice ones tell the rater what is meant.

A gold query is a query of round 0 with a column ``gold``: ``{"choice": 1}``, ``{"tie": true}``, ``{"ranking": [[2], [0, 1]]}``
or ``{"ratings": {"overall": [5, 1]}}``, responses named by their index in the query. With ``practice: true`` beside it, it is
asked at the beginning, and the rater is told what was expected, with the column ``explanation``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_gym.feedback.query import Judgement


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


def _order(values: Any) -> list[list[int]]:
    """Of each two values, which is larger: 1, 0 or -1; None counts as nothing at all."""
    known = [(i, v) for i, v in enumerate(values) if v is not None]
    return [[i, j, (a > b) - (a < b)] for n, (i, a) in enumerate(known) for j, b in known[n + 1 :]]
