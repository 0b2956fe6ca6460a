"""The feedback store's tables, one schema for every database that SQLAlchemy speaks, and the triggers that guard them.

The database itself refuses what this package never does: to change or remove a query, a judgement, a withdrawal or a line of
the audit trail.

Texts that people or models wrote are kept as JSON strings: JSON in ASCII spells what a text column of some database
refuses (NUL, lone surrogates), so that nothing a model writes can fail to be stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = 3
"""The version of the tables below; a change of a table adds 1, and a step in ``migrations/versions``."""

metadata = MetaData(
    naming_convention={
        # Named constraints: migrations can only alter what has a name.
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcTime(TypeDecorator[datetime]):
    """A moment, stored in UTC to the microsecond; SQLite keeps no time zone, so it is put back when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a moment to UTC; drop its zone where the database (SQLite) cannot store one.

        Args:
            value: a moment with its zone, or None, which stays None.
            dialect: the database's dialect.
        """
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return a moment with its zone, always UTC.

        Args:
            value: as the database returned it; without a zone it is UTC. None stays None.
            dialect: the database's dialect; not used.
        """
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def to_json(value: Any) -> str:
    """ASCII JSON; numbers and arrays of NumPy become plain ones.

    Raises:
        TypeError: a value that JSON cannot say.
        ValueError: NaN or infinity, which JSON cannot say either.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    plain = getattr(value, "tolist", None)  # NumPy's scalars and arrays, without importing NumPy
    if plain is None:
        raise TypeError(f"{type(value).__name__} is not a JSON value")
    plain = plain()
    if isinstance(plain, float) and not math.isfinite(plain):
        raise ValueError(f"{plain} is not a JSON value")
    return plain


def json_column() -> JSON:
    """A type for JSON values; a missing one is NULL and not JSON's null."""
    return JSON(none_as_null=True)


store_info = Table(
    "store_info",
    metadata,
    Column("key", String, primary_key=True),
    Column("value", String, nullable=False),
)

queries = Table(
    "queries",
    metadata,
    Column("id", String, primary_key=True),
    Column("round", Integer, nullable=False),
    Column("index", Integer, nullable=False),
    # The column keeps the name it had in the first stores, so that those open without a rebuilt table.
    Column("form", String, key="query_type", nullable=False),
    Column("prompt", json_column(), nullable=False),
    Column("responses", json_column(), nullable=False),
    Column("columns", json_column(), nullable=False),
    Column("model_versions", json_column(), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    CheckConstraint("form IN ('pair', 'ranking', 'rating', 'best', 'thumbs', 'edit')", name="form"),
    Index(None, "round", "index"),
)

judgements = Table(
    "judgements",
    metadata,
    # The order of arrival: what came later has the larger number, also where clocks jump.
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("query_id", String, ForeignKey("queries.id"), nullable=False, index=True),
    Column("rater", String, nullable=False, index=True),
    Column("choice", Integer),
    Column("ranking", json_column()),
    Column("ratings", json_column()),
    Column("tie", Boolean, nullable=False),
    Column("skipped", Boolean, nullable=False),
    Column("strength", Float),
    Column("order_shown", json_column(), nullable=False),
    Column("seconds", Float),
    Column("created_at", UtcTime, nullable=False),
    # Unique: corrections form one line, so that of two at once only one is taken and the other is refused.
    Column("supersedes", String, ForeignKey("judgements.id"), unique=True),
    Column("reason", json_column(), nullable=False),
    Column("details", json_column(), nullable=False),
    # A condition is a number in SQLite, and has to be made one in PostgreSQL.
    CheckConstraint(
        "(choice IS NOT NULL) + (ranking IS NOT NULL) + (ratings IS NOT NULL) + tie + skipped = 1", name="one_answer"
    ).ddl_if(dialect="sqlite"),
    CheckConstraint(
        "(choice IS NOT NULL)::int + (ranking IS NOT NULL)::int + (ratings IS NOT NULL)::int + tie::int + skipped::int = 1",
        name="one_answer",
    ).ddl_if(dialect="postgresql"),
    sqlite_autoincrement=True,  # a number is never given twice
)

# The tables of people at work: who may take part, who holds which query, what was done by whom. They stand in the same
# database, so that an answer, the lease it settles and the count it adds to are one transaction. In a store that no person
# has worked on they are empty.

slots = Table(
    "slots",
    metadata,
    # One row a query that is offered to people: how many have answered it or hold it now.
    Column("query_id", String, ForeignKey("queries.id"), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("index", Integer, nullable=False),
    Column("taken", Integer, nullable=False),
    Column("open", Boolean, nullable=False),
    Index(None, "open", "round", "index"),
)

assignments = Table(
    "assignments",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    # Random: to know it is to hold the lease. It also identifies an answer that is sent twice.
    Column("id", String, nullable=False, unique=True),
    Column("query_id", String, ForeignKey("queries.id"), nullable=False),
    Column("rater", String, nullable=False),
    Column("kind", String, nullable=False),
    # open: to be answered; done: answered; lapsed: the lease ran out (an answer is taken all the same).
    Column("state", String, nullable=False),
    Column("order_shown", json_column(), nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    # The judgement that stands for it now, if any: what a reopened assignment's next answer supersedes.
    Column("judgement_id", String, ForeignKey("judgements.id")),
    Column("answered", Integer, nullable=False, default=0),
    # No person gets the same query twice for the same reason, even if the program errs.
    UniqueConstraint("query_id", "rater", "kind"),
    Index(None, "rater", "state", "sequence"),
    Index(None, "state", "expires_at"),
    sqlite_autoincrement=True,
)

people = Table(
    "people",
    metadata,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("label", String, nullable=False),
    Column("invitation", String, ForeignKey("invitations.id"), nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("forgotten", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", String, primary_key=True),
    Column("hash", String, nullable=False, unique=True),
    Column("role", String, nullable=False),
    Column("label", String, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("used", Integer, nullable=False),
    Column("revoked", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", String, primary_key=True),
    Column("person", String, ForeignKey("people.name"), nullable=False, index=True),
    Column("expires_at", UtcTime, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("details", json_column(), nullable=False),
    sqlite_autoincrement=True,
)

withdrawals = Table(
    "withdrawals",
    metadata,
    Column("sequence", Integer, primary_key=True, autoincrement=True),
    Column("kind", String, nullable=False),
    Column("id", String, nullable=False),
    Column("reason", json_column(), nullable=False),
    Column("actor", String, nullable=False),
    Column("at", UtcTime, nullable=False),
    UniqueConstraint("kind", "id"),
    sqlite_autoincrement=True,
)

GUARDED = ("queries", "judgements", "audit", "withdrawals")
"""Tables that are only ever added to."""

_FUNCTION = """
CREATE OR REPLACE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% are append-only', TG_TABLE_NAME; END $$
"""


def guard(connection: Connection, table: str) -> None:
    """Have the database refuse changes to a table's rows from now on.

    Args:
        connection: of SQLite or PostgreSQL, in a transaction.
        table: its name, one of :data:`GUARDED`.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_FUNCTION.replace("%", "%%"))
        connection.exec_driver_sql(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION append_only()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        connection.exec_driver_sql(
            f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} BEGIN "
            f"SELECT RAISE(ABORT, '{table} are append-only'); END"
        )


@contextmanager
def unguarded(connection: Connection, table: str) -> Iterator[None]:
    """Let this transaction, and no other, change a table's rows: to forget a person, and for nothing else.

    Taking a guard away is part of the transaction: no other transaction ever sees the table without it.

    Args:
        connection: a transaction.
        table: the table.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only")
        yield
        connection.exec_driver_sql(f"ALTER TABLE {table} ENABLE TRIGGER {table}_append_only")
        return
    for change in ("update", "delete"):
        connection.exec_driver_sql(f"DROP TRIGGER {table}_no_{change}")
    yield
    guard(connection, table)
