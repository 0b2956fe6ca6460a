"""A server that is killed again and again while many rate: what was acknowledged is there, once; on either database."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "feedback_load.py"


def test_kill_9_under_load_loses_and_doubles_nothing(
    tmp_path: Path, store_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "load.json"
    load = ["--raters", "8", "--think", "0.05", "--seconds", "4", "--kills", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--store", store_place, "--out", str(out), *load])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0, out.read_text() if out.exists() else ended.value
    found = json.loads(out.read_text())
    assert found["kills"] == 2
    assert found["retries"] > 0
    assert found["lost"] == found["doubled"] == found["answered_twice"] == found["over_the_overlap"] == 0
    assert found["stored"] >= found["acknowledged"] > 20
