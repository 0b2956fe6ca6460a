"""Opening the feedback store's database so that an acknowledged write survives whatever happens next.

SQLite, tuned for that: write-ahead log (readers go on while somebody writes), ``synchronous=FULL`` (a commit returns
after the disk has it), ``BEGIN IMMEDIATE`` (a writer waits for its turn at the start and never fails halfway), foreign
keys checked.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, insert, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.schema import SCHEMA_VERSION, metadata, store_info, to_json
from rlhf_gym.version import __version__

_ADVICE = {
    sqlite3.SQLITE_FULL: "the disk (or quota) is full; free some space and try again",
    sqlite3.SQLITE_IOERR: "the disk did not take or give the data; free some space, check the disk and try again",
    sqlite3.SQLITE_READONLY: "it is read-only; make it writable or choose another path",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check that its folder exists and may be read and written",
    sqlite3.SQLITE_PERM: "access is denied; check the permissions of the file and its folder",
    sqlite3.SQLITE_BUSY: "another process kept it locked; wait for that process or stop it, and try again",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; choose another path",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; recover what is left with `sqlite3 FILE .recover`",
}


class Database:
    """One open SQLite database file.

    Args:
        path: the file; created, with its folder, where it does not exist (unless ``read_only``).
        read_only: open an existing store without ever writing to it.
        timeout: seconds to wait for another process that is writing.

    Raises:
        FeedbackError: the file cannot be opened, is no feedback store, or was written by a newer rlhf-gym.
    """

    def __init__(self, path: Path, *, read_only: bool, timeout: float) -> None:
        self.path = path
        self.read_only = read_only
        self._timeout = timeout
        # SQLite's own wait polls and is unfair: taking turns inside the process keeps the slowest writer fast.
        self._writers = threading.Lock()
        # A creator, not a URL: paths may hold '?', '%' and '#'. The pool keeps connections: closing the last one would
        # checkpoint the log after every call.
        self._engine: Engine = create_engine(
            "sqlite://", creator=self._connect, poolclass=QueuePool, json_serializer=to_json
        )
        event.listen(self._engine, "begin", _begin)
        self._immediate = self._engine.execution_options(immediate=True)
        with self._explained("opened"):
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees the store as it is at its first read, whatever others write meanwhile."""
        with self._explained("read"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock; when the block ends without an error, the disk has it all.

        Raises:
            FeedbackError: the database could not take the write; nothing of the block was stored.
        """
        if self.read_only:
            raise FeedbackError(
                f"the feedback store {self.path} was opened read-only; open it without read_only to write"
            )
        with self._writers, self._explained("written"), self._immediate.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection; SQLite then folds its log into the one file."""
        self._engine.dispose()

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rwc"
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        # isolation_level=None: Python's sqlite3 starts no transaction of its own; _begin does.
        connection = sqlite3.connect(
            uri, uri=True, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync alone does not reach the disk there
            if not self.read_only:
                self._use_log(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _use_log(self, connection: sqlite3.Connection) -> None:
        """Switch to the write-ahead log; SQLite does not wait here when another process is switching too, so we do."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            if mode != "wal":
                raise FeedbackError(
                    f"the feedback store {self.path} cannot keep a write-ahead log there; put it on a local disk"
                )
            return

    def _prepare(self) -> None:
        """Create the tables in an empty file; in any other, check that it is a store of this schema."""
        with self._engine.begin() as connection:
            tables = inspect(connection).get_table_names()
        if not tables and not self.read_only:
            with self._immediate.begin() as connection:
                # Asked again under the lock: two processes may open a new store at once.
                tables = inspect(connection).get_table_names()
                if not tables:
                    metadata.create_all(connection, checkfirst=False)
                    info = {"schema_version": str(SCHEMA_VERSION), "created_by": f"rlhf-gym {__version__}"}
                    connection.execute(insert(store_info), [{"key": k, "value": v} for k, v in info.items()])
                    return
        if store_info.name not in tables:
            raise FeedbackError(f"{self.path} is a database but not a feedback store; choose another path")
        with self._engine.begin() as connection:
            found = connection.scalar(select(store_info.c.value).where(store_info.c.key == "schema_version"))
        if found != str(SCHEMA_VERSION):
            raise FeedbackError(
                f"the feedback store {self.path} has schema version {found}, this rlhf-gym ({__version__}) expects "
                f"{SCHEMA_VERSION}; use the version of rlhf-gym that wrote it, or export and import"
            )

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn errors of the database into one message that says what to do."""
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            code = getattr(cause, "sqlite_errorcode", None)
            advice = _ADVICE.get(code & 0xFF) if code is not None else None
            raise FeedbackError(self._failed(action, advice or str(cause))) from error
        except OSError as error:
            raise FeedbackError(self._failed(action, error.strerror or str(error))) from error

    def _failed(self, action: str, why: str) -> str:
        kept = ". Every judgement stored before is still there" if action == "written" else ""
        return f"the feedback store {os.fspath(self.path)} could not be {action}: {why}{kept}"


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
