"""Queries that no page can show: something is stored there that is no question. They are set aside, and that is said.

Files are checked before they are stored. What an earlier version, another program or a hand has put into a store must take
neither a rater's page nor the administrator's down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query, rows, schema


@dataclass(frozen=True)
class SetAside:
    """A query that no page can show.

    Attributes:
        id: the query's id.
        round: its round.
        why: what is wrong with it.
    """

    id: str
    round: int
    why: str


def problem_of(query: Query) -> str:
    """The reason for which no page can show a query; empty where it can be shown."""
    texts = [("prompt", query.prompt), *((f"response {i + 1}", text) for i, text in enumerate(query.responses))]
    for what, text in texts:
        if not isinstance(text, str):
            return f"its {what} is no text but {_named(text)}"
    if not isinstance(query.columns, Mapping):
        return f"its columns are no object but {_named(query.columns)}"
    return ""


def _named(value: Any) -> str:
    """The kind of a JSON value that is no text."""
    names = {type(None): "null", bool: "true or false", dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), "a number")


def queries_set_aside(store: FeedbackStore) -> list[SetAside]:
    """Look all queries of a store through for those that no page can show."""
    found = []
    statement = select(*rows.query_columns).order_by(schema.queries.c.round, schema.queries.c["index"])
    with store.database.reading() as connection:
        for row in connection.execution_options(yield_per=500).execute(statement).mappings():
            try:
                why = problem_of(rows.query_of(row))
            except (FeedbackError, TypeError) as error:
                why = str(error)
            if why:
                found.append(SetAside(row["asked_id"], row["asked_round"], why))
    return found


def shown_answers(store: FeedbackStore) -> list[tuple[Query, Judgement]]:
    """The current answers to queries that a page can show."""
    return [(query, judgement) for query, judgement in store.answers() if not problem_of(query)]
