"""The feedback store in one SQLite file.

Write-ahead log (reading goes on during a write), ``synchronous=FULL`` (a commit returns after the disk has it),
``BEGIN IMMEDIATE`` (a writer waits for its turn at the start and never fails halfway), foreign keys checked.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sqlalchemy import Connection, QueuePool, create_engine, event

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.database import Database
from rlhf_gym.feedback.schema import to_json

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


class SqliteDatabase(Database):
    """One open SQLite database file.

    Args:
        path: the file; created, with its folder, where it does not exist (unless ``read_only``). A store of an older
            version is brought up to date (unless ``read_only``: then it is read as it is).
        read_only: open an existing store without ever writing to it.
        timeout: seconds to wait for another process that is writing.

    Raises:
        FeedbackError: the file cannot be opened, is no feedback store, or was written by a newer rlhf-gym.
    """

    def __init__(self, path: Path, *, read_only: bool, timeout: float) -> None:
        self.path = path
        # A creator, not a URL: paths may hold '?', '%' and '#'. The pool keeps connections: closing the last one would
        # checkpoint the log after every call.
        engine = create_engine("sqlite://", creator=self._connect, poolclass=QueuePool, json_serializer=to_json)
        super().__init__(engine, os.fspath(path), read_only=read_only, timeout=timeout)
        event.listen(engine, "begin", _begin)
        self._immediate = engine.execution_options(immediate=True)
        with self._explained("opened"):
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._prepare()

    def purge(self) -> None:
        """Empty the write-ahead log, which keeps old pages until it is full; skipped while others are reading."""
        with self._explained("written"), self._engine.connect() as connection:
            _raw(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _begin_reading(self) -> AbstractContextManager[Connection]:
        return self._engine.begin()

    def _begin_writing(self) -> AbstractContextManager[Connection]:
        return self._immediate.begin()

    @contextmanager
    def _begin_migrating(self) -> Iterator[Connection]:
        with self._immediate.connect() as connection:
            # A table is rebuilt by copying and dropping it; SQLite takes this setting only between transactions.
            _raw(connection).execute("PRAGMA foreign_keys = OFF")
            try:
                with connection.begin():
                    self._check(connection, "quick_check")
                    yield connection
                    self._check(connection, "foreign_key_check")
            finally:
                _raw(connection).execute("PRAGMA foreign_keys = ON")

    def _check(self, connection: Connection, pragma: str) -> None:
        problems = [row for row in connection.exec_driver_sql(f"PRAGMA {pragma}").all() if row[0] != "ok"]
        if problems:
            raise FeedbackError(
                f"the feedback store {self.path} is damaged ({problems[0]}) and was left as it is; recover what is left with "
                "`sqlite3 FILE .recover`"
            )

    def _advice(self, error: BaseException) -> str | None:
        code = getattr(error, "sqlite_errorcode", None)
        return None if code is None else _ADVICE.get(code & 0xFF)

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
            connection.execute("PRAGMA secure_delete = ON")  # what is removed, to forget a person, is overwritten
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


def _raw(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def _begin(connection: Connection) -> None:
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
