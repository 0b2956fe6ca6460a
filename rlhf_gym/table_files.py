"""The rows of a table in a file: plain text, JSON lines, a JSON list, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_gym.errors import TaskError

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".parquet")


def rows_from_file(path: Path | str, *, column: str = "prompt") -> Iterator[dict[str, Any]]:
    """The rows of a file, as they are; read as they are asked for.

    Args:
        path: ``.txt`` (a row a line), ``.jsonl`` (an object a line), ``.json`` (a list of objects), ``.csv`` (with a header) or
            ``.parquet`` (needs ``pyarrow``).
        column: name of a text file's one column.

    Raises:
        TaskError: no such file, an unknown format, or a file that is not what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise TaskError(f"there is no file {str(path)!r}; give a file ending in {', '.join(FORMATS)}")
    if path.suffix == ".txt":
        return ({column: line.rstrip("\n")} for line in _lines(path) if line.strip())
    if path.suffix in (".jsonl", ".json"):
        return _json_rows(path)
    if path.suffix == ".csv":
        return _csv_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise TaskError(f"cannot read rows from {str(path)!r}: expected a file ending in {', '.join(FORMATS)}")


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: texts and JSON may hold form feeds and Unicode's line separators inside a row.
        return list(io.StringIO(path.read_text(encoding="utf-8-sig")))
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
            line = error.lineno if path.suffix == ".json" else number
            raise TaskError(f"{path}, line {line}: not JSON ({error.msg} at column {error.colno})") from error
        for item, row in enumerate(value if isinstance(value, list) else [value], start=1):
            if not isinstance(row, dict):
                place = f"item {item}" if path.suffix == ".json" else f"line {number}"
                raise TaskError(f"{path}, {place}: expected an object, got {type(row).__name__}")
            yield row


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(_lines(path))
    try:
        for row in reader:
            extra = row.pop(None, [])
            if any(extra):  # a comma at the end of a line is only one empty field more
                raise TaskError(
                    f"{path}, line {reader.line_num}: {len(reader.fieldnames or ()) + len(extra)} fields, expected the "
                    f"{len(reader.fieldnames or ())} of the header; quote a field that holds a comma"
                )
            yield row
    except csv.Error as error:
        raise TaskError(f"{path}, line {reader.reader.line_num}: {error}; save long texts as .jsonl instead") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise TaskError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    try:
        yield from parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise TaskError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
