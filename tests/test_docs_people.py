"""docs/people.md can be followed word for word: its commands are commands, and its Python runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.cli.commands import resolve
from rlhf_gym.cli.main import main
from rlhf_gym.cli.parser import make_parser
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.feedback.exchange.files import export_feedback
from rlhf_gym.feedback.exchange.formats import FORMATS, WRITTEN
from rlhf_gym.feedback.purposes import expected, is_practice
from rlhf_gym.study.checks import check_questions

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "people.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("rlhf-gym ")]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one(line: str) -> None:
    options = make_parser().parse_args(shlex.split(line, comments=True)[1:])
    if options.command == "run" and not options.resume:
        config = resolve(options)
        assert config.rater.name in ("web", "terminal", "simulated")


def test_every_setting_named_in_the_text_exists() -> None:
    for name in set(re.findall(r"`(people\.\w+)", PAGE)):
        section, key = name.split(".")
        options = make_parser().parse_args(["run"])
        assert hasattr(getattr(resolve(options), section), key), name


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store, check, _ = blocks("python")
    exec(store, {})
    with FeedbackStore("study.sqlite", read_only=True) as found:
        assert [query.query_type for query in found.queries()] == ["pair", "ranking"]
    query = eval(check, {"Query": Query})
    assert expected(query.columns) == {"choice": 0}
    assert is_practice(query.columns)
    [lines] = blocks("json")
    Path("checks.jsonl").write_text(lines, encoding="utf-8")
    known = check_questions("checks.jsonl")
    assert [one.query_type for one in known] == ["pair", "ranking", "rating"]
    assert known[0] == query


def test_its_exports_and_imports_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    store, _, load = blocks("python")
    exec(store, {})
    with FeedbackStore("study.sqlite") as opened:
        pair = opened.queries()[0]
        first = Judgement(query_id=pair.id, rater="web/calm-otter-41", choice=0)
        opened.add_judgements([first, replace(first, choice=1, supersedes=first.id, id="")])
        export_feedback(opened.answers(), "comparisons.json", "label-studio")
    lines = [line for line in commands() if line.startswith(("rlhf-gym rate export", "rlhf-gym rate import"))]
    assert len(lines) == 4
    Path("mine.csv").write_text("question,better,worse\r\nP,good,bad\r\n")
    for line in lines:
        assert main(shlex.split(line.replace("runs/study", "study.sqlite"))[1:]) == 0
    loaded: dict[str, Any] = {}
    exec(load.replace('split="train"', f"split='train', cache_dir={str(tmp_path / 'cache')!r}"), loaded)
    chosen, rejected = pair.responses[1], pair.responses[0]
    assert loaded["pairs"][:] == {"prompt": [pair.prompt], "chosen": [chosen], "rejected": [rejected]}
    assert len(loaded["everything"]) == 2
    with FeedbackStore("study.sqlite", read_only=True) as opened:
        assert opened.count().judgements == 4


def test_its_table_of_formats_says_what_each_loses() -> None:
    rows = [
        line.strip("| ").split(" | ")
        for line in PAGE.partition("## Export and import")[2].splitlines()
        if "| `" in line
    ]
    assert {row[0].strip("`"): row[-1] for row in rows if len(row) == 4} == {n: f.loses for n, f in WRITTEN.items()}
    only_read = PAGE.partition("### Formats that are only read")[2].partition("## What is promised")[0]
    names = {line.split("`")[1] for line in only_read.splitlines() if line.startswith("| `")}
    assert names == FORMATS.keys() - WRITTEN.keys()
