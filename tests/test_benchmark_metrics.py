"""The benchmark of an iteration's metrics runs, and switches off metrics only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "speed" / "metrics_cost.py"
PARTS = {"minibatch", "rollout", "row", "guards"}


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("speed/metrics_cost.py")


def test_a_small_table(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "metrics.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--turns", "2", "--episodes", "4", "--out", str(out)])
    bench.main()
    found = json.loads(out.read_text())
    assert set(found["shares"]) == PARTS | {"all statistics"}
    assert all(0 < share < 1 for share in found["shares"].values())
    assert len(found["ratios"]) == len(found["turns"]) == 2
    assert "| all statistics | | " in capsys.readouterr().out


def test_nothing_but_metrics_is_switched_off(bench: ModuleType, tmp_path: Path) -> None:
    both = [bench.Trainer(tmp_path / f"{on}.csv", metrics=on, episodes=4) for on in (True, False)]
    turns = [trainer.turn() for trainer in both]
    assert set(turns[0]) == PARTS | {"wall", "cpu"}
    assert set(turns[1]) == {"wall", "cpu"}
    parameters = [list(trainer.agent.policy.parameters()) for trainer in both]
    assert all(bool((one == other).all()) for one, other in zip(*parameters, strict=True))
    assert len((tmp_path / "True.csv").read_text().splitlines()) == 3  # two iterations
    assert not (tmp_path / "False.csv").exists()
