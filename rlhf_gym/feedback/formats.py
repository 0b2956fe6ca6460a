"""Feedback in and out of files, in the formats the field uses; what a format has no place for is counted and named."""

from __future__ import annotations

import difflib
import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import records
from rlhf_gym.feedback.query import Judgement, Query
from rlhf_gym.feedback.records import Dropped, Origin, Reader, Record, Writer
from rlhf_gym.feedback.schema import to_json


@dataclass(frozen=True)
class Format:
    """One exchange format.

    Attributes:
        write: one answer to records.
        read: one record to an answer.
        loses: what no record of this format can hold, in words.
    """

    write: Writer
    read: Reader
    loses: str


_CLOCK = "raters, times, the order shown, skips, ties"
FORMATS: dict[str, Format] = {
    "native": Format(records.write_native, records.read_native, "nothing"),
    "trl-explicit": Format(records.write_trl_explicit, records.read_trl, f"{_CLOCK}, columns, model versions"),
    "trl-implicit": Format(
        records.write_trl_implicit, records.read_trl, f"{_CLOCK}, columns, model versions, where prompts end"
    ),
    "trl-conversational": Format(
        records.write_trl_conversational, records.read_trl, f"{_CLOCK}, columns, model versions"
    ),
    "trl-unpaired": Format(
        records.write_trl_unpaired,
        records.read_trl_unpaired,
        f"{_CLOCK}, columns, model versions, which pairs belong together",
    ),
    "hh": Format(records.write_hh, records.read_hh, f"{_CLOCK}, columns, model versions, strengths"),
    "alpacafarm": Format(
        records.write_alpacafarm, records.read_alpacafarm, "times, the order shown, columns, model versions, strengths"
    ),
    "openai-summarize": Format(
        records.write_openai_summarize, records.read_openai_summarize, "times, the order shown, skips, ties, strengths"
    ),
}


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


@dataclass(frozen=True)
class Imported:
    """What a file held.

    Attributes:
        queries: one a record that was taken.
        judgements: one a query.
        dropped: how many records were left out, by reason.
    """

    queries: list[Query] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


def to_records(answers: Iterable[tuple[Query, Judgement]], format: str) -> tuple[list[Record], dict[str, int]]:  # noqa: A002
    """Answers as records of a format, and how many have no place in it, by reason.

    Rankings and ratings become their pairs where the format knows only pairs.

    Raises:
        FeedbackError: a format that does not exist, or a judgement that does not fit its query.
    """
    write, written, dropped = _format(format).write, list[Record](), Counter[str]()
    for query, judgement in answers:
        for record in write(query, judgement):
            if isinstance(record, Dropped):
                dropped[record.reason] += 1
            else:
                written.append(record)
    return written, dict(dropped)


def from_records(
    given: Iterable[Mapping[str, Any]],
    format: str,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
) -> Imported:
    """Records of a format as queries with their judgements; add both to a store.

    Args:
        given: the records.
        format: one of :data:`FORMATS`; any paired form of TRL is read under each of its names.
        rater: signs judgements of records that name none.
        round: the round that the queries belong to.

    Raises:
        FeedbackError: a format that does not exist, or a record that is not of it; the message gives its place.
    """
    read, found, dropped = _format(format).read, Imported(), Counter[str]()
    for index, record in enumerate(given):
        try:
            answer = read(record, Origin(index, rater, round))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, FeedbackError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise FeedbackError(f"record {index + 1} is not of the format {format!r}: {problem}") from error
        if isinstance(answer, Dropped):
            dropped[answer.reason] += 1
        else:
            found.queries.append(answer[0])
            found.judgements.append(answer[1])
    found.dropped.update(dropped)
    return found


def export_feedback(
    answers: Iterable[tuple[Query, Judgement]],
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
) -> Exported:
    """Write answers to a file: JSON Lines, or one JSON array where its name ends in ``.json``.

    ``datasets.load_dataset("json", data_files=path)`` reads either. The file is replaced whole or not at all.

    Raises:
        FeedbackError: a format that does not exist, or a file that cannot be written.
    """
    path = Path(path)
    written, dropped = to_records(answers, format)
    lines = [to_json(record) for record in written]
    text = "[\n" + ",\n".join(lines) + "\n]\n" if path.suffix == ".json" else "".join(f"{line}\n" for line in lines)
    draft = path.with_name(f"{path.name}.part")
    try:
        with draft.open("w", encoding="ascii", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise FeedbackError(f"{path} could not be written: {error.strerror or error}") from error
    return Exported(len(written), dropped, _format(format).loses)


def import_feedback(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
) -> Imported:
    """Read a file of JSON Lines or one JSON array, plain or with gzip (``.gz``). See :func:`from_records`.

    Raises:
        FeedbackError: a file that cannot be read, or a record that is not of the format.
    """
    return from_records(_read(Path(path)), format, rater=rater, round=round)


def _format(name: str) -> Format:
    if name not in FORMATS:
        nearest = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0)[0]
        raise FeedbackError(f"there is no format {name!r}; did you mean {nearest!r}? All: {', '.join(FORMATS)}")
    return FORMATS[name]


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
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
        yield from parsed if array else [parsed]
