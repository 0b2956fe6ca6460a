"""Records in Parquet: plain columns where Arrow has a type for them, JSON text where it has none.

Arrow gives every row of a column the same fields and knows no lone surrogates. Where that would change a value (mappings, texts
that are no Unicode, mixed types), the column holds JSON, and the file's metadata name it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.records import Record
from rlhf_gym.feedback.schema import to_json

_JSON_COLUMNS = b"rlhf_gym.json_columns"


def write(records: Sequence[Record], path: Path) -> None:
    """Write records as rows; a key that a record does not have is null there.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    pa, pq = _arrow()
    columns: dict[str, Any] = {}
    spelled: list[str] = []
    for name in dict.fromkeys(key for record in records for key in record):
        values = [record.get(name) for record in records]
        try:
            if any(isinstance(value, Mapping) for value in values):
                raise TypeError("rows need not have the same keys")
            columns[name] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # UnicodeEncodeError is a ValueError
            columns[name] = pa.array([to_json(record[name]) if name in record else None for record in records])
            spelled.append(name)
    table = pa.table(columns).replace_schema_metadata({_JSON_COLUMNS: json.dumps(spelled)})
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
        spelled = set(json.loads((table.schema.metadata or {}).get(_JSON_COLUMNS, b"[]")))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise FeedbackError(f"{path} could not be read: {str(error).splitlines()[0]}") from error
    for row in table.to_pylist():
        yield {
            name: json.loads(value) if name in spelled else value for name, value in row.items() if value is not None
        }


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'rlhf-gym[hub]' (or use .jsonl)") from None
    return pyarrow, pyarrow.parquet
