"""Records in JSON: one on each line, or all in one array; gzip where the name ends in ``.gz``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.exchange.records import Record
from rlhf_gym.feedback.schema import to_json

_INFERRED = 10 << 20  # `datasets` takes the columns' types from so many bytes of JSON Lines, and refuses others later


def encode(records: Sequence[Record], path: Path) -> bytes:
    """Records as the content of a file of that name: an array for ``.json``, else JSON Lines.

    In JSON Lines of more than 10 MB, records with a field or a type of value that none before them has stand first:
    ``datasets.load_dataset`` would refuse the file if it met them later.
    """
    lines = [to_json(record) for record in records]
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix != ".gz"]
    if suffixes[-1:] == [".json"]:
        text = "[\n" + ",\n".join(lines) + "\n]\n"
    else:
        if sum(map(len, lines)) + len(lines) > _INFERRED:
            lines = _telling_first(records, lines)
        text = "".join(f"{line}\n" for line in lines)
    raw = text.encode("ascii")
    return gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw


def read(path: Path) -> Iterator[Mapping[str, Any]]:
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


def _telling_first(records: Sequence[Record], lines: Sequence[str]) -> list[str]:
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
