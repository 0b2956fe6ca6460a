"""Feedback in files: whatever the suffix, what was written comes back; the commands; what cannot be used is refused whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_feedback_formats import everything, pair

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.feedback.exchange import record_files
from rlhf_gym.feedback.exchange.files import add_imported, export_feedback, import_feedback
from rlhf_gym.feedback.exchange.formats import FORMATS, WRITTEN, to_records
from rlhf_gym.feedback.exchange.incoming import Imported, from_records

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
HOSTILE = st.text(max_size=40) | st.sampled_from(
    [
        "\ud800",
        "a\u2028b\u2029c\x85",
        "\x00",
        "\n\nAssistant: x",
        "x" * 100_000,
        "\r\n",
        "<script>",
        "\u202e",
        "null",
        "NaN",
        "",
    ]
)


def answer_of(
    prompt: str, responses: tuple[str, str, str], kind: str, reason: str, extra: Any
) -> tuple[Query, Judgement]:
    ranked = kind == "ranking"
    query = Query(
        prompt=prompt, responses=responses if ranked else responses[:2], query_type="ranking" if ranked else "pair",
        columns={"x": extra}, index=3,
    )  # fmt: skip
    said: dict[str, Any] = {
        "first": {"choice": 0}, "second": {"choice": 1, "strength": 2.0}, "tie": {"tie": True}, "skip": {"skipped": True},
        "ranking": {"ranking": ((2,), (0, 1))},
    }[kind]  # fmt: skip
    return query, Judgement(query_id=query.id, rater="ann", reason=reason, seconds=1.5, **said)


ANSWERS = st.lists(
    st.builds(
        answer_of,
        HOSTILE,
        st.tuples(HOSTILE, HOSTILE, HOSTILE),
        st.sampled_from(["first", "second", "tie", "skip", "ranking"]),
        HOSTILE,
        st.sampled_from([None, 1, 2.5, "text", {"a": [1, None]}, {"b": "\ud800"}, [1, "mixed"]]),
    ),
    max_size=5,
)


@given(answers=ANSWERS, name=st.sampled_from(sorted(WRITTEN)), suffix=st.sampled_from(SUFFIXES))
@settings(max_examples=150, deadline=None)
def test_a_file_holds_what_its_records_hold(answers: list[tuple[Query, Judgement]], name: str, suffix: str) -> None:
    records, dropped = to_records(answers, name)
    text = json.dumps(records, ensure_ascii=False)
    directly = from_records(json.loads(text if name == "native" else re.sub("[\ud800-\udfff]", "\ufffd", text)), name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        done = export_feedback(answers, path, name)
        found = import_feedback(path, name)
        assert list(Path(folder).iterdir()) == [path]
    assert (done.written, done.dropped) == (len(records), dropped)
    assert (done.replaced > 0) == (name != "native" and re.search("[\ud800-\udfff]", text) is not None)
    assert found.queries == directly.queries
    assert [j.same_answer(k) for j, k in zip(found.judgements, directly.judgements, strict=True)] == [True] * len(
        found.judgements
    )
    if name == "native":
        assert list(zip(found.queries, found.judgements, strict=True)) == answers


def test_files(tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "pairs.json"):
        path = tmp_path / name
        export_feedback(everything(), path, "alpacafarm")
        assert len(import_feedback(path, "alpacafarm").queries) == 8
        assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []
    assert isinstance(json.loads((tmp_path / "pairs.json").read_text()), list)
    empty = tmp_path / "empty.jsonl"
    export_feedback([], empty, "hh")
    assert import_feedback(empty, "hh") == Imported(format="hh")


def test_a_message_keeps_its_own_fields(tmp_path: Path) -> None:
    """Arrow gives all messages of a column the same fields: what it fills in is taken out again, and null stays null."""
    named = [{"role": "user", "content": "x", "name": "bob"}, {"role": "user", "content": "y"}]
    for talk in (
        named,
        [{"role": "user", "content": "x", "name": None}],
        [*named, {"role": "user", "content": "z", "name": None}],
    ):
        query = Query(prompt="P", responses=("a", "b"), columns={"messages": talk})
        answers = [(query, Judgement(query_id=query.id, rater="ann", choice=0)), *pair(1, choice=1)]
        export_feedback(answers, tmp_path / "x.parquet", "trl-conversational")
        assert import_feedback(tmp_path / "x.parquet", "trl-conversational").queries[0].columns["messages"] == talk


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link, beside = tmp_path / "x.jsonl", tmp_path / "link.jsonl", tmp_path / "x.jsonl.part"
    path.write_text("old")
    beside.write_text("somebody's")
    link.symlink_to(path)

    def interrupted(_file: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_feedback(everything(), path, "hh")
    assert path.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.jsonl", "x.jsonl", "x.jsonl.part"]
    export_feedback(everything(), link, "hh")
    assert link.is_symlink()
    assert len(path.read_text().splitlines()) == 5
    assert beside.read_text() == "somebody's"
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(FeedbackError, match="is a folder or a device"):
            export_feedback(everything(), tmp_path / name, "hh")


def test_halves_of_characters(tmp_path: Path) -> None:
    answers = pair(0, "\ud83d\ude00", ("\ud83dx\ude00", "y"), choice=0)  # two halves side by side are one character
    assert export_feedback(answers, tmp_path / "x.jsonl", "trl-explicit").replaced == 2
    found = import_feedback(tmp_path / "x.jsonl", "trl-explicit").queries[0]
    assert (found.prompt, found.responses) == ("\U0001f600", ("y", "\ufffdx\ufffd"))


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"chosen": "a", "rejected": "b"}\n\n{"chosen"\n')
    with pytest.raises(FeedbackError, match=r"broken.jsonl, line 3: not JSON"):
        import_feedback(path, "trl-implicit")
    with pytest.raises(FeedbackError, match="there is no file"):
        import_feedback(tmp_path / "missing.jsonl", "hh")
    with pytest.raises(FeedbackError, match="could not be written"):
        export_feedback(everything(), tmp_path / "missing" / "x.jsonl", "hh")
    with pytest.raises(FeedbackError, match="did you mean 'alpacafarm'"):
        to_records([], "alpaca-farm")
    with pytest.raises(FeedbackError, match="is only read; to write, choose one of native"):
        to_records([], "oasst")
    path.write_text('{"query": {}}\n')
    with pytest.raises(
        FeedbackError, match=r"broken.jsonl: record 1 is not of the format 'native': it has no 'judgement'"
    ):
        import_feedback(path, "native")
    for name in FORMATS:
        if name != "native":
            found = from_records([{"something": "else"}, "text"], name)  # type: ignore[list-item]
            assert (sum(found.dropped.values()), found.queries) == (2, []), name
            assert next(iter(found.examples.values())).startswith("row 1")


def test_parquet_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("no parquet")
    with pytest.raises(FeedbackError, match=r"x\.parquet cannot be read as Parquet"):
        import_feedback(path, "hh")
    with pytest.raises(FeedbackError, match="there is no file"):
        import_feedback(tmp_path / "missing.parquet", "hh")
    with pytest.raises(FeedbackError, match="could not be written"):
        export_feedback(everything(), tmp_path / "missing" / "x.parquet", "hh")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"rlhf-gym\[hub\]"):
        export_feedback(everything(), path, "hh")


def load(path: Path, **options: Any) -> Any:
    datasets = pytest.importorskip("datasets")
    kind = "parquet" if path.suffix == ".parquet" else "json"
    cache = str(path.with_name(f"cache-{path.name}"))
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache, **options)


@pytest.mark.parametrize("name", sorted(WRITTEN))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_datasets_reads_every_export(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{suffix}"
    answers = [*pair(0, choice=0), *pair(1, "What?", ("Ouch", "Hm"), choice=1, strength=2.0)]
    for i, text in enumerate(("\ud800", "\x00", "\u2028", "x" * 100_000, "\r\n\t\x1b"), start=2):
        if (text, name, suffix == ".parquet") != ("\ud800", "native", False):  # Arrow's texts are Unicode
            answers += pair(i, f"P{text}", (f"a{text}", f"{text}b"), choice=0)
    written = export_feedback(answers, path, name).written
    rows = load(path)
    assert len(rows) == written >= 6
    if name == "trl-conversational":
        assert rows[1]["chosen"] == [{"role": "assistant", "content": "Hm"}]
        assert rows["margin"][:2] == [None, 2.0]
    if name == "trl-explicit":
        assert rows[1] == {"prompt": "What?", "chosen": "Hm", "rejected": "Ouch", "margin": 2.0}
        assert rows["prompt"][2:] == ["P\ufffd", "P\x00", "P\u2028", "P" + "x" * 100_000, "P\r\n\t\x1b"]


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_datasets_reads_what_comes_late_in_long_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the types from the first bytes: fields that only late records have stand there as well."""
    few = 16 << 10
    monkeypatch.setattr(record_files, "_INFERRED", few)
    answers: list[tuple[Query, Judgement]] = []
    for i in range(300):
        query = Query(prompt=f"Why {i}?", responses=("Because. " * 20, "No."), index=i)
        answers.append((query, Judgement(query_id=query.id, rater="ann", choice=i % 2)))
    late = Query(prompt="Late?", responses=("a", "b"), columns={"z": {"k": 1.5}}, index=300, model_versions=("m", "n"))
    said: dict[str, Any] = {"strength": 2.0, "seconds": 2.5, "reason": "why", "details": {"preference": 1.7}}
    answers.append((late, Judgement(query_id=late.id, rater="ann", choice=1, **said)))
    late = Query(prompt="Late?", responses=("a", "b", "c"), query_type="ranking", index=301)
    answers.append((late, Judgement(query_id=late.id, rater="ann", ranking=((1,), (0,), (2,)))))
    path = tmp_path / "long.jsonl"
    written = export_feedback(answers, path, name).written
    assert path.stat().st_size > 2 * few
    assert len(load(path, chunksize=few)) == written
    found = import_feedback(path, name)
    assert len(found.queries) == written
    if name == "native":
        assert sorted(q.index for q in found.queries) == list(range(302))


def rate(*arguments: Any) -> int:
    return main(["rate", *map(str, arguments)])


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = everything()
    corrected = Judgement(query_id=answers[0][0].id, rater="ann", choice=1, supersedes=answers[0][1].id)
    store, copy, file = tmp_path / "a.sqlite", tmp_path / "b.sqlite", tmp_path / "all.parquet"
    with FeedbackStore(store) as opened:
        opened.add_queries([query for query, _ in answers])
        opened.add_judgements([*(judgement for _, judgement in answers), corrected])
        everything_there = opened.answers(superseded=True)
    assert rate("export", file, "--store", store, "--all") == 0
    assert "all.parquet: 7 records of 7 answers" in capsys.readouterr().err
    assert rate("import", file, "--store", copy) == 0
    assert "7 new answers to 6 new queries" in capsys.readouterr().err
    assert rate("import", file, "--store", copy) == 0
    assert "0 new answers to 0 new queries, 7 that were there already" in capsys.readouterr().err
    with FeedbackStore(copy, read_only=True) as opened:
        assert opened.answers(superseded=True) == everything_there
    assert rate("export", tmp_path / "p.jsonl", "--store", store, "--format", "hh") == 0
    said = capsys.readouterr().err
    assert "p.jsonl: 5 records of 6 answers; left out: " in said
    assert "1 skips" in said
    assert "2 ties" in said
    assert "became U+FFFD" in said
    assert (
        rate("import", tmp_path / "p.jsonl", "--store", copy, "--format", "hh", "--rater", "crowd", "--round", 2) == 0
    )
    assert (
        rate("import", tmp_path / "p.jsonl", "--store", copy, "--format", "hh", "--rater", "crowd", "--round", 2) == 0
    )
    assert "5 that were there already" in capsys.readouterr().err
    with FeedbackStore(copy, read_only=True) as opened:
        assert {j.rater for j in opened.judgements(2)} == {"crowd"}
        assert len(opened.judgements(2)) == 5


def test_a_file_of_current_answers_stands_alone(tmp_path: Path) -> None:
    """A file need not hold the original of a correction; if the file or the store has it, the two stay linked."""
    [(query, first)] = pair(0, choice=0)
    second = Judgement(query_id=query.id, rater="ann", choice=1, supersedes=first.id)
    third = Judgement(query_id=query.id, rater="ann", tie=True, supersedes=second.id)
    current, every = tmp_path / "current.jsonl", tmp_path / "every.jsonl"
    with FeedbackStore(tmp_path / "a.sqlite") as store:
        store.add_queries([query])
        store.add_judgements([first, second, third])
        export_feedback(store.answers(), current, "native")
        assert add_imported(store, import_feedback(current, "native")).known == 1
        export_feedback(reversed(store.answers(superseded=True)), every, "native")  # corrections first
    with FeedbackStore(tmp_path / "b.sqlite") as store:
        for known in (0, 1):
            added = add_imported(store, import_feedback(current, "native"))
            assert (added.queries, added.judgements, added.known) == (1 - known, 1 - known, known)
        [found] = store.judgements(superseded=True)
        assert (found.id, found.tie, found.supersedes) == (third.id, True, None)
    with FeedbackStore(tmp_path / "c.sqlite") as store:
        assert add_imported(store, import_feedback(every, "native")).judgements == 3
        assert store.judgements() == [third]
        assert store.judgements(superseded=True) == [first, second, third]


def test_an_import_is_all_or_nothing(tmp_path: Path) -> None:
    [(query, first)] = pair(0, choice=0)
    [(other, _)] = pair(1, choice=0)
    ring = [
        Judgement(query_id=other.id, rater="ann", choice=0, supersedes="2" * 32, id="1" * 32),
        Judgement(query_id=other.id, rater="ann", choice=0, supersedes="1" * 32, id="2" * 32),
    ]
    otherwise = Judgement(query_id=query.id, rater="ann", choice=1)
    with FeedbackStore(tmp_path / "a.sqlite") as store:
        store.add_queries([query])
        store.add_judgements([first])
        for refused in ([otherwise], ring):
            with pytest.raises(FeedbackError):
                add_imported(store, Imported([other], refused))
            assert (store.queries(), store.judgements()) == ([query], [first])


def test_the_commands_refuse_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"chosen": "a"}\n')
    good = tmp_path / "good.jsonl"
    export_feedback(everything(), good, "native")
    for arguments, message in (
        (("export", file, "--store", tmp_path / "none.sqlite"), "there is no run and no feedback store at"),
        (("import", tmp_path / "none.jsonl", "--store", tmp_path / "s.sqlite"), "could not be read"),
        (
            ("import", file, "--store", tmp_path / "s.sqlite", "--format", "trl-explicit"),
            "nothing was taken of 1 rows, read as trl-explicit: 1 rows that are not of the format 'trl-explicit' (e.g. row 1",
        ),
        (
            ("import", file, "--store", tmp_path / "s.sqlite", "--format", "trl"),
            "there is no format 'trl'; did you mean",
        ),
        (("import", good, "--store", tmp_path), "is a folder without a run in it"),
        (
            ("import", good, "--store", tmp_path / "s.sqlite", "--round", 2),
            "a round does not go with the format native",
        ),
        (("export", file, "--store", good, "--all", "--format", "hh"), "--all goes with --format native"),
        (("export", file, "--store", good, "--format", "hhh"), "there is no format 'hhh'; did you mean 'hh'"),
    ):
        assert rate(*arguments) != 0
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said
        assert len(said.splitlines()) == 1
    assert [path.name for path in sorted(tmp_path.iterdir(), reverse=True)] == ["x.jsonl", "good.jsonl"]


def test_the_commands_need_no_page(tmp_path: Path) -> None:
    """Answers are taken out and in where the page's libraries are not installed."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['fastapi', 'uvicorn', 'nh3', 'markdown_it']))\n"
        "from rlhf_gym.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    export_feedback(everything(), tmp_path / "x.jsonl", "native")
    command = [sys.executable, "-c", code, "rate", "import", str(tmp_path / "x.jsonl"), "--store", str(tmp_path / "s")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stderr.count("6 new answers") == 1
