"""Feedback in files: whatever the suffix, what was written comes back; the commands; what cannot be used is refused whole."""

from __future__ import annotations

import json
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
from rlhf_gym.feedback.files import export_feedback, import_feedback
from rlhf_gym.feedback.formats import FORMATS, Imported, from_records, to_records

SUFFIXES = (".jsonl", ".json", ".parquet")
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
        prompt=prompt, responses=responses if ranked else responses[:2], form="ranking" if ranked else "pair",
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


@given(answers=ANSWERS, name=st.sampled_from(sorted(FORMATS)), suffix=st.sampled_from(SUFFIXES))
@settings(max_examples=150, deadline=None)
def test_a_file_holds_what_its_records_hold(answers: list[tuple[Query, Judgement]], name: str, suffix: str) -> None:
    records, dropped = to_records(answers, name)
    directly = from_records(json.loads(json.dumps(records)), name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        done = export_feedback(answers, path, name)
        found = import_feedback(path, name)
        assert list(Path(folder).iterdir()) == [path]
    assert (done.written, done.dropped) == (len(records), dropped)
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
    assert import_feedback(empty, "hh") == Imported()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"chosen": "a"}\n{"chosen"\n')
    with pytest.raises(FeedbackError, match=r"record 1 is not of the format 'trl-explicit': it has no 'rejected'"):
        import_feedback(path, "trl-explicit")
    path.write_text('{"chosen": "a", "rejected": "b"}\n\n{"chosen"\n')
    with pytest.raises(FeedbackError, match=r"broken.jsonl, line 3, is not JSON"):
        import_feedback(path, "trl-implicit")
    with pytest.raises(FeedbackError, match="could not be read"):
        import_feedback(tmp_path / "missing.jsonl", "hh")
    with pytest.raises(FeedbackError, match="could not be written"):
        export_feedback(everything(), tmp_path / "missing" / "x.jsonl", "hh")
    with pytest.raises(FeedbackError, match="did you mean 'alpacafarm'"):
        to_records([], "alpaca-farm")
    for name in FORMATS:
        with pytest.raises(FeedbackError, match=f"record 1 is not of the format '{name}'"):
            from_records([{"something": "else"}], name)
        with pytest.raises(FeedbackError, match=f"record 1 is not of the format '{name}'"):
            from_records(["text"], name)  # type: ignore[list-item]


def test_parquet_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("no parquet")
    with pytest.raises(FeedbackError, match=r"x\.parquet could not be read"):
        import_feedback(path, "hh")
    with pytest.raises(FeedbackError, match="could not be read"):
        import_feedback(tmp_path / "missing.parquet", "hh")
    with pytest.raises(FeedbackError, match="could not be written"):
        export_feedback(everything(), tmp_path / "missing" / "x.parquet", "hh")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"rlhf-gym\[hub\]"):
        export_feedback(everything(), path, "hh")


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_datasets_reads_every_export(name: str, suffix: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    path = tmp_path / f"pairs{suffix}"
    answers = [*pair(0, choice=0), *pair(1, "What?", ("Ouch", "Hm"), choice=1, strength=2.0)]
    written = export_feedback(answers, path, name).written
    kind = "parquet" if suffix == ".parquet" else "json"
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == written >= 2
    if name == "trl-conversational":
        assert rows[1]["chosen"] == [{"role": "assistant", "content": "Hm"}]
        assert rows["margin"][:] == [None, 2.0]
    if name == "trl-explicit":
        assert rows[1] == {"prompt": "What?", "chosen": "Hm", "rejected": "Ouch", "margin": 2.0}


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
            "record 1 is not of the format",
        ),
        (
            ("import", file, "--store", tmp_path / "s.sqlite", "--format", "trl"),
            "there is no format 'trl'; did you mean",
        ),
        (("import", good, "--store", tmp_path), "is a folder without a run in it"),
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
