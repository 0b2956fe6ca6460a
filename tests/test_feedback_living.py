"""Stores that live on: later states of the same file, rows stored badly, withdrawals, answers with another purpose."""

from __future__ import annotations

import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.cli.main import main
from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.feedback.exchange.files import export_feedback, import_into, spooled
from rlhf_gym.feedback.exchange.formats import NATIVE, WRITTEN, to_records
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.raters import FunctionRater, ask
from rlhf_gym.study.leases import Answer
from rlhf_gym.study.queue import Queue


def row(prompt: str, chosen: Any = "good", rejected: Any = "bad", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def rate(*arguments: Any) -> int:
    return main(["rate", *map(str, arguments)])


def chosen(store: FeedbackStore) -> list[tuple[str, str]]:
    return sorted((p.prompt, p.chosen) for p in store.preferences())


def test_a_later_state_of_the_same_file_gives_the_new_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, file = tmp_path / "s.sqlite", tmp_path / "x.jsonl"
    lines(file, [row("1"), row("2"), row("3"), row("3"), row("4", "bad", "good")])
    assert rate("import", file, "--store", store) == 0
    said = capsys.readouterr().err
    assert "read as trl-explicit" in said
    assert "5 new answers to 4 new queries" in said
    assert "1 answers are to a query that the same rater answers in an earlier row, 0 of them otherwise" in said
    # A row deleted at the beginning, one added, one answer changed; the same question twice, once with another answer.
    lines(file, [row("2"), row("0"), row("3"), row("3", "bad", "good"), row("4")])
    assert rate("import", file, "--store", store) == 0
    said = capsys.readouterr().err
    assert "3 new answers to 1 new queries, 2 of them supersede an earlier one, 2 that were there already" in said
    assert "1 answers that an earlier import brought are not in the file any more; they stay" in said
    with FeedbackStore(store, read_only=True) as opened:
        assert chosen(opened) == [(p, "good") for p in "012"] + [("3", "bad"), ("3", "good"), ("4", "good")]
        assert len(opened.judgements(superseded=True)) == 8
    assert rate("import", file, "--store", store) == 0
    assert "0 new answers to 0 new queries, 5 that were there already" in capsys.readouterr().err
    lines(file, [row("4", "bad", "good")])  # changed back
    assert rate("import", file, "--store", store) == 0
    assert "1 new answers to 0 new queries, 1 of them supersede" in capsys.readouterr().err


def task(number: int, prompt: str, *selected: str) -> dict[str, Any]:
    return {
        "id": number, "data": {"prompt": prompt, "answer1": "a", "answer2": "b"},
        "annotations": [
            {"id": 10 * number + i, "completed_by": i, "result": [{"type": "pairwise", "value": {"selected": side}}]}
            for i, side in enumerate(selected)
        ],
    }  # fmt: skip


def test_next_weeks_export_of_a_project(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        first = [task(1, "P", "left"), task(2, "Q", "left", "right"), task(3, "R", "left")]
        assert import_into(store, lines(tmp_path / "1.jsonl", first))[0].judgements == 4
        later = [task(2, "Q", "left", "left"), task(3, "R", "left"), task(4, "S", "right")]
        added, rows = import_into(store, lines(tmp_path / "2.jsonl", later))
        assert rows.format == "label-studio"
        assert (added.judgements, added.changed, added.known, added.gone) == (2, 1, 2, 1)
        assert [(q.prompt, j.rater, j.choice) for q, j in store.answers(rater="user-1")] == [("Q", "user-1", 0)]


def test_other_files_are_no_later_states(tmp_path: Path) -> None:
    """Answers of another file are not gone, nor are those withdrawn, which a file that still holds them tells."""
    one, other = (lines(tmp_path / f"{name}.jsonl", [row(f"{name}{i}") for i in range(3)]) for name in "ab")
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        import_into(store, one)
        import_into(store, other)
        assert import_into(store, one)[0].gone == 0
        withdrawn = store.judgements()[0]
        store.withdraw(withdrawn.id)
        added = import_into(store, one)[0]
        assert (added.known, added.withdrawn, added.gone) == (3, 1, 0)
        assert import_into(store, lines(one, [row("a1")]))[0].gone == 1
        mixed = lines(tmp_path / "c.jsonl", [row("b0"), row("c0")])
        assert import_into(store, mixed)[0].gone == 0


def test_a_file_is_read_before_the_store_is_locked(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "s.sqlite", timeout=0.1) as store:
        store.add_queries([Query(prompt="P", responses=("a", "b"))])
        with spooled(lines(tmp_path / "a.jsonl", [row("1"), row("2", "x\ud800")])) as spool:
            store.add_queries([Query(prompt="Q", responses=("a", "b"))])
            assert spool.add_to(store).judgements == 2


@pytest.mark.parametrize("bad", [None, ["bad"], {"text": "bad"}, [{"role": "assistant", "content": None}]])
def test_a_row_without_texts_changes_nothing(tmp_path: Path, bad: Any, capsys: pytest.CaptureFixture[str]) -> None:
    store, file = tmp_path / "s.sqlite", lines(tmp_path / "x.jsonl", [row("1", rejected=bad)])
    assert rate("import", file, "--store", store) == 2
    said = capsys.readouterr().err
    assert "nothing was taken of 1 rows" in said
    assert "(e.g. row 1" in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]
    lines(file, [row("1"), row("2", rejected=bad)])
    assert rate("import", file, "--store", store, "--format", "trl-explicit") == 0
    assert "1 new answers to 1 new queries; left out: 1 " in (said := capsys.readouterr().err)
    assert "(e.g. row 2" in said
    for wrong in ({"prompt": bad, "responses": ("a", "b")}, {"prompt": "P", "responses": ("a", bad)}):
        with pytest.raises(FeedbackError, match="must be text"):
            Query(**wrong)


ODD: dict[str, list[Any]] = {
    "query.round": ["one", 1.5, True, 2**70], "query.index": [None, "\ud800"], "query.id": [5, ["x"], "\ud800"],
    "query.model_versions": [["m", None]], "judgement.query_id": [7], "judgement.id": [2**70], "judgement.rater": [3],
    "judgement.choice": [True, "0", 0.0], "judgement.tie": ["", "no"], "judgement.skipped": [[]], "judgement.reason": [None, 5],
    "judgement.details": [[], "x"], "judgement.strength": ["nan", True], "judgement.seconds": ["5"],
    "judgement.supersedes": [4], "judgement.order_shown": [["a", "b"]], "judgement.ratings": [{"overall": ["5", 1]}],
    "judgement.ranking": [[[[]], [1]]],
}  # fmt: skip


@pytest.mark.parametrize("field", ODD)
def test_a_native_row_with_odd_types_changes_nothing(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, inner, name = tmp_path / "s.sqlite", *field.split(".")
    asked = Query(
        prompt="P", responses=("a", "b"), query_type={"ranking": "ranking", "ratings": "rating"}.get(name, "pair")
    )  # type: ignore[arg-type]
    answers = {"ranking": {"ranking": [[0], [1]]}, "ratings": {"ratings": {"overall": [1, 2]}}}
    said: dict[str, Any] = answers.get(name, {"choice": 0})
    [record], _ = to_records([(asked, Judgement(query_id=asked.id, rater="ann", **said))], NATIVE)
    for odd in ODD[field]:
        changed = {**record, inner: {**record[inner], name: odd}}
        assert rate("import", lines(tmp_path / "x.jsonl", [changed]), "--store", store) == 2
        assert "record 1 is not of the format 'native'" in capsys.readouterr().err
        assert not store.exists()


def test_an_import_may_begin_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = lines(tmp_path / "x.jsonl", [row("1")])
    for _ in range(2):
        assert rate("import", file, "--store", tmp_path / "run") == 0
    assert (tmp_path / "run" / "feedback.sqlite").is_file()
    RunDirectory(tmp_path / "run").check(build({}), resume=False)  # `run --out` takes it
    assert rate("import", lines(tmp_path / "y.jsonl", [{"z": 1}]), "--store", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()
    assert rate("import", tmp_path / "none.jsonl", "--store", tmp_path / "other") == 2
    assert rate("import", file, "--store", tmp_path / "run", "--columns", "prompt") == 2
    assert "--columns takes NAME=COLUMN" in capsys.readouterr().err


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A store of an earlier version, which checked no texts: three good queries, and one with a null, handed out."""
    path = tmp_path / "spoiled.sqlite"
    with FeedbackStore(path) as store:
        good = [Query(prompt=f"P{i}", responses=("a", "b"), index=i) for i in range(1, 4)]
        store.add_queries(good)
        store.add_judgements([Judgement(query_id=good[0].id, rater="ann", choice=0)])
    connection = sqlite3.connect(path)
    connection.executescript(
        """INSERT INTO queries VALUES ('badbad01', 1, 0, 'pair', '"P"', '["a",null]', '{}', '[]', '2026-01-02 03:04:05.000006');
        INSERT INTO judgements (id, query_id, rater, choice, tie, skipped, order_shown, created_at, reason, details)
          VALUES ('j-of-bad', 'badbad01', 'ann', 0, 0, 0, '[]', '2026-01-02 03:04:05.000006', '""', '{}');
        INSERT INTO slots VALUES ('badbad01', 1, 0, 0, 1);
        INSERT INTO assignments (id, query_id, rater, kind, state, order_shown, expires_at, answered)
          VALUES ('lease', 'badbad01', 'web/a', 'query', 'open', '[0,1]', '2999-01-02 03:04:05.000006', 0);"""
    )
    connection.close()
    return path


def test_a_bad_row_hides_no_other(spoiled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with FeedbackStore(spoiled) as store, caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [query.prompt for query in store.queries()] == ["P1", "P2", "P3"]
            assert [(p.prompt, p.chosen) for p in store.preferences()] == [("P1", "a")]
        [said] = [record.getMessage() for record in caplog.records]
        assert "query badbad01 was set aside" in said
        assert "response 2 must be text, got NoneType" in said
        assert "rlhf-gym rate withdraw badbad01" in said
        for name in WRITTEN:
            assert export_feedback(store.answers(), tmp_path / "x.jsonl", name).written >= 1
        assert [a.query.prompt for a in Queue(store).next("web/a", count=9)] == ["P2", "P3"]
        caplog.clear()
        assert store.withdraw("badbad01").kind == "query"
    with FeedbackStore(spoiled, read_only=True) as store:
        assert store.count().queries == len(store.queries()) == 3
    assert caplog.records == []


def test_a_bad_answer_stops_no_import(tmp_path: Path) -> None:
    path, file = tmp_path / "s.sqlite", lines(tmp_path / "x.jsonl", [row("1"), row("2")])
    assert rate("import", file, "--store", path) == 0
    connection = sqlite3.connect(path)
    connection.execute(
        """INSERT INTO judgements (id, query_id, rater, choice, tie, skipped, order_shown, created_at, reason, details)
        SELECT 'odd', id, 'bob', 'first', 0, 0, '[]', '2026-01-02 03:04:05.000006', '5', '[]' FROM queries LIMIT 1"""
    )
    connection.commit()
    connection.close()
    assert rate("import", lines(file, [row("1"), row("2", "bad", "good"), row("3")]), "--store", path) == 0
    with FeedbackStore(path, read_only=True) as store:
        assert chosen(store) == [("1", "good"), ("2", "bad"), ("3", "good")]


def test_a_withdrawal_is_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.sqlite"
    asked = [Query(prompt=f"P{i}", responses=("a", "b"), index=i) for i in range(4)]
    with FeedbackStore(path) as store:
        store.add_queries(asked)
        given = [Judgement(query_id=query.id, rater="ann", choice=0) for query in asked[:3]]
        store.add_judgements(given)
        queue = Queue(store)
        [held] = queue.next("web/a")
        assert held.query == asked[3]
        assert rate("withdraw", held.query.id[:8], given[1].id, asked[0].id, "--store", path, "--reason", "spam") == 0
        said = capsys.readouterr().err
        assert f"withdrawn: query {asked[3].id}" in said
        assert f"withdrawn: answer {given[1].id}" in said
        assert [q.prompt for q, _ in store.answers()] == ["P2"]
        assert (store.count().queries, store.count().judgements, len(store.preferences())) == (2, 1, 1)
        assert queue.next("web/a") == queue.next("web/b") == []
        queue.submit(
            held.id, "web/a", Answer(choice=0), seconds=1.0
        )  # who had it before them may send it: it counts for nothing
        assert len(store.preferences()) == 1
        again = store.withdraw(asked[0].id, reason="another")
        assert (again.reason, len(store.withdrawals())) == ("spam", 3)
        # A run goes on without them, and waits for nobody to answer them.
        assert ask(lambda prompt, a, b: 0, asked, store) == 2
        assert {q.prompt for q, _ in store.answers(rater="<lambda>")} == {"P1", "P2"}
        for statement in ("UPDATE withdrawals SET reason = '\"\"'", "DELETE FROM withdrawals"):
            with pytest.raises(FeedbackError, match="append-only"), store.database.writing() as connection:
                connection.exec_driver_sql(statement)
    assert rate("withdraw", "nothing", "--store", path) == 2
    assert "no query and no answer with the id 'nothing'" in capsys.readouterr().err


def test_a_withdrawn_answer_is_none(tmp_path: Path) -> None:
    """It supersedes nothing, its query is asked again, and undo does not bring a withdrawn query back."""
    asked = [Query(prompt=f"P{i}", responses=("a", "b"), index=i) for i in range(2)]
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        store.add_queries(asked)
        chain = [Judgement(query_id=asked[0].id, rater="ann", choice=0)]
        for choice in (1, 0, 1):
            chain.append(Judgement(query_id=asked[0].id, rater="ann", choice=choice, supersedes=chain[-1].id))
        store.add_judgements(chain)
        for gone, current in ((2, 3), (3, 1), (1, 0), (0, None)):
            store.withdraw(chain[gone].id)
            assert [j.id for j in store.judgements()] == ([] if current is None else [chain[current].id])
            assert store.count().current == len(store.judgements())
        assert store.raters([asked[0].id]) == {}
        queue = Queue(store, offered=[query.id for query in asked])
        [first] = queue.next("web/a")
        receipt = queue.submit(first.id, "web/a", Answer(choice=0), seconds=1.0)
        assert queue.next("web/b")[0].query == asked[1]
        store.withdraw(receipt.judgement_id)
        assert queue.next("web/c")[0].query == first.query == asked[0]
        store.withdraw(asked[0].id)
        assert queue.undo("web/a") is None


def test_a_rater_is_asked_again_where_the_answer_was_withdrawn(tmp_path: Path) -> None:
    query = Query(prompt="P", responses=("a", "b"))
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        for choice in (0, 1, 1):
            assert ask(FunctionRater(lambda prompt, a, b, c=choice: c, name="f"), [query], store) == 1
            [said] = store.judgements()
            assert said.choice == choice
            store.withdraw(said.id)


def purposeful() -> list[tuple[Query, Judgement]]:
    known = {"columns": {"expected": {"choice": 0}}, "round": 0}
    check = Query(prompt="2 + 2?", responses=("4", "5"), **known)  # type: ignore[arg-type]
    real = Query(prompt="P", responses=("a", "b"))
    return [
        (check, Judgement(query_id=check.id, rater="web/a", choice=0, details={"kind": "check"})),
        (check, Judgement(query_id=check.id, rater="simulated", choice=1)),
        (real, Judgement(query_id=real.id, rater="web/a", choice=0)),
        (real, Judgement(query_id=real.id, rater="web/a", choice=1, details={"kind": "repeat"}, id="again")),
    ]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "native"])
def test_answers_that_measure_people_are_not_handed_on(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.jsonl"
    done = export_feedback(purposeful(), file, name)
    pairs = 2 if name == "trl-unpaired" else 1
    assert (done.written, done.dropped) == (
        pairs,
        {"answers whose purpose is check": 2, "answers whose purpose is repeat": 1},
    )
    assert "purpose" not in file.read_text()
    assert export_feedback(purposeful(), file, name, every_purpose=True).written == 4 * pairs
    assert [file.read_text().count(f'"purpose":"{p}"') for p in ("check", "repeat")] == [2 * pairs, pairs]
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        import_into(store, file, name)
        # The marks come back: what measured people there teaches nothing here.
        assert len(store.preferences()) == (0 if name == "trl-unpaired" else 1)
        assert len(store.judgements()) == 4 * pairs


def test_preferences_are_learned_from_answers_meant_for_it(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "s.sqlite") as store:
        store.add_queries({query.id: query for query, _ in purposeful()}.values())
        store.add_judgements([judgement for _, judgement in purposeful()])
        assert [(p.prompt, p.chosen) for p in store.preferences()] == [("P", "a")]
        assert len(store.preferences(every_purpose=True)) == 4
        assert [j.choice for _, j in store.answers(to_learn=True)] == [0]
        last = store.last_number()
        [_, _, (real, said), _] = purposeful()
        store.add_judgements([Judgement(query_id=real.id, rater="web/b", choice=1)])
        correction = Judgement(query_id=real.id, rater="web/a", choice=1, supersedes=said.id)
        store.add_judgements([correction, Judgement(query_id=real.id, rater="c", choice=0, details={"kind": "check"})])
        assert len(store.answers(to_learn=True, after=last)) == 2  # a correction is new, a check answer teaches nothing
        export_feedback(store.answers(), tmp_path / "x.jsonl", "native")
    assert (tmp_path / "x.jsonl").read_text().count('"purpose":"check"') == 3
