"""docs/people.md can be followed word for word: its commands are commands, its Python runs, its pictures are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlhf_gym.cli.commands import resolve
from rlhf_gym.cli.parser import make_parser
from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.feedback.gold import expected, is_practice

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
    store, gold = blocks("python")
    exec(store, {})
    with FeedbackStore("study.sqlite", read_only=True) as found:
        assert [query.form for query in found.queries()] == ["pair", "ranking"]
    query = eval(gold, {"Query": Query})
    assert expected(query.columns) == {"choice": 0}
    assert is_practice(query.columns)


def test_its_pictures_and_links_are_there() -> None:
    docs = Path(__file__).resolve().parents[1] / "docs"
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", PAGE):
        assert (docs / target).is_file(), target
