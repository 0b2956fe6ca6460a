"""The run directory and the table of metrics: whole after any kill, one process at a time, never another run's."""

from __future__ import annotations

import contextlib
import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.metrics_table import MetricsTable, format_number
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.whole_files import read_json, whole_folder, write_json, write_text


def test_a_new_directory_is_made_and_an_old_run_is_never_overwritten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "run")
    with run.open(build({}), resume=False):
        assert run.config() == build({})
        assert json.loads((run.path / "versions.json").read_text())["rlhf-gym"]
    with pytest.raises(ConfigError, match="already holds a run: give --resume"), run.open(build({}), resume=False):
        pass
    with run.open(build({}), resume=True):
        pass


def test_resume_refuses_settings_that_would_change_metrics(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.open(build({}), resume=False):
        pass
    changed = build({"agent": {"kl_coef": 0.2, "gamma": 0.9}})
    with (
        pytest.raises(ConfigError, match=r"begun with agent\.gamma = 1\.0, not 0\.9 \(and 1 more\)"),
        run.open(changed, resume=True),
    ):
        pass
    with run.open(build({"run": {"rounds": 3}, "log": {"to": ["wandb"]}}), resume=True):
        assert run.config().run.rounds == 3


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_of_something_else_is_refused(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(ConfigError, match=r"not a run directory and not empty \(it holds 'thesis\.tex'\)"),
        RunDirectory(tmp_path).open(build({}), resume=resume),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="is a file; give a directory"),
        RunDirectory(tmp_path / "thesis.tex").open(build({}), resume=resume),
    ):
        pass


def test_a_run_killed_before_its_configuration_was_written_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text("{}")
    (tmp_path / ".config.yaml.part").write_text("pp")
    for name in (
        "feedback.sqlite",
        "feedback.sqlite-wal",
        "feedback.sqlite-links.json",
    ):  # an import whose page was served
        (tmp_path / name).touch()
    with RunDirectory(tmp_path).open(build({}), resume=True):
        assert RunDirectory(tmp_path).config() == build({})


def test_two_processes_never_work_on_one_run(tmp_path: Path) -> None:
    # The lock is of an open file, not of a process: a second opening stands for a second process.
    with (
        RunDirectory(tmp_path).open(build({}), resume=False),
        pytest.raises(ConfigError, match="another process is working on"),
        RunDirectory(tmp_path).open(build({}), resume=True),
    ):
        pass
    with RunDirectory(tmp_path).open(build({}), resume=True):
        pass


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    write_json(file, {"a": [1, math.nan, math.inf, {"b": "\ud800é"}]})
    assert read_json(file) == {"a": [1, None, None, {"b": "\ud800é"}]}

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(file, "new")
    assert read_json(file)["a"][0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_takes_its_place_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    with whole_folder(target) as folder:
        (folder / "a").write_text("old")
    with contextlib.suppress(KeyboardInterrupt), whole_folder(target) as folder:
        (folder / "a").write_text("half")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def row(table: MetricsTable, where: tuple[int, int], step: int, **metrics: Any) -> None:
    table.where = where
    table.write({k.replace("__", "/"): v for k, v in metrics.items()}, {}, step)


def test_the_table_keeps_its_rows_over_resumes_new_columns_and_torn_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    table = MetricsTable(file)
    row(table, (1, 1), 10, objective__scores=0.5, reward__gold=0.1, time__fps=3)
    row(table, (1, 2), 20, objective__scores=1 / 3, policy__skipped_updates=1)
    row(table, (1, 3), 30, objective__scores=2.0)
    text = file.read_text()
    assert text.splitlines()[0] == "round,iteration,timesteps,objective/scores,gold,objective/kl,policy/skipped_updates"
    assert text.splitlines()[1:] == ["1,1,10,0.5,0.1,,", "1,2,20,0.333333333,,,1", "1,3,30,2,,,"]
    file.write_text(text + "1,4,4")  # cut short by a kill
    again = MetricsTable(file)
    assert again.timesteps() == 30
    again.keep_until(1, 2)
    row(again, (1, 3), 30, objective__scores=2.0)
    assert file.read_text() == text
    again.keep_until(1, 0)
    assert again.timesteps() == 0
    assert len(MetricsTable(file).rows) == 0


def test_a_table_that_no_run_wrote_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    for text in ("round;iteration;timesteps\n1;1;10\n", "round,iteration,timesteps\n1,one,10\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"metrics\.csv is not the table that the run wrote"):
            MetricsTable(file)


def test_a_json_file_that_no_run_wrote_is_named(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text('{"sample": ')
    with pytest.raises(ConfigError, match=r"stages\.json is not the JSON file that the run wrote"):
        read_json(tmp_path / "stages.json")
    assert read_json(tmp_path / "none.json") is None


def test_a_disk_without_locks_is_not_taken_for_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("rlhf_gym.loop.run_directory._lock", no_locks)
    with (
        pytest.raises(ConfigError, match=r"does not let .*\.lock be locked \(No locks available\)"),
        RunDirectory(tmp_path).open(build({}), resume=False),
    ):
        pass


def test_metrics_keep_their_digits() -> None:
    assert format_number(12_345_678_901) == "12345678901"  # tokens of a long run
    assert [format_number(x) for x in (1, 0.1, 1e-9, True, 123456789)] == ["1", "0.1", "1e-09", "1", "123456789"]
    assert float(format_number(0.12345678)) == 0.12345678
