"""Records in JSON and in Parquet.

JSON: one record on each line, or all in one array; gzip where the name ends in ``.gz``.

Parquet: plain columns where Arrow has a type for them, JSON text where it has none. Arrow gives every row of a column the same
fields and knows no lone surrogates. Where that would change a value (mappings, texts that are no Unicode, mixed types), the
column holds JSON; in a list of mappings, it fills in nulls, which are taken out again. The file's metadata name both kinds of
columns.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError, TaskError
from rlhf_gym.feedback.exchange.records import Record
from rlhf_gym.feedback.schema import to_json
from rlhf_gym.table_files import FILLED_COLUMNS, JSON_COLUMNS, rows_from_file, table_format, without_nulls

_INFERRED = 10 << 20  # bytes of JSON Lines from which `datasets` infers the columns' types; it refuses others later


def json_bytes(records: Sequence[Record], path: Path) -> bytes:
    """Records as the content of a file of that name: an array for ``.json``, else JSON Lines.

    In JSON Lines of more than 10 MB, records with a field or a type of value that none before them has stand first:
    ``datasets.load_dataset`` would refuse the file if it met them later.

    Args:
        records: the records.
        path: the file's name, which decides between an array and lines.
    """
    lines = [to_json(record) for record in records]
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix != ".gz"]
    if suffixes[-1:] == [".json"]:
        text = "[\n" + ",\n".join(lines) + "\n]\n"
    else:
        if sum(map(len, lines)) + len(lines) > _INFERRED:
            lines = _new_shapes_first(records, lines)
        text = "".join(f"{line}\n" for line in lines)
    raw = text.encode("ascii")
    return gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw


def read_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a file, read as they are asked for: JSON, CSV or Parquet, as :func:`rows_from_file` takes them.

    Of Parquet without the nulls: there, every row has every column. Of CSV without the fields that a short row lacks; an empty
    field is an empty text, as in JSON.

    Raises:
        FeedbackError: it cannot be read, or is not what its name says.
    """
    try:
        kind = table_format(path)
        if kind == ".txt":
            raise FeedbackError(f"{path} holds lines of text and no records; give a file of JSON, CSV or Parquet")
        full = kind in (".parquet", ".csv", ".tsv")
        for row in rows_from_file(path):
            yield {name: value for name, value in row.items() if value is not None} if full else row
    except TaskError as error:
        raise FeedbackError(str(error)) from error


def _new_shapes_first(records: Sequence[Record], lines: Sequence[str]) -> list[str]:
    """The lines, those of records with a field or type that no record before them has first."""
    met: set[tuple[str, ...]] = set()
    first, rest = list[str](), list[str]()
    for record, line in zip(records, lines, strict=True):
        shape = set(_shape(record))
        (rest if shape <= met else first).append(line)
        met |= shape
    return first + rest


def _shape(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a JSON value with its type; null tells nothing."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _shape(inner, (*path, name))
    elif isinstance(value, list | tuple):
        yield (*path, "list")
        for inner in value:
            yield from _shape(inner, (*path, "[]"))
    elif value is not None:
        yield (*path, type(value).__name__)


def write_parquet(records: Sequence[Record], path: Path) -> None:
    """Write records as rows; a key that a record does not have is null there.

    Args:
        records: the records.
        path: the file to write.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pa, pq = _arrow()
    columns: dict[str, Any] = {}
    spelled, filled = list[str](), list[str]()
    for name in dict.fromkeys(key for record in records for key in record):
        values = [record.get(name) for record in records]
        try:
            if any(isinstance(value, Mapping) for value in values):
                raise TypeError("rows need not have the same keys")
            columns[name] = pa.array(values)
            there = columns[name].to_pylist()
            if there != values:
                if without_nulls(there) != values:
                    raise ValueError("Arrow would change it")
                filled.append(name)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # UnicodeEncodeError is a ValueError
            columns[name] = pa.array([to_json(record[name]) if name in record else None for record in records])
            spelled.append(name)
    kinds = {JSON_COLUMNS: json.dumps(spelled), FILLED_COLUMNS: json.dumps(filled)}
    table = pa.table(columns).replace_schema_metadata(kinds)
    pq.write_table(table, path)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'rlhf-gym[hub]' (or use .jsonl)") from None
    return pyarrow, pyarrow.parquet
