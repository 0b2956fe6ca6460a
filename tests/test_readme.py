"""README's Python runs as it stands, but for the number of training steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_it_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(BLOCKS[number].replace("100_000", "100"), f"README.md, block {number + 1}", "exec"), names)
    if "agent" in names:
        assert names["agent"].iteration == 1
        assert (tmp_path / "exclaimer.zip").is_file()
    else:
        assert " | " in capsys.readouterr().out
