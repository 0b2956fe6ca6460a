"""The page about rewards: its reward in ten lines works as it stands there, from an empty folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from rlhf_gym.cli.main import main
from rlhf_gym.rewards import load_reward
from rlhf_gym.rewards.service.overlap import is_slow

PAGE = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")


def blocks(heading: str, language: str) -> list[str]:
    """The code blocks of a section."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's file in an empty folder; its first line names it."""
    (code,) = blocks("In ten lines", "python")
    name = re.match(r"# (\S+\.py)\n", code)
    assert name is not None
    path = tmp_path_factory.mktemp("empty")
    (path / name[1]).write_text(code, encoding="utf-8")
    return path


def lines() -> list[str]:
    (commands,) = blocks("In ten lines", "sh")
    return commands.splitlines()


def run(line: str) -> int:
    """One of the page's commands, its words as a shell cuts them."""
    program, *arguments = shlex.split(line)
    assert program == "rlhf-gym"
    return main(arguments)


def test_it_is_ten_lines_at_most() -> None:
    (code,) = blocks("In ten lines", "python")
    assert len(code.splitlines()) + len(lines()) <= 10


def test_the_commands_run_one_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    check, train, sample = lines()

    assert run(check) == 0
    checked = capsys.readouterr().out
    assert "reward short_words: 64 samples" in checked
    assert "<- pays" in checked

    assert run(f"{train} --set evaluation.prompts=20") == 0  # instead of 200: the page's own command, in less time
    trained = capsys.readouterr().out
    figures = re.findall(r"^round 1 PPO +(\d)/3 .* rewards \d+\.\d% of the time$", trained, re.MULTILINE)
    assert figures == ["1", "2", "3"]
    assert (folder / "short" / "report.html").stat().st_size > 10_000
    evaluation = json.loads((folder / "short" / "evaluation.json").read_text())
    reward = load_reward(f"{folder}/short_words.py:short_words")
    for pair in evaluation["pairs"]:
        for when in ("before", "after"):
            assert pair[f"gold_{when}"] == reward([pair["prompt"]], [pair[when]])[0]  # it was this reward

    assert run(sample) == 0
    written = capsys.readouterr().out.strip().splitlines()
    assert len(written) == 4
    assert all(line.startswith("The film was") for line in written)


def test_a_function_says_that_it_is_slow() -> None:
    (code,) = blocks("Running", "python")
    names: dict[str, object] = {}
    exec(compile(code, "rewards.md", "exec"), names)
    assert is_slow(names["judge"])


def test_a_judge_for_small_models_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    (code,) = [block for block in blocks("A language model as a judge", "yaml") if "ask.txt" in block]
    template = re.search(r"ask\.txt +# (.*)", code)
    assert template is not None
    (tmp_path / "ask.txt").write_text(template[1])
    (tmp_path / "judge.yaml").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert is_slow(load_reward("judge.yaml"))


def test_people_on_the_page_as_a_reward_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    (code,) = [block for block in blocks("Ratings as they are given", "python") if "WebRater" in block]
    (tmp_path / "on_the_page.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert is_slow(load_reward("on_the_page.py:reward"))
    assert (tmp_path / "ratings.sqlite").exists()  # which the page serves
