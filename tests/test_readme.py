"""README's Python runs as it stands, but for the number of training steps; its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.cli.commands import resolve
from rlhf_gym.cli.parser import make_parser
from rlhf_gym.raters import as_rater
from rlhf_gym.rewards import score

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_FILE, ENVIRONMENT, AGENT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = re.findall(r"^rlhf-gym .*", "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)), re.MULTILINE)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_ones_own_rater_and_reward_are_one() -> None:
    own = run(OWN_FILE)
    assert as_rater(own["rater"]).name == "rater"
    assert own["rater"]("Say less.", "gladly", "no") == 1
    assert own["rater"]("Say less.", "yes", "so!") is None
    assert score(own["reward"], ["a", "a"], ["so", "so!"]).values.tolist() == pytest.approx([-0.1, 0.9])


def test_the_environment_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run(ENVIRONMENT)
    assert " | " in capsys.readouterr().out


def test_the_agent_learns_and_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(AGENT.replace("100_000", "100"))["agent"].iteration == 1
    assert (tmp_path / "exclaimer.zip").is_file()


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_one(line: str) -> None:
    options = make_parser().parse_args(shlex.split(line, comments=True)[1:])
    if options.command in ("run", "config"):
        resolve(options)


def test_every_extra_is_listed() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = TEXT.partition("| extra |")[2].partition("\n\n")[0]
    listed = {name for row in table.splitlines() for name in re.findall(r"`([a-z]+)`", row.partition(" | ")[0])}
    assert listed == set(extras) - {"test"}
