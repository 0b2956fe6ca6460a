"""A cache of replies by question: in memory, or in a SQLite file that later runs use."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading

from rlhf_gym.errors import ConfigError


class ReplyCache:
    """Texts by question; safe to use from several threads, and from several processes with one file.

    Args:
        path: a file, made where there is none; None keeps them in memory.

    Raises:
        ConfigError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=30, isolation_level=None)
            self._file.execute("CREATE TABLE IF NOT EXISTS replies (question TEXT PRIMARY KEY, text TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise ConfigError(f"the judge's cache {os.fspath(path or '')!r} cannot be used: {error}") from error

    def get(self, question: str) -> str | None:
        """The stored reply to a question; None where there is none."""
        with self._lock:
            row = self._file.execute("SELECT text FROM replies WHERE question = ?", (_name(question),)).fetchone()
        return None if row is None else str(row[0])

    def put(self, question: str, text: str) -> None:
        """Store a reply; it replaces an earlier one to the same question.

        Args:
            question: the key: the whole request as text, of which a hash is stored.
            text: the reply.
        """
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (_name(question), _storable(text)))


def _name(question: str) -> str:
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()


def _storable(text: str) -> str:
    """SQLite holds no lone surrogates; a judge has no use for them either."""
    return text.encode("utf-8", "replace").decode()
