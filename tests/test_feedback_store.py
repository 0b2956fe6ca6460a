"""The store: what goes in comes out, in order, once, and is never changed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Preference, Query, StoreCount

HOSTILE = "nul \0 surrogate \ud800 bidi \u202e script <script>alert(1)</script> ansi \x1b[2J line\u2028separator 💡"


@pytest.fixture
def store(store_place: str) -> Iterator[FeedbackStore]:
    with FeedbackStore(store_place) as opened:
        yield opened


def pairs(count: int, **fields: Any) -> list[Query]:
    return [Query(prompt=f"prompt {i}", responses=("left", "right"), index=i, **fields) for i in range(count)]


def choose(query: Query, choice: int = 0, rater: str = "ann", **fields: Any) -> Judgement:
    return Judgement(query_id=query.id, rater=rater, choice=choice, **fields)


def test_everything_comes_back_as_it_went_in(store: FeedbackStore) -> None:
    query = Query(
        prompt=HOSTILE,
        responses=(HOSTILE, "", "x" * 100_000),
        query_type="ranking",
        columns={"label": 1, "nested": {"list": [1.5, None, True, HOSTILE]}},
        model_versions=("a", "b", "c"),
        round=3,
        index=7,
    )
    judgement = Judgement(
        query_id=query.id,
        rater="Zoë 💡",
        ranking=((2,), (0, 1)),
        strength=2.0,
        order_shown=(2, 0, 1),
        seconds=1.25,
        created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5))),
        reason=HOSTILE,
        details={"flag": HOSTILE},
    )
    store.add_queries([query])
    store.add_judgements([judgement])
    assert store.answers() == [(query, judgement)]
    assert store.judgements()[0].created_at == datetime(2026, 1, 1, 22, 4, 5, 678901, tzinfo=UTC)
    rated = Query(prompt="p", responses=("a", "b"), query_type="rating")
    ratings = Judgement(query_id=rated.id, rater="ann", ratings={"helpful": (1.0, None), "honest": (3.5, 2.0)})
    store.add_queries([rated])
    store.add_judgements([ratings])
    assert store.answers(round=1) == [(rated, ratings)]


def test_storing_again_changes_nothing(store: FeedbackStore) -> None:
    queries = pairs(1200)  # more than one statement looks up
    assert (store.add_queries(queries), store.add_queries(queries)) == (1200, 0)
    judgements = [choose(query) for query in queries]
    assert (store.add_judgements(judgements), store.add_judgements(judgements)) == (1200, 0)
    # A retry after a lost reply differs in its clock only; the first one stays.
    retry = replace(judgements[0], created_at=judgements[0].created_at + timedelta(1), seconds=9.0)
    assert store.add_judgements([retry, retry]) == 0
    assert store.judgements()[0] == judgements[0]
    assert store.add_queries(pairs(1201) * 2) == 1


def test_an_id_is_never_taken_over(store: FeedbackStore) -> None:
    query = pairs(1)[0]
    store.add_queries([query])
    store.add_judgements([choose(query, 0)])
    with pytest.raises(FeedbackError, match="submit one that supersedes it"):
        store.add_judgements([choose(query, 1)])
    with pytest.raises(FeedbackError, match="another content"):
        store.add_queries([replace(query, prompt="other")])
    with pytest.raises(FeedbackError, match="another content"):
        store.add_queries(
            [Query(prompt="a", responses=("1", "2"), id="x"), Query(prompt="b", responses=("1", "2"), id="x")]
        )
    assert store.judgements() == [choose(query, 0, created_at=store.judgements()[0].created_at)]


def test_corrections_supersede_and_history_stays(store: FeedbackStore) -> None:
    query = pairs(1)[0]
    first = choose(query, 0)
    second = choose(query, 1, supersedes=first.id)
    third = Judgement(query_id=query.id, rater="ann", skipped=True, supersedes=second.id)
    store.add_queries([query])
    store.add_judgements([first])
    assert [p.chosen for p in store.preferences()] == ["left"]
    store.add_judgements([second])
    assert [p.chosen for p in store.preferences()] == ["right"]
    store.add_judgements([third])
    assert store.preferences() == []
    assert store.judgements() == [third]
    assert store.judgements(superseded=True) == [first, second, third]
    assert len({first.id, second.id, third.id}) == 3


def test_corrections_form_one_line(store: FeedbackStore) -> None:
    query, other = pairs(2)
    first, others = choose(query), choose(other)
    store.add_queries([query, other])
    store.add_judgements([first, others])
    with pytest.raises(FeedbackError, match="not stored"):
        store.add_judgements([choose(query, 1, supersedes="nothing")])
    with pytest.raises(FeedbackError, match="is by 'ann' on query"):
        store.add_judgements([choose(query, 1, rater="bob", supersedes=first.id)])
    with pytest.raises(FeedbackError, match="is by 'ann' on query"):
        store.add_judgements([choose(query, 1, supersedes=others.id)])
    second = choose(query, 1, supersedes=first.id)
    with pytest.raises(FeedbackError, match="superseded already"):
        store.add_judgements([second, choose(query, 0, supersedes=first.id, id="at the same time")])
    assert store.count().judgements == 2
    # Within one call a correction may follow what it corrects.
    assert store.add_judgements([second, choose(query, 0, supersedes=second.id)]) == 2


def test_a_call_is_stored_whole_or_not_at_all(store: FeedbackStore) -> None:
    queries = pairs(3)
    store.add_queries(queries[:2])
    with pytest.raises(FeedbackError, match="which is not stored"):
        store.add_judgements([choose(query) for query in queries])
    with pytest.raises(FeedbackError, match="choice must lie in"):
        store.add_judgements([choose(queries[0]), choose(queries[1], 2)])
    bad = Query(prompt="p", responses=("a", "b"), columns={"good": 1, "bad": float("nan")})
    with pytest.raises(FeedbackError, match=r"columns\['bad'\]"):
        store.add_queries([queries[2], bad])
    with pytest.raises(FeedbackError, match=r"details\['set'\].*set is not a JSON value"):
        store.add_judgements([choose(queries[0]), choose(queries[1], details={"set": {1}})])
    assert store.count() == StoreCount(2, 0, 0, 0, 0, 0, 0)


def test_numpy_columns_are_kept_as_numbers(store: FeedbackStore) -> None:
    store.add_queries(pairs(1, columns={"scalar": np.float32(0.5), "array": np.arange(3)}))
    assert store.queries()[0].columns == {"scalar": 0.5, "array": [0, 1, 2]}


def test_order_is_fixed_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    queries = [*pairs(5, round=2), *pairs(5, round=1)]
    found = []
    for name, order in (("a", range(10)), ("b", reversed(range(10)))):
        with FeedbackStore(tmp_path / name) as store:
            for i in order:
                store.add_queries([queries[i]])
                store.add_judgements([choose(queries[i])])
            assert [(q.round, q.index) for q in store.queries()] == [(r, i) for r in (1, 2) for i in range(5)]
            found.append((store.queries(), [j.id for j in store.judgements()], store.preferences()))
    assert found[0] == found[1]


def test_selection_and_counts(store: FeedbackStore) -> None:
    first, second = pairs(3, round=1), pairs(2, round=2)
    store.add_queries([*first, *second])
    store.add_judgements([choose(first[0]), choose(first[0], 1, rater="bob"), choose(second[1], rater="bob")])
    store.add_judgements([Judgement(query_id=first[1].id, rater="ann", tie=True)])
    store.add_judgements([Judgement(query_id=first[2].id, rater="ann", skipped=True)])
    assert store.queries(round=2) == second
    assert [j.rater for j in store.judgements(round=1)] == ["ann", "bob", "ann", "ann"]
    assert [j.query_id for j in store.judgements(rater="bob")] == [first[0].id, second[1].id]
    assert store.preferences(round=2) == [Preference("prompt 1", "left", "right", None, False, second[1].id, "bob")]
    assert [p.tie for p in store.preferences(round=1)] == [False, False, True]
    assert [p.tie for p in store.preferences(round=1, ties=False)] == [False, False]
    assert store.raters([first[0].id, second[0].id, second[1].id]) == {
        first[0].id: {"ann", "bob"},
        second[1].id: {"bob"},
    }
    assert store.count() == StoreCount(queries=5, answered=4, judgements=5, current=5, skipped=1, ties=1, raters=2)
    assert store.count(round=2) == StoreCount(
        queries=2, answered=1, judgements=1, current=1, skipped=0, ties=0, raters=1
    )


def test_the_database_itself_refuses_changes(store: FeedbackStore) -> None:
    query = pairs(1)[0]
    store.add_queries([query])
    store.add_judgements([choose(query)])
    for statement in ("UPDATE judgements SET choice = 1", "DELETE FROM judgements", "UPDATE queries SET round = 9"):
        with pytest.raises(FeedbackError, match="append-only"), store.database.writing() as connection:
            connection.exec_driver_sql(statement)
    assert store.count().judgements == 1
    two_answers = (
        "INSERT INTO judgements (id, query_id, rater, choice, tie, skipped, order_shown, created_at, reason, details) "
        f"VALUES ('x', '{query.id}', 'ann', 1, {{}}, {{}}, '[]', '2026-01-01', '\"\"', '{{{{}}}}')"
    )
    with pytest.raises(FeedbackError, match="one_answer"), store.database.writing() as connection:
        connection.exec_driver_sql(two_answers.format("'1'", "'0'"))
    assert store.count().judgements == 1


def test_settings_that_durability_hangs_on(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    with store.database.writing() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
        # Another connection cannot begin to write: this one asked for the lock at its start.
        other = sqlite3.connect(store.path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
    store.close()
    assert pragma == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_threads_share_a_store(store: FeedbackStore) -> None:
    queries = pairs(60)
    store.add_queries(queries)
    problems: list[BaseException] = []

    def work(rater: str) -> None:
        try:
            for query in queries:
                store.add_judgements([choose(query, rater=rater)])
                store.count()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(f"rater {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert store.count().judgements == 240


def test_read_only(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    with pytest.raises(FeedbackError, match="could not be opened"):
        FeedbackStore(path, read_only=True)
    assert not path.exists()
    with FeedbackStore(path) as writer, FeedbackStore(path, read_only=True) as reader:
        writer.add_queries(pairs(2))
        assert reader.queries() == pairs(2)
        with pytest.raises(FeedbackError, match="opened read-only"):
            reader.add_queries(pairs(3))
    with FeedbackStore(path, read_only=True) as reader:
        assert reader.queries() == pairs(2)


def test_paths(tmp_path: Path) -> None:
    odd = tmp_path / "new folder" / "a?b#c%20d é.sqlite"
    with FeedbackStore(odd) as store:
        store.add_queries(pairs(1))
    assert odd.is_file()
    with FeedbackStore(f"sqlite:///{odd}") as store:
        assert store.path == odd
        assert store.queries() == pairs(1)
    assert [file.name for file in odd.parent.iterdir()] == [odd.name]  # one file; the log is folded in
    with pytest.raises(FeedbackError, match="sqlite:///FILE"):
        FeedbackStore("mysql://host/db")


def test_what_is_not_a_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and long enough to be read as one\n" * 50)
    with pytest.raises(FeedbackError, match="not an SQLite database"):
        FeedbackStore(text)
    assert text.read_text().startswith("not a database")
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(FeedbackError, match="not a feedback store"):
        FeedbackStore(other)
    newer = tmp_path / "newer.sqlite"
    FeedbackStore(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("UPDATE store_info SET value = '99' WHERE key = 'schema_version'")
    connection.commit()
    connection.close()
    with pytest.raises(FeedbackError, match="schema version 99"):
        FeedbackStore(newer)
    with pytest.raises(FeedbackError, match="could not be opened"):
        FeedbackStore(text / "below a file")
