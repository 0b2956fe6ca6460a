"""Between rows of the feedback store's tables and the values they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import BindParameter, Connection, RowMapping, Select, Table, bindparam, insert, select
from sqlalchemy.exc import StatementError

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import schema
from rlhf_gym.feedback.queries import Judgement, Query

_QUERY_FIELDS = tuple(Query.__dataclass_fields__)
_JUDGEMENT_FIELDS = tuple(Judgement.__dataclass_fields__)
_JUDGEMENT_COLUMNS = {name: schema.judgements.c[name].label(f"judgement_{name}") for name in _JUDGEMENT_FIELDS}
# For joined tables, which all have an id.
judgement_columns = tuple(_JUDGEMENT_COLUMNS.values())
query_columns = tuple(schema.queries.c[name].label(f"asked_{name}") for name in _QUERY_FIELDS)
# Statements are made once: making one takes SQLAlchemy longer than it takes the database to answer it.
_VALUES: BindParameter[Any] = bindparam("values", expanding=True)
_QUERIES = select(schema.queries).where(schema.queries.c.id.in_(_VALUES))
_JUDGEMENTS: dict[str, Select[Any]] = {
    name: select(schema.judgements).where(schema.judgements.c[name].in_(_VALUES)) for name in ("id", "supersedes")
}
_INSERTS = {table: insert(table) for table in (schema.queries, schema.judgements)}
# Below the number of variables that any database takes in one statement.
_CHUNK = 500


def query_of(row: Mapping[str, Any] | RowMapping, prefix: str = "") -> Query:
    """The query in the columns of a row whose names start with ``prefix``: ``asked_`` for :data:`query_columns`."""
    return Query(**{name: row[prefix + name] for name in _QUERY_FIELDS})


def judgement_of(row: RowMapping, prefix: str = "judgement_") -> Judgement:
    """The judgement in the columns of a row whose names start with ``prefix``."""
    return Judgement(**{name: row[prefix + name] for name in _JUDGEMENT_FIELDS})


def query_row(query: Query, now: datetime) -> dict[str, Any]:
    """A row for ``queries``."""
    return {**{name: getattr(query, name) for name in _QUERY_FIELDS}, "columns": dict(query.columns), "created_at": now}


def judgement_row(judgement: Judgement) -> dict[str, Any]:
    """A row for ``judgements``; the sequence number is the database's to give."""
    return {**{name: getattr(judgement, name) for name in _JUDGEMENT_FIELDS}, "details": dict(judgement.details)}


def queries_by_id(connection: Connection, ids: Collection[str]) -> dict[str, Query]:
    """The stored queries out of some ids."""
    found: dict[str, Query] = {}
    for chunk in chunks(ids):
        for row in connection.execute(_QUERIES, {"values": chunk}).mappings():
            found[row["id"]] = query_of(row)
    return found


def judgements_by(connection: Connection, column: str, values: Collection[str]) -> dict[str, Judgement]:
    """The stored judgements in which a column (``id`` or ``supersedes``) has one of some values, by that value."""
    found: dict[str, Judgement] = {}
    for chunk in chunks(values):
        for row in connection.execute(_JUDGEMENTS[column], {"values": chunk}).mappings():
            found[row[column]] = judgement_of(row, prefix="")
    return found


def raters_by_query(connection: Connection, ids: Collection[str]) -> dict[str, set[str]]:
    """Who has judged each of some queries; queries that nobody has judged are left out."""
    table, found = schema.judgements.c, dict[str, set[str]]()
    for chunk in chunks(ids):
        for query_id, rater in connection.execute(select(table.query_id, table.rater).where(table.query_id.in_(chunk))):
            found.setdefault(query_id, set()).add(rater)
    return found


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, in order.

    Raises:
        FeedbackError: a value that JSON cannot hold; the message names the row and the column.
    """
    if not rows:
        return
    try:
        connection.execute(_INSERTS[table], rows)
    except (StatementError, TypeError, ValueError) as error:
        # SQLAlchemy wraps what its own serialiser raises, psycopg's passes through as it is.
        if isinstance(error, StatementError) and not isinstance(error.orig, TypeError | ValueError):
            raise
        for row in rows:
            for column in ("columns", "details"):
                for name, value in row.get(column, {}).items():
                    try:
                        schema.to_json(value)
                    except (TypeError, ValueError) as problem:
                        raise FeedbackError(
                            f"{table.name}: {column}[{name!r}] of {row['id']} cannot be stored: {problem}; expected "
                            "text, finite numbers, true, false, None, and lists and mappings of those"
                        ) from error
        raise


def chunks(values: Collection[str]) -> Iterator[list[str]]:
    """Some values, few enough at a time for one statement of any database."""
    ordered = list(values)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]
