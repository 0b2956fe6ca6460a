"""The feedback store in a PostgreSQL database, for studies with many raters or several machines.

Writers take turns, in all processes, by an advisory lock that each transaction takes first: the same contract as SQLite's
``BEGIN IMMEDIATE``, so that what the store and the queue check cannot change before they write. A commit returns after the
server's disk has it (``synchronous_commit=on``, whatever the server's default is).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.database import Database
from rlhf_gym.feedback.schema import to_json

_LOCK = 0x726C68666779  # an arbitrary number that no other program uses: "rlhfgy" in ASCII
_RESTART = "the server cannot be reached, or is restarting; try again in a moment"
_ADVICE = {
    "55P03": "another process kept it locked; wait for that process or stop it, and try again",
    "53100": "the server's disk is full; free some space and try again",
    "53300": "the server has too many connections; close some, or raise its max_connections",
    "28P01": "the user name or the password is wrong; check the URL",
    "28000": "the server does not let this user in; check the URL and the server's pg_hba.conf",
    "3D000": "there is no such database; make it with `createdb`, or check the URL",
    "42501": "this user may not do that there; give it the right to create tables in the schema",
    "25006": "the server takes no writes (a standby?); give the URL of the primary",
}


class PostgresDatabase(Database):
    """One PostgreSQL database (or schema: ``?options=-csearch_path%3Dstudy``) that holds a feedback store.

    Args:
        url: ``postgresql+psycopg://user:password@host:port/database``, or with ``postgresql://``. Where the database is
            empty, its tables are created (unless ``read_only``).
        read_only: open an existing store without ever writing to it.
        timeout: seconds to wait for another process that is writing, and for the server to be reached.

    Raises:
        ConfigError: psycopg is not installed, or the URL cannot be parsed.
        FeedbackError: the server cannot be reached, the database is no feedback store, or a newer rlhf-gym wrote it.
    """

    def __init__(self, url: str, *, read_only: bool, timeout: float) -> None:
        parsed = _parsed(url)
        try:
            engine = create_engine(
                parsed,
                json_serializer=to_json,
                pool_pre_ping=True,  # replaces connections that a restart of the server has cut
                connect_args={"connect_timeout": max(1, round(timeout))},
            )
        except ImportError as error:
            raise ConfigError(
                "a feedback store in PostgreSQL needs psycopg: pip install 'rlhf-gym[postgres]'"
            ) from error
        super().__init__(engine, parsed.render_as_string(hide_password=True), read_only=read_only, timeout=timeout)
        event.listen(engine, "connect", self._set)
        self._snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with self._explained("opened"):
            self._prepare()

    def purge(self) -> None:
        """Have the server drop the old versions of changed rows (its backups and archived logs keep them)."""
        with (
            self._explained("written"),
            self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection,
        ):
            connection.exec_driver_sql("VACUUM judgements, people, invitations")

    def _begin_reading(self) -> AbstractContextManager[Connection]:
        return self._snapshot.begin()

    @contextmanager
    def _begin_writing(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield connection

    def _begin_migrating(self) -> AbstractContextManager[Connection]:
        return self._begin_writing()

    def _set(self, connection: Any, _record: object) -> None:
        """Set up a new connection: these settings hold for all of its transactions."""
        connection.execute("SET synchronous_commit TO on")
        connection.execute(f"SET lock_timeout TO {max(1, round(self._timeout * 1000))}")
        if self.read_only:
            connection.execute("SET default_transaction_read_only TO on")
        connection.commit()

    def _advice(self, error: BaseException) -> str | None:
        state = getattr(error, "sqlstate", None)
        if state is None:  # no answer from a server at all; psycopg's text says which host and why
            text = str(error).strip()
            known = [advice for code, advice in _ADVICE.items() if _WORDS.get(code, "\0") in text]
            return known[0] if known else f"{_RESTART} ({text.splitlines()[0] if text else type(error).__name__})"
        return _RESTART if state[:2] in ("08", "57") else _ADVICE.get(state)


# Where the connection itself is refused, psycopg passes the server's words on without their code.
_WORDS = {
    "28P01": "password authentication failed",
    "28000": "no pg_hba.conf entry",
    "3D000": "does not exist",
    "53300": "too many clients",
}


def _parsed(text: str) -> URL:
    try:
        parsed = make_url(text.replace("postgres://", "postgresql://", 1))
    except (ArgumentError, ValueError) as error:
        raise ConfigError(
            f"expected a URL like postgresql+psycopg://user:password@host:5432/database: {error}"
        ) from error
    if not parsed.database:
        raise FeedbackError(f"{parsed.render_as_string(hide_password=True)} names no database; end it with /NAME")
    return parsed.set(drivername="postgresql+psycopg")
