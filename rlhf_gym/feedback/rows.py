"""Reads queries and judgements from the feedback store's tables, and appends them, within one transaction.

Appending decides what is refused, what is a retry, and what corrects what.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BindParameter, ColumnElement, Connection, RowMapping, Select, Table, bindparam, insert, select
from sqlalchemy.exc import StatementError

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import schema
from rlhf_gym.feedback.queries import Judgement, Query, check_judgement

_QUERY_FIELDS = tuple(Query.__dataclass_fields__)
_JUDGEMENT_FIELDS = tuple(Judgement.__dataclass_fields__)
# Labelled, for joined tables, which all have an id.
judgement_columns = tuple(schema.judgements.c[name].label(f"judgement_{name}") for name in _JUDGEMENT_FIELDS)
query_columns = tuple(schema.queries.c[name].label(f"asked_{name}") for name in _QUERY_FIELDS)
# Statements are made once: making one takes SQLAlchemy longer than it takes the database to answer it.
_VALUES: BindParameter[Any] = bindparam("values", expanding=True)
_QUERIES = select(*query_columns).where(schema.queries.c.id.in_(_VALUES))
_JUDGEMENTS: dict[str, Select[Any]] = {
    name: select(*judgement_columns).where(schema.judgements.c[name].in_(_VALUES)) for name in ("id", "supersedes")
}
_LATER = schema.judgements.alias("later")
_CURRENT = (
    select(*judgement_columns)
    .where(schema.judgements.c.query_id.in_(_VALUES))
    .where(~select(_LATER.c.id).where(_LATER.c.supersedes == schema.judgements.c.id).exists())
    .order_by(schema.judgements.c.sequence)
)
_INSERTS = {table: insert(table) for table in (schema.queries, schema.judgements)}
# Below the number of variables that any database takes in one statement.
_CHUNK = 500


def query_of(row: Mapping[str, Any] | RowMapping) -> Query:
    """The query in a row that holds :data:`query_columns`.

    Raises:
        FeedbackError: an earlier version, or another program, stored something that is no query.
    """
    return Query(**{name: row[f"asked_{name}"] for name in _QUERY_FIELDS})


def judgement_of(row: RowMapping) -> Judgement:
    """The judgement in a row that holds :data:`judgement_columns`."""
    return Judgement(**{name: row[f"judgement_{name}"] for name in _JUDGEMENT_FIELDS})


def query_row(query: Query, now: datetime) -> dict[str, Any]:
    """A row for ``queries``.

    Args:
        query: the query.
        now: the current time.
    """
    return {**{name: getattr(query, name) for name in _QUERY_FIELDS}, "columns": dict(query.columns), "created_at": now}


def judgement_row(judgement: Judgement) -> dict[str, Any]:
    """A row for ``judgements``; the sequence number is the database's to give."""
    return {**{name: getattr(judgement, name) for name in _JUDGEMENT_FIELDS}, "details": dict(judgement.details)}


def usable(row: Mapping[str, Any] | RowMapping) -> Query | FeedbackError:
    """The query in a row, or what is wrong with it: one bad row must not hide all others."""
    try:
        return query_of(row)
    except FeedbackError as error:
        return error


def queries_by_id(connection: Connection, ids: Collection[str]) -> dict[str, Query]:
    """The stored queries with some ids, by id; what is stored under an id and is no query is left out.

    Args:
        connection: a transaction.
        ids: ids of queries.
    """
    found: dict[str, Query] = {}
    for chunk in chunks(ids):
        for row in connection.execute(_QUERIES, {"values": chunk}).mappings():
            query = usable(row)
            if isinstance(query, Query):
                found[query.id] = query
    return found


def judgements_by(connection: Connection, column: str, values: Collection[str]) -> dict[str, Judgement]:
    """The stored judgements in which a column (``id`` or ``supersedes``) has one of some values, by that value.

    Args:
        connection: a transaction.
        column: ``id`` or ``supersedes``.
        values: the values to look for.
    """
    found: dict[str, Judgement] = {}
    for chunk in chunks(values):
        for row in connection.execute(_JUDGEMENTS[column], {"values": chunk}).mappings():
            found[row[f"judgement_{column}"]] = judgement_of(row)
    return found


def current_judgements(connection: Connection, query_ids: Collection[str]) -> Iterator[Judgement]:
    """The judgements of some queries that nothing supersedes, in the order in which they came, without what is none.

    Args:
        connection: a transaction.
        query_ids: ids of queries.
    """
    for chunk in chunks(query_ids):
        for row in connection.execute(_CURRENT, {"values": chunk}).mappings():
            with suppress(FeedbackError):  # of another program: one bad row must not stop an import
                yield judgement_of(row)


def raters_by_query(
    connection: Connection, ids: Collection[str], among: Sequence[ColumnElement[bool]] = ()
) -> dict[str, set[str]]:
    """The raters who have judged each of some queries; queries without a judgement are left out.

    Args:
        connection: a transaction.
        ids: ids of queries.
        among: conditions on the judgements.
    """
    table, found = schema.judgements.c, dict[str, set[str]]()
    for chunk in chunks(ids):
        statement = select(table.query_id, table.rater).where(table.query_id.in_(chunk), *among)
        for query_id, rater in connection.execute(statement):
            found.setdefault(query_id, set()).add(rater)
    return found


def insert_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, in order.

    Args:
        connection: a transaction.
        table: the table.
        rows: values by column, one mapping a row.

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
    """Values in lists that are short enough for one statement of any database."""
    ordered = list(values)
    for start in range(0, len(ordered), _CHUNK):
        yield ordered[start : start + _CHUNK]


def append_queries(connection: Connection, given: Sequence[Query]) -> int:
    """Append queries within a transaction; see :meth:`rlhf_gym.feedback.FeedbackStore.add_queries`.

    Args:
        connection: writing.
        given: the queries.

    Returns:
        How many were new.

    Raises:
        FeedbackError: as there.
    """
    known = queries_by_id(connection, {query.id for query in given})
    new: dict[str, Query] = {}
    for query in given:
        earlier = known.get(query.id) or new.setdefault(query.id, query)
        if _content(earlier) != _content(query):
            raise FeedbackError(f"query id {query.id} is taken by a query with another content; give it its own id")
    now = datetime.now(UTC)
    insert_rows(connection, schema.queries, [query_row(query, now) for query in new.values()])
    return len(new)


def append_judgements(
    connection: Connection, given: Sequence[Judgement], *, queries: Mapping[str, Query] | None = None
) -> int:
    """Append judgements within a transaction; see :meth:`rlhf_gym.feedback.FeedbackStore.add_judgements`.

    Args:
        connection: writing.
        given: the judgements.
        queries: the queries that they answer, by id, as far as they have been read already.

    Returns:
        How many were new.

    Raises:
        FeedbackError: as there.
    """
    corrected = {judgement.supersedes for judgement in given if judgement.supersedes is not None}
    if queries is None:
        queries = queries_by_id(connection, {judgement.query_id for judgement in given})
    known = judgements_by(connection, "id", corrected | {judgement.id for judgement in given})
    successor = judgements_by(connection, "supersedes", corrected)
    new: list[Judgement] = []
    for judgement in given:
        if judgement.query_id not in queries:
            raise FeedbackError(f"judgement {judgement.id} answers query {judgement.query_id}, which is not stored")
        check_judgement(queries[judgement.query_id], judgement)
        if judgement.id in known:
            if not judgement.same_answer(known[judgement.id]):
                raise FeedbackError(
                    f"judgement {judgement.id} by {judgement.rater!r} on query {judgement.query_id} is stored "
                    "with another answer; judgements are never changed: submit one that supersedes it"
                )
            continue
        if judgement.supersedes is not None:
            _check_correction(judgement, known.get(judgement.supersedes), successor.get(judgement.supersedes))
            successor[judgement.supersedes] = judgement
        known[judgement.id] = judgement
        new.append(judgement)
    insert_rows(connection, schema.judgements, [judgement_row(judgement) for judgement in new])
    return len(new)


def _check_correction(judgement: Judgement, earlier: Judgement | None, successor: Judgement | None) -> None:
    """A correction replaces its own rater's latest answer to the same query."""
    problem = None
    if earlier is None:
        problem = "is not stored"
    elif (earlier.query_id, earlier.rater) != (judgement.query_id, judgement.rater):
        problem = (
            f"is by {earlier.rater!r} on query {earlier.query_id}, not by {judgement.rater!r} on {judgement.query_id}"
        )
    elif successor is not None:
        problem = f"was superseded already, by {successor.id}; supersede that one"
    if problem:
        raise FeedbackError(f"judgement {judgement.id} supersedes {judgement.supersedes}, which {problem}")


def _content(query: Query) -> tuple[object, ...]:
    # Not its place in its round: in next week's export of the same project, a row stands elsewhere.
    return query.round, query.query_type, query.prompt, query.responses
