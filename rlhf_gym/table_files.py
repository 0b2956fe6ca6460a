"""The rows of a table in a file: plain text, JSON lines, a JSON list, CSV or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_gym.errors import TaskError

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".parquet")


def rows_from_file(path: Path | str, *, column: str = "prompt") -> Iterator[dict[str, Any]]:
    """The rows of a file, as they are.

    Args:
        path: ``.txt`` (a prompt a line), ``.jsonl`` (an object a line), ``.json`` (a list of objects), ``.csv`` or
            ``.parquet`` (needs ``pyarrow``).
        column: the column that a text file's lines are given.

    Raises:
        TaskError: no such file, unknown form, or a file that is not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise TaskError(f"there is no prompt file {str(path)!r}; give a file ending in {', '.join(FORMATS)}")
    if path.suffix == ".txt":
        return ({column: line.rstrip("\n")} for line in _lines(path) if line.strip())
    if path.suffix in (".jsonl", ".json"):
        return _json_rows(path)
    if path.suffix == ".csv":
        return iter(csv.DictReader(_lines(path)))
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise TaskError(f"cannot read prompts from {str(path)!r}: expected a file ending in {', '.join(FORMATS)}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON list or of JSON lines."""
    if path.suffix == ".json":
        texts = [(1, "".join(_lines(path)))]
    else:
        texts = [(n, line) for n, line in enumerate(_lines(path), start=1) if line.strip()]
    for number, text in texts:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise TaskError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})") from error
        for row in value if isinstance(value, list) else [value]:
            if not isinstance(row, dict):
                raise TaskError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
            yield row


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise TaskError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    yield from parquet.read_table(path).to_pylist()
