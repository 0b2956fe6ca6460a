"""A server that is killed again and again while many rate: what was acknowledged is there, once; on either database."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from waiting import LONG

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "feedback_load.py"


def test_kill_9_under_load_loses_and_doubles_nothing(tmp_path: Path, store_place: str) -> None:
    out = tmp_path / "load.json"
    options = [
        "--store",
        store_place,
        "--raters",
        "8",
        "--think",
        "0.05",
        "--seconds",
        "12",
        "--kills",
        "2",
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["kills"] == 2
    assert found["retries"] > 0
    assert found["lost"] == found["doubled"] == found["answered_twice"] == found["over_the_overlap"] == 0
    assert found["stored"] >= found["acknowledged"] > 20
