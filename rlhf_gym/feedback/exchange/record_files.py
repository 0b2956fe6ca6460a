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

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.exchange.records import Record
from rlhf_gym.feedback.schema import to_json

_INFERRED = 10 << 20  # bytes of JSON Lines from which `datasets` infers the columns' types; it refuses others later
_JSON_COLUMNS = b"rlhf_gym.json_columns"
_FILLED_COLUMNS = b"rlhf_gym.filled_columns"


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


def read_json(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a file.

    Raises:
        FeedbackError: it cannot be read, or is no JSON.
    """
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FeedbackError(f"{path} could not be read: {error}") from error
    array = text.lstrip().startswith("[")
    # Not splitlines: JSON may hold line separators of Unicode inside a record.
    for number, part in enumerate([text] if array else text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            parsed = json.loads(part)
        except json.JSONDecodeError as error:
            line = error.lineno if array else number
            raise FeedbackError(f"{path}, line {line}, is not JSON: {error.msg}") from error
        except RecursionError:
            raise FeedbackError(f"{path}, line {number}, is JSON nested too deeply") from None
        yield from parsed if array else [parsed]


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
                if _without_nulls(there) != values:
                    raise ValueError("Arrow would change it")
                filled.append(name)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # UnicodeEncodeError is a ValueError
            columns[name] = pa.array([to_json(record[name]) if name in record else None for record in records])
            spelled.append(name)
    kinds = {_JSON_COLUMNS: json.dumps(spelled), _FILLED_COLUMNS: json.dumps(filled)}
    table = pa.table(columns).replace_schema_metadata(kinds)
    pq.write_table(table, path)


def read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows as records, without their nulls.

    Raises:
        FeedbackError: the file cannot be read, or is no Parquet.
        ConfigError: pyarrow is not installed.
    """
    pa, pq = _arrow()
    try:
        table = pq.read_table(path, partitioning=None)
        metadata = table.schema.metadata or {}
        spelled, filled = (set(json.loads(metadata.get(kind, b"[]"))) for kind in (_JSON_COLUMNS, _FILLED_COLUMNS))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FeedbackError(f"{path} could not be read: {str(error).splitlines()[0]}") from error
    for row in table.to_pylist():
        record = {name: value for name, value in row.items() if value is not None}
        for name in record.keys() & spelled:
            record[name] = json.loads(record[name])
        for name in record.keys() & filled:
            record[name] = _without_nulls(record[name])
        yield record


def _without_nulls(value: Any) -> Any:
    """A value without the fields of mappings that are null."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'rlhf-gym[hub]' (or use .jsonl)") from None
    return pyarrow, pyarrow.parquet
