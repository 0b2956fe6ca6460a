"""Records in Parquet: plain columns where Arrow has a type for them, JSON text where it has none.

Arrow gives every row of a column the same fields and knows no lone surrogates. Where that would change a value (mappings, texts
that are no Unicode, mixed types), the column holds JSON; in a list of mappings, it fills in nulls, which are taken out again.
The file's metadata name both kinds of columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.exchange.records import Record
from rlhf_gym.feedback.schema import to_json

_JSON_COLUMNS = b"rlhf_gym.json_columns"
_FILLED_COLUMNS = b"rlhf_gym.filled_columns"


def write(records: Sequence[Record], path: Path) -> None:
    """Write records as rows; a key that a record does not have is null there.

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


def read(path: Path) -> Iterator[Mapping[str, Any]]:
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
