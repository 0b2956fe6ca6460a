"""The algorithms' benchmark: a small piece of it runs, is resumed, and prints what it found."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "algorithms"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("algorithms_run", FOLDER / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


def start(*arguments: str) -> str:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_run_is_made_once_judged_and_shown(tmp_path: Path) -> None:
    found = {
        "algorithm": "REINFORCE",
        "options": {"learning_rate": 0.001},
        "reward": 0.5,
        "kl": 1.0,
        "task": "copy",
        "seed": 100,
    }
    (tmp_path / "search.jsonl").write_text(json.dumps(found) + "\n" + json.dumps(found)[:30])  # the second was cut off
    piece = ["table", "--out", str(tmp_path), "--algorithm", "REINFORCE", "--task", "copy", "--seeds", "1"]
    start(*piece)
    line = (tmp_path / "table.jsonl").read_text()
    result = json.loads(line)
    assert result["options"] == {"learning_rate": 0.001}
    assert result["reward"] > result["scores"][0] + 0.2  # it learned: measured 0.1 to 0.9 over five seeds
    assert 0 < result["seconds"] < 300
    assert start(*piece) == ""  # nothing is left to run
    assert (tmp_path / "table.jsonl").read_text() == line
    shown = start("print", "--out", str(tmp_path))
    assert f"| REINFORCE | {result['reward']:.3f} [" in shown


def test_the_best_mean_objective_over_the_searched_tasks_is_chosen(run: ModuleType) -> None:
    def ran(task: str, rate: float, reward: float, kl: float = 1.0) -> dict[str, object]:
        return {"algorithm": "PPO", "task": task, "options": {"learning_rate": rate}, "reward": reward, "kl": kl}

    runs = [ran("copy", 1e-3, 0.9), ran("brackets", 1e-3, 0.1), ran("copy", 1e-4, 0.6), ran("brackets", 1e-4, 0.5)]
    runs += [ran("sentiment", 1e-3, 1.2, kl=9.0), ran("sentiment", 3e-4, 1.0, kl=4.0)]  # 0.3 and 0.6
    assert run.chosen(runs, "PPO", "sort") == {"learning_rate": 1e-4}
    assert run.chosen(runs, "PPO", "sentiment") == {"learning_rate": 3e-4}
    with pytest.raises(SystemExit, match="no run of RLOO on copy or brackets"):
        run.chosen(runs, "RLOO", "copy")


def test_every_algorithm_of_the_house_is_compared(run: ModuleType) -> None:
    assert {job[0] for job in run.search_jobs(list(run.ALGORITHMS), 1)} == set(run.ALGORITHMS)


def test_the_interval_of_the_mean_holds_it(run: ModuleType) -> None:
    low, high = run.interval([0.1, 0.2, 0.3, 0.4, 0.5])
    assert 0.1 < low < 0.3 < high < 0.5
    assert run.interval([0.7] * 5) == pytest.approx((0.7, 0.7))


def test_the_tables_that_are_shown_are_those_of_the_results() -> None:
    shown = start("print", "--out", str(FOLDER / "results")).strip()
    assert shown.count("5 of 5") > 20
    assert shown in (FOLDER / "README.md").read_text(encoding="utf-8")
