"""The speed benchmark of PPO runs, and its contenders do the same work."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmark_scripts import BENCHMARKS, load_script

SPEED = BENCHMARKS / "speed"


@pytest.fixture(scope="module")
def contenders() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SPEED))
    yield importlib.import_module("contenders")
    sys.path.remove(str(SPEED))


@pytest.fixture(scope="module")
def bench(contenders: ModuleType) -> ModuleType:
    return load_script("speed/ppo.py")


def test_a_small_table(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL's trainer of groups against ours of the same name; its own reward checks that responses have their full length."""
    out = tmp_path / "speed.json"
    options = ["--length", "3", "--passes", "2", "--repeats", "1", "--only", "our GRPO", "TRL GRPO", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["ppo.py", *options])
    bench.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["who"] for row in rows] == ["our GRPO", "TRL GRPO"]
    for row in rows:
        parts = [row[part] for part in ("generation", "reference", "learning", "rest")]
        assert all(part >= 0 for part in parts)
        assert sum(parts) == pytest.approx(1, abs=0.02)
        assert row["tokens_per_second"] == pytest.approx(64 * 3 / row["seconds"])
        assert 0 < row["of_matmul"] < 1.5
        assert row["peak_mib"] > 100
    ours, theirs = rows
    assert ours["ratio"] == 1
    assert theirs["ratio"] == pytest.approx(theirs["turns"][0]["wall"] / ours["turns"][0]["wall"])
    assert min(theirs["generation"], theirs["reference"]) > 0
    assert "| 3 | 2 | TRL GRPO |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ours", "our GRPO", "our RLOO", "bare loop", "stock SB3"])
def test_an_iteration_learns_and_tells_its_phases(contenders: ModuleType, name: str) -> None:
    torch.set_num_threads(1)
    iterations = contenders.CONTENDERS[name](3, 2, 8)
    next(iterations)
    phases = next(iterations)
    assert {"generation", "learning"} <= set(phases)
    assert all(seconds > 0 for seconds in phases.values())


def test_every_response_has_the_full_length(contenders: ModuleType) -> None:
    env = contenders.environment(2, 5)
    assert (env.min_new_tokens, env.max_new_tokens) == (5, 5)
    assert len(contenders.prompts()) == len(set(contenders.prompts())) == 64


def test_operations_counted_by_hand(contenders: ModuleType) -> None:
    layers = 4 * (4 * 256 * 256 + 3 * 256 * 688 + 2 * 256)
    head = 2048 * 256
    assert contenders.flop(24, 4) == (2 + 2 + 24) * ((16 + 24) * layers + 24 * head)


def test_the_summary_takes_medians_and_ratios_within_a_turn(bench: ModuleType) -> None:
    def turn(seconds: float) -> dict[str, object]:
        return {"wall": seconds, "cpu": seconds / 2, "phases": {"generation": seconds / 4}, "peak_mib": seconds}

    base, other = [turn(1), turn(10), turn(2)], [turn(3), turn(20), turn(8)]
    row = bench.summary(other, base, "cpu")
    assert row["seconds"] == 4
    assert row["ratio"] == 3  # of 3, 2 and 4
    assert (row["generation"], row["reference"], row["rest"]) == (0.25, 0, 0.75)
    assert row["peak_mib"] == 20


def test_an_ended_worker_is_one_line(bench: ModuleType) -> None:
    worker = bench.Worker("nobody", 3, 1, 4, 1, None)
    with pytest.raises(SystemExit, match="its process ended"):
        worker.turn()
