"""The feedback store's tables, one schema for every database that SQLAlchemy speaks.

Texts that people or models wrote are kept as JSON strings: JSON in ASCII spells what a text column of some database
refuses (NUL, lone surrogates), so that nothing a model writes can fail to be stored.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)
from sqlalchemy.types import TypeDecorator

SCHEMA_VERSION = 2
"""What changes it: a step in ``migrations/versions``, written together with the change of a table here or in ``work``."""

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
        """To UTC; without its zone where the database would drop or refuse it."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """A moment with its zone, always UTC."""
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
    # Unique: corrections form one line, so that of two at once only one is taken and the other is told.
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
