"""Feedback in and out of files: JSON Lines, a JSON array, Parquet."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import parquet
from rlhf_gym.feedback.formats import Imported, format_of, from_records, to_records
from rlhf_gym.feedback.query import Judgement, Query
from rlhf_gym.feedback.records import Record
from rlhf_gym.feedback.schema import to_json


@dataclass(frozen=True)
class Exported:
    """What an export wrote and what it left out.

    Attributes:
        written: records in the file.
        dropped: how many answers (or pairs of them) have no place in the format, by reason.
        loses: what no record of the format can hold, in words.
    """

    written: int
    dropped: dict[str, int]
    loses: str


def export_feedback(
    answers: Iterable[tuple[Query, Judgement]],
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
) -> Exported:
    """Write answers to a file: Parquet (``.parquet``), one JSON array (``.json``), or JSON Lines.

    ``datasets.load_dataset("json", data_files=path)`` reads the latter two, ``load_dataset("parquet", ...)`` the first. The
    file is replaced whole or not at all.

    Raises:
        FeedbackError: a format that does not exist, or a file that cannot be written.
        ConfigError: Parquet without its library.
    """
    path = Path(path)
    written, dropped = to_records(answers, format)
    draft = path.with_name(f"{path.name}.part")
    try:
        if path.suffix == ".parquet":
            parquet.write(written, draft)
        else:
            draft.write_text(_json(written, array=path.suffix == ".json"), encoding="ascii", newline="\n")
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise FeedbackError(f"{path} could not be written: {error.strerror or error}") from error
    return Exported(len(written), dropped, format_of(format).loses)


def import_feedback(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
) -> Imported:
    """Read a file of JSON Lines, one JSON array (either with gzip, ``.gz``), or Parquet. See :func:`from_records`.

    Raises:
        FeedbackError: a file that cannot be read, or a record that is not of the format.
        ConfigError: Parquet without its library.
    """
    path = Path(path)
    records = parquet.read(path) if path.suffix == ".parquet" else _read_json(path)
    return from_records(records, format, rater=rater, round=round)


def _json(records: Sequence[Record], *, array: bool) -> str:
    lines = [to_json(record) for record in records]
    return "[\n" + ",\n".join(lines) + "\n]\n" if array else "".join(f"{line}\n" for line in lines)


def _read_json(path: Path) -> Iterator[Mapping[str, Any]]:
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
