"""The benchmark of the reward layer runs, and its columns are what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from benchmark_scripts import load_script

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "rewards_overhead.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("rewards_overhead.py")


def test_small_tables(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rewards.json"
    options = ["--turns", "1", "--calls", "20", "--episodes", "4", "--batches", "2", "--delay", "0.05", "--out"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options, str(out)])
    bench.main()
    found = json.loads(out.read_text())
    assert set(found["calls"]) == {"1", "4"}
    assert all(seconds > 0 for row in found["calls"].values() for seconds in row.values())
    assert [row["reward"] for row in found["layer"]] == ["one reward", "sum of 5"]
    for row in found["layer"]:
        assert 0 < row["layer"] < row["seconds"]
    (slow,) = found["slow"]
    assert slow["batches"] == 2
    assert slow["scoring"] >= 0.1  # two calls of 0.05 s
    assert slow["in place"] > slow["scoring"]
    for name in ("floor", "in place", "overlapped"):
        assert len(slow["turns"][name]) == 1
    assert "| 50 ms | 2 |" in capsys.readouterr().out


def test_both_ways_do_the_same_work(bench: ModuleType) -> None:
    parameters = []
    for slow in (False, True):
        reward = bench.Reward(0.01, slow=slow)
        trainer = bench.Trainer(reward, [reward], batches=2, episodes=4)
        figures = trainer.turn()
        assert figures["scoring"] >= 0.02
        parameters.append([p.detach().clone() for p in trainer.agent.policy.parameters()])
    assert all(bool((one == other).all()) for one, other in zip(*parameters, strict=True))


def test_the_layer_is_what_is_left_of_the_calls(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeping counts as the reward's, what a combination does around it as the layer's; by a clock that only sleep moves."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    clock = SimpleNamespace(sleep=sleep, perf_counter=lambda: now[0], process_time=lambda: 0.0)
    monkeypatch.setattr(bench, "time", clock)

    class Lazy(bench.Reward):  # type: ignore[name-defined,misc]
        def __call__(self, prompts: list[str], responses: list[str]) -> Any:
            scores = super().__call__(prompts, responses)
            sleep(0.03)  # not counted by the reward itself: stands for the layer
            return scores

    reward = Lazy(0.2)
    trainer = bench.Trainer(reward, [reward], episodes=2)
    assert trainer.turn()["layer"] == pytest.approx(0.03)
