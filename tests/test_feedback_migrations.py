"""Stores of older versions: brought up to date whole or not at all, readable as they are; newer ones are refused."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.feedback import database as database_module
from rlhf_gym.feedback.migrations import upgrade
from rlhf_gym.feedback.schema import SCHEMA_VERSION
from rlhf_gym.study.people import People

# What version 1 wrote, as its own files have it.
VERSION_1 = """
CREATE TABLE store_info ("key" VARCHAR NOT NULL, value VARCHAR NOT NULL, CONSTRAINT pk_store_info PRIMARY KEY ("key"));
CREATE TABLE queries (id VARCHAR NOT NULL, round INTEGER NOT NULL, "index" INTEGER NOT NULL, form VARCHAR NOT NULL,
  prompt JSON NOT NULL, responses JSON NOT NULL, columns JSON NOT NULL, model_versions JSON NOT NULL,
  created_at DATETIME NOT NULL, CONSTRAINT pk_queries PRIMARY KEY (id),
  CONSTRAINT ck_queries_form CHECK (form IN ('pair', 'ranking', 'rating')));
CREATE INDEX ix_queries_round_index ON queries (round, "index");
CREATE TABLE judgements (sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, id VARCHAR NOT NULL,
  query_id VARCHAR NOT NULL, rater VARCHAR NOT NULL, choice INTEGER, ranking JSON, ratings JSON, tie BOOLEAN NOT NULL,
  skipped BOOLEAN NOT NULL, strength FLOAT, order_shown JSON NOT NULL, seconds FLOAT, created_at DATETIME NOT NULL,
  supersedes VARCHAR, reason JSON NOT NULL, details JSON NOT NULL,
  CONSTRAINT ck_judgements_one_answer CHECK ((choice IS NOT NULL) + (ranking IS NOT NULL) + (ratings IS NOT NULL) + tie +
  skipped = 1), CONSTRAINT uq_judgements_id UNIQUE (id),
  CONSTRAINT fk_judgements_query_id_queries FOREIGN KEY(query_id) REFERENCES queries (id),
  CONSTRAINT uq_judgements_supersedes UNIQUE (supersedes),
  CONSTRAINT fk_judgements_supersedes_judgements FOREIGN KEY(supersedes) REFERENCES judgements (id));
CREATE INDEX ix_judgements_query_id ON judgements (query_id);
CREATE INDEX ix_judgements_rater ON judgements (rater);
CREATE TRIGGER queries_no_update BEFORE UPDATE ON queries BEGIN SELECT RAISE(ABORT, 'queries are append-only'); END;
CREATE TRIGGER queries_no_delete BEFORE DELETE ON queries BEGIN SELECT RAISE(ABORT, 'queries are append-only'); END;
CREATE TRIGGER judgements_no_update BEFORE UPDATE ON judgements BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END;
CREATE TRIGGER judgements_no_delete BEFORE DELETE ON judgements BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END;
INSERT INTO store_info VALUES ('schema_version', '1'), ('created_by', 'rlhf-gym 0.1.0');
"""
ROWS = """
INSERT INTO queries VALUES
  ('q{i}', 1, {i}, 'pair', '"nul \\u0000 {i}"', '["a","b"]', '{{"x":1}}', '[]', '2026-01-02 03:04:05.000006');
INSERT INTO judgements (id, query_id, rater, choice, tie, skipped, order_shown, created_at, reason, details)
  VALUES ('j{i}', 'q{i}', 'ann', 1, 0, 0, '[1,0]', '2026-01-02 03:04:05.000006', '""', '{{}}');
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1 + "".join(ROWS.format(i=i) for i in range(3)))
    connection.close()
    return path


def tables(path: Path) -> dict[str, list[str]]:
    """The SQL of a file's tables, indexes and triggers; the order of constraints does not count."""
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    connection.close()
    parts = {name: re.sub(r'[\s"]+', " ", sql).replace("( ", "(") for name, sql in found}
    return {name: sorted(p.rstrip(" )") for p in re.split(r",? (?=CONSTRAINT)", sql)) for name, sql in parts.items()}


def version(path: Path) -> str:
    connection = sqlite3.connect(path)
    [(found,)] = connection.execute("SELECT value FROM store_info WHERE key = 'schema_version'").fetchall()
    connection.close()
    return str(found)


def test_version_1_of_the_migrations_is_what_version_1_wrote(tmp_path: Path, old: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'steps.sqlite'}")
    with engine.begin() as connection:
        upgrade(connection, 0, 1)
    engine.dispose()
    assert tables(tmp_path / "steps.sqlite") == tables(old)


def test_an_old_store_becomes_what_a_new_one_is_and_keeps_everything(tmp_path: Path, old: Path) -> None:
    with FeedbackStore(old, read_only=True) as before:
        kept = before.answers()
    assert version(old) == "1"
    assert len(kept) == 3
    with FeedbackStore(old) as store:
        assert store.answers() == kept
        assert kept[2][0].prompt == "nul \0 2"
        # What is new works, and what was guarded is guarded.
        best = Query(prompt="p", responses=("a", "b", "c"), query_type="best")
        store.add_queries([best])
        store.add_judgements([Judgement(query_id=best.id, rater="ann", choice=2)])
        People(store).invite()
        for statement in ("UPDATE queries SET round = 9", "DELETE FROM judgements", "DELETE FROM audit"):
            with pytest.raises(FeedbackError, match="append-only"), store.database.writing() as connection:
                connection.exec_driver_sql(statement)
        with store.database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    assert version(old) == str(SCHEMA_VERSION)
    FeedbackStore(tmp_path / "new.sqlite").close()
    assert tables(old) == tables(tmp_path / "new.sqlite")
    with FeedbackStore(old) as again:
        assert again.count().judgements == 4


def test_a_migration_that_fails_leaves_the_file_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables(old)

    def half_way(connection: object, found: int, wanted: int) -> None:
        upgrade(connection, found, wanted)  # type: ignore[arg-type]
        raise OSError("the disk is gone")

    monkeypatch.setattr("rlhf_gym.feedback.migrations.upgrade", half_way)
    with pytest.raises(FeedbackError, match="the disk is gone"):
        FeedbackStore(old)
    assert (tables(old), version(old)) == (before, "1")
    monkeypatch.undo()
    with FeedbackStore(old) as store:
        assert store.count().judgements == 3


def test_a_damaged_file_is_not_migrated(old: Path) -> None:
    connection = sqlite3.connect(old)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("DROP TRIGGER queries_no_delete")
    connection.execute("DELETE FROM queries WHERE id = 'q1'")  # a judgement without its query
    connection.commit()
    connection.close()
    with pytest.raises(FeedbackError, match="is damaged"):
        FeedbackStore(old)
    assert version(old) == "1"


def test_many_open_an_old_store_at_once(old: Path) -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with FeedbackStore(old) as store:
                assert store.count().judgements == 3
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    code = f"from rlhf_gym.feedback import FeedbackStore; FeedbackStore({str(old)!r}).close()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert process.wait() == 0, process.stderr
    assert version(old) == str(SCHEMA_VERSION)


@pytest.mark.parametrize("found", ["99", "", "two", "0"])
def test_versions_that_nobody_here_knows(tmp_path: Path, found: str) -> None:
    path = tmp_path / "other.sqlite"
    FeedbackStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE store_info SET value = ?", (found,))
    connection.commit()
    connection.close()
    for read_only in (False, True):
        with pytest.raises(FeedbackError, match=f"has schema version {found}"):
            FeedbackStore(path, read_only=read_only)


def test_a_new_store_needs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_migrate", None)
    for _ in range(2):
        FeedbackStore(tmp_path / "new.sqlite").close()
