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

from rlhf_gym.errors import TaskError, first_line
from rlhf_gym.json_rows import as_object, json_rows

FORMATS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
# In the metadata of Parquet files that this package writes: columns that hold JSON text, and columns in whose lists of
# mappings Arrow has filled in nulls.
JSON_COLUMNS = b"rlhf_gym.json_columns"
FILLED_COLUMNS = b"rlhf_gym.filled_columns"

_PIECE = 1 << 20  # bytes of a line of JSON that are read at once: a list may be one line
_GZIP = b"\x1f\x8b"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Stands for a carriage return inside a CSV line, which Python's reader refuses; no UTF-8 text can hold it.
_RETURN = "\ud800"


def rows_from_file(path: Path | str, *, column: str = "prompt") -> Iterator[dict[str, Any]]:
    """The rows of a file, as they are; read as they are asked for.

    Args:
        path: ``.txt`` (a row a line), ``.jsonl`` (an object a line), ``.json`` (a list of objects, an object that holds
            one, or as ``.jsonl``), ``.csv`` or ``.tsv`` (with a header), each also with ``.gz``, or ``.parquet`` (needs
            ``pyarrow``).
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
    return json_rows(_lines(path, _PIECE), str(path)) if kind == ".json" or _first(path) == "[" else _json_lines(path)


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


def _lines(path: Path, most: int = -1) -> Iterator[str]:
    """The lines of a text, each with its newline. Not text mode, which also ends lines elsewhere.

    Args:
        path: the file.
        most: bytes that are read at once: a longer line comes in pieces. Below 0, every line is whole.
    """
    decoder, number, before = codecs.getincrementaldecoder("utf-8-sig")(), 1, 0
    try:
        with _open(path) as file:
            for raw in chain(file if most < 0 else iter(lambda: file.readline(most), b""), [b""]):
                if number == 1 and before == 0 and (raw.startswith(_UTF_16) or b"\0" in raw[:2]):
                    raise TaskError(f"{path} is UTF-16 text; save it as UTF-8")
                try:
                    yield decoder.decode(raw, final=not raw)
                except UnicodeDecodeError as error:
                    kept = len(error.object) - len(raw)  # the beginning of a character, from the piece before
                    place = f"byte {before - kept + error.start} of line {number}"
                    raise TaskError(
                        f"{path} is not UTF-8 text ({error.reason} at {place}); save it as UTF-8"
                    ) from error
                ended = raw.endswith(b"\n")
                number, before = number + ended, 0 if ended else before + len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path} could not be read: {error}") from error


def _first(path: Path) -> str:
    """The first character that is no space."""
    return next((line.lstrip()[0] for line in _lines(path, _PIECE) if line.strip()), "")


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield as_object(json.loads(line), f"{path}, line {number}")
            except json.JSONDecodeError as error:
                problem = error.msg.removesuffix(" at")  # "Unterminated string starting at"
                raise TaskError(f"{path}, line {number}: not JSON ({problem} at column {error.colno})") from error
            except RecursionError:
                raise TaskError(f"{path}, line {number}: JSON nested too deeply") from None


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
        raise TaskError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


def without_nulls(value: Any) -> Any:
    """A value without the fields of mappings that are null."""
    if isinstance(value, Mapping):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
