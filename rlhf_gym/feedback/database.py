"""Opens the feedback store's database so that an acknowledged write survives a crash.

This file holds what both databases share; ``sqlite_database`` and ``postgres_database`` hold the rest.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine, insert, inspect, select, update
from sqlalchemy.exc import SQLAlchemyError

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.schema import GUARDED, SCHEMA_VERSION, guard, metadata, store_info
from rlhf_gym.version import __version__


class Database(ABC):
    """One open database with a feedback store in it.

    Args:
        engine: makes the connections.
        place: its place, for messages.
        read_only: never write to it.
        timeout: seconds to wait for other writers.
    """

    def __init__(self, engine: Engine, place: str, *, read_only: bool, timeout: float) -> None:
        self.place = place
        self.read_only = read_only
        self.version = 0
        self._engine = engine
        self._timeout = timeout
        # Writers of one process queue up here: SQLite's own wait polls and is unfair, PostgreSQL's keeps a connection busy for
        # each.
        self._writers = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the store as it is at its first read, without what others write meanwhile."""
        with self._explained("read"), self._begin_reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """The one writing transaction at a time; when the block ends without an error, the disk has it all.

        Raises:
            FeedbackError: the database could not take the write; nothing of the block was stored. (Where the connection
                was lost while it was being committed, that is unknown: repeat it, which stores nothing twice.)
        """
        if self.read_only:
            raise FeedbackError(
                f"the feedback store {self.place} was opened read-only; open it without read_only to write"
            )
        with self._turn(), self._explained("written"), self._begin_writing() as connection:
            yield connection

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for this process's other writers, no longer than for another process: each of them may be waiting as long."""
        if not self._writers.acquire(timeout=min(self._timeout, threading.TIMEOUT_MAX)):
            cause = TimeoutError(f"others waited before it for {self._timeout:g} s")
            raise FeedbackError(self._failed("written", f"{cause}; try again in a while")) from cause
        try:
            yield
        finally:
            self._writers.release()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @abstractmethod
    def purge(self) -> None:
        """Erase copies of removed rows that the database still keeps."""

    @abstractmethod
    def _begin_reading(self) -> AbstractContextManager[Connection]:
        """A transaction on one snapshot."""

    @abstractmethod
    def _begin_writing(self) -> AbstractContextManager[Connection]:
        """A transaction that has the only right to write, in this and in all other processes."""

    @abstractmethod
    def _begin_migrating(self) -> AbstractContextManager[Connection]:
        """A writing transaction in which tables may be rebuilt."""

    @abstractmethod
    def _advice(self, error: BaseException) -> str | None:
        """Advice on an error of the driver; None where there is none."""

    def _prepare(self) -> None:
        """Create the tables in an empty database, bring an older store up to date, refuse any other database.

        Raises:
            FeedbackError: it is no feedback store, or was written by a newer rlhf-gym.
        """
        found = self._version(None)
        if found == 0 and not self.read_only:
            with self._begin_writing() as connection:
                # Read again under the lock: two processes may open a new store at once.
                found = self._version(connection) or _create(connection)
        if found == 0:
            raise FeedbackError(f"{self.place} is a database but not a feedback store; choose another path")
        if found < SCHEMA_VERSION and not self.read_only:
            with self._begin_migrating() as connection:
                _migrate(connection, self._version(connection))
                found = SCHEMA_VERSION
        # The tables that can be read: a store of an older version that is opened read-only lacks the newer ones.
        self.version = found

    def _version(self, connection: Connection | None) -> int:
        """The schema's version; 0 for an empty database.

        Raises:
            FeedbackError: it is no feedback store, or is newer than this program.
        """
        if connection is None:
            with self._begin_reading() as own:
                return self._version(own)
        tables = inspect(connection).get_table_names()
        if not tables:
            return 0
        if store_info.name not in tables:
            raise FeedbackError(f"{self.place} is a database but not a feedback store; choose another path")
        found = connection.scalar(select(store_info.c.value).where(store_info.c.key == "schema_version"))
        if found is None or not found.isdecimal() or not 1 <= int(found) <= SCHEMA_VERSION:
            raise FeedbackError(
                f"the feedback store {self.place} has schema version {found}, this rlhf-gym ({__version__}) knows versions "
                f"up to {SCHEMA_VERSION}; use the version of rlhf-gym that wrote it, or a newer one"
            )
        return int(found)

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn errors of the database into one message that says what to do."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise FeedbackError(self._failed(action, self._advice(cause) or str(cause).strip())) from error
        except OSError as error:
            raise FeedbackError(self._failed(action, error.strerror or str(error))) from error

    def _failed(self, action: str, why: str) -> str:
        kept = ". Every judgement stored before is still there" if action == "written" else ""
        return f"the feedback store {self.place} could not be {action}: {why}{kept}"


def _create(connection: Connection) -> int:
    """Create the newest schema at once; a test compares it to the result of the migrations."""
    metadata.create_all(connection, checkfirst=False)
    for table in GUARDED:
        guard(connection, table)
    info = {"schema_version": str(SCHEMA_VERSION), "created_by": f"rlhf-gym {__version__}"}
    connection.execute(insert(store_info), [{"key": k, "value": v} for k, v in info.items()])
    return SCHEMA_VERSION


def _migrate(connection: Connection, found: int) -> None:
    """Migrate to the newest schema, unless another process has done it meanwhile."""
    if found == SCHEMA_VERSION:
        return
    from rlhf_gym.feedback.migrations import upgrade

    upgrade(connection, found, SCHEMA_VERSION)
    connection.execute(update(store_info).where(store_info.c.key == "schema_version").values(value=str(SCHEMA_VERSION)))
