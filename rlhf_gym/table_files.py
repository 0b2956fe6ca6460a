"""The rows of a table in a file: plain text, JSON lines, a JSON list, CSV or Parquet; all but Parquet also with gzip.

Rows are read as they are asked for, so that a file may be larger than the memory. A line ends at a newline and nowhere else:
a text may hold carriage returns, form feeds and Unicode's separators.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

from rlhf_gym.errors import TaskError

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
# In the metadata of Parquet files that this package writes: columns that hold JSON text, and columns in whose lists of
# mappings Arrow has filled in nulls.
JSON_COLUMNS = b"rlhf_gym.json_columns"
FILLED_COLUMNS = b"rlhf_gym.filled_columns"

_CHUNK = 1 << 20  # characters of a JSON list that are read at once
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Stands for a carriage return inside a CSV line, which Python's reader refuses; no UTF-8 text can hold it.
_RETURN = "\ud800"


def rows_from_file(path: Path | str, *, column: str = "prompt") -> Iterator[dict[str, Any]]:
    """The rows of a file, as they are; read as they are asked for.

    Args:
        path: ``.txt`` (a row a line), ``.jsonl`` (an object a line), ``.json`` (a list of objects, or as ``.jsonl``), ``.csv``
            or ``.tsv`` (with a header), each also with ``.gz``, or ``.parquet`` (needs ``pyarrow``).
        column: name of a text file's one column.

    Raises:
        TaskError: no such file, an unknown format, or a file that is not what its name says.
    """
    path = Path(path)
    kind = table_format(path)
    problem = not_readable(path)
    if problem:
        raise TaskError(f"{problem}; give a file ending in {', '.join(FORMATS)}")
    if kind == ".txt":
        return ({column: line.removesuffix("\n").removesuffix("\r")} for line in _lines(path) if line.strip())
    if kind in (".csv", ".tsv"):
        return _csv_rows(path, "," if kind == ".csv" else "\t")
    if kind == ".parquet":
        return _parquet_rows(path)
    return _json_rows(path) if kind == ".json" or _first(path) == "[" else _json_lines(path)


def not_readable(path: Path) -> str:
    """Why no rows can be read from a path, in words; empty where it is a file. A pipe cannot be read twice."""
    if path.is_file():
        return ""
    if path.is_dir():
        return f"{str(path)!r} is a folder, not a file"
    return (
        f"{str(path)!r} is a pipe or a device: save its content to a file"
        if path.exists()
        else f"there is no file {str(path)!r}"
    )


def table_format(path: Path) -> str:
    """The format that a file's name says, one of :data:`FORMATS`.

    Raises:
        TaskError: it says none.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS or (path.suffix == ".gz" and suffixes[-1] == ".parquet"):
        raise TaskError(f"cannot read rows from {str(path)!r}: expected a file ending in {', '.join(FORMATS)}")
    return suffixes[-1]


def _open(path: Path) -> IO[bytes]:
    """The file's bytes. Its first ones tell if it is gzip: a browser unpacks what is still called ``.gz``, and the reverse."""
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text, each with its newline. Not text mode, which also ends lines elsewhere."""
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, start=1):
                if number == 1 and (raw.startswith(_UTF_16) or b"\0" in raw[:2]):
                    raise TaskError(f"{path} is UTF-16 text; save it as UTF-8")
                try:
                    yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise TaskError(
                        f"{path} is not UTF-8 text ({error.reason} at byte {error.start} of line {number}); save it as UTF-8"
                    ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} could not be read: {error}") from error


def _first(path: Path) -> str:
    """The first character that is no space."""
    return next((line.lstrip()[0] for line in _lines(path) if line.strip()), "")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield _object(json.loads(line), f"{path}, line {number}")
            except json.JSONDecodeError as error:
                problem = error.msg.removesuffix(" at")  # "Unterminated string starting at"
                raise TaskError(f"{path}, line {number}: not JSON ({problem} at column {error.colno})") from error
            except RecursionError:
                raise TaskError(f"{path}, line {number}: JSON nested too deeply") from None


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The items of a JSON list, or the values that stand one after another."""
    lines, decode = _lines(path), json.JSONDecoder().raw_decode
    text, start, line, column = "", 0, 1, 1  # the place of `start` in the file, for messages
    listed, after, item = False, False, 0

    def more(fewest: int) -> bool:
        """Read on, keeping what is not parsed yet; False at the end of the file."""
        nonlocal text, start, line, column
        read = text[:start]
        line += read.count("\n")
        column = len(read) - read.rfind("\n") if "\n" in read else column + len(read)
        parts, length = [text[start:]], 0
        for part in lines:
            parts.append(part)
            length += len(part)
            if length >= fewest:
                break
        text, start = "".join(parts), 0
        return length > 0

    def refuse(problem: str, at: int) -> TaskError:
        before = text[:at]
        there = len(before) - before.rfind("\n") if "\n" in before else column + len(before)
        return TaskError(f"{path}, line {line + before.count(chr(10))}: not JSON ({problem} at column {there})")

    while True:
        while start < len(text) and text[start] in " \t\r\n":
            start += 1
        if start == len(text):
            if more(_CHUNK):
                continue
            if listed:
                raise refuse("the list does not end", start)
            return
        character = text[start]
        if item == 0 and not listed and character == "[":
            listed, start = True, start + 1
        elif listed and after and character == ",":
            after, start = False, start + 1
        elif listed and character == "]":
            rest = text[start + 1 :].strip()
            if rest or any(part.strip() for part in lines):
                raise refuse("something stands after the list", start + 1)
            return
        elif listed and after:
            raise refuse("Expecting ',' delimiter", start)
        else:
            try:
                value, start = decode(text, start)
            except json.JSONDecodeError as error:
                at = error.pos - start
                if more(max(_CHUNK, 2 * (len(text) - start))):  # it may only be cut
                    continue
                raise refuse(error.msg.removesuffix(" at"), at) from error
            except RecursionError:
                raise TaskError(f"{path}, item {item + 1}: JSON nested too deeply") from None
            item, after = item + 1, True
            yield _object(value, f"{path}, item {item}")


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"{place}: expected an object, got {type(value).__name__}")
    return value


def _csv_rows(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    # Strict: a quote that nothing closes would swallow the rows that follow.
    lines = _lines(path)
    header = next(lines, "")
    if delimiter not in header and ";" in header:  # as Excel saves a table where a comma is the decimal point
        delimiter = ";"
    reader = csv.DictReader(map(_hide_returns, chain([header], lines)), delimiter=delimiter, strict=True)
    begins = 1
    try:
        names = reader.fieldnames or ()
        if any(_RETURN in name for name in names):
            raise TaskError(f"{path}: its lines end with carriage returns alone; save it with newlines")
        twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
        if twice is not None:
            raise TaskError(f"{path}, line 1: two columns are called {twice!r}; give each a name of its own")
        begins = reader.line_num + 1
        for row in reader:
            extra = row.pop(None, [])
            if any(extra):  # a comma at the end of a line is only one empty field more
                raise TaskError(
                    f"{path}, line {reader.line_num}: {len(names) + len(extra)} fields, expected the "
                    f"{len(names)} of the header; quote a field that holds a comma"
                )
            begins = reader.line_num + 1
            yield {name: value and value.replace(_RETURN, "\r") for name, value in row.items()}
    except csv.Error as error:
        fix = (
            "save long texts as .jsonl instead"
            if "limit" in str(error)
            else "quote a field that holds a quote, and double the quotes in it"
        )
        raise TaskError(f"{path}, line {begins}: {error} in the row that begins there; {fix}") from error


def _hide_returns(line: str) -> str:
    if "\r" not in line:
        return line
    end = "\r\n" if line.endswith("\r\n") else ""
    return line.removesuffix(end).replace("\r", _RETURN) + end


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise TaskError(f"reading {path} needs pyarrow: pip install pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            spelled, filled = (set(json.loads(metadata.get(kind, b"[]"))) for kind in (JSON_COLUMNS, FILLED_COLUMNS))
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    for name in row.keys() & spelled:
                        row[name] = None if row[name] is None else json.loads(row[name])
                    for name in row.keys() & filled:
                        row[name] = without_nulls(row[name])
                    yield row
    except (OSError, ValueError, ArrowException) as error:
        raise TaskError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def without_nulls(value: Any) -> Any:
    """A value without the fields of mappings that are null."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
