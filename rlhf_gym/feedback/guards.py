"""The database itself refuses what this package never does: to change or remove a query, a judgement, a line of the trail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

GUARDED = ("queries", "judgements", "audit")
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

    Taking a guard away is part of the transaction: whatever happens, nobody else ever sees the table without it.
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
