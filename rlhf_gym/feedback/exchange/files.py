"""Writes judgements to files and reads them (JSON Lines, a JSON array, Parquet), and adds what was read to a store."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import rows
from rlhf_gym.feedback.exchange.formats import NATIVE, Imported, format_of, from_records, to_records
from rlhf_gym.feedback.exchange.record_files import json_bytes, read_json, read_parquet, write_parquet
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.store import FeedbackStore

_LONE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Exported:
    """The result of an export: what was written, and what was left out.

    Attributes:
        written: records in the file.
        dropped: number of answers (or pairs of them) that have no place in the format, by reason.
        loses: the parts that no record of the format can hold, in words.
        replaced: number of lone surrogates (halves of characters, which are no Unicode text) that became U+FFFD.
    """

    written: int
    dropped: dict[str, int]
    loses: str
    replaced: int = 0


@dataclass(frozen=True)
class Added:
    """The result of an import into a store.

    Attributes:
        queries: number of new queries.
        judgements: number of new judgements.
        known: number of judgements that were there already.
    """

    queries: int
    judgements: int
    known: int


def export_feedback(
    answers: Iterable[tuple[Query, Judgement]],
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
) -> Exported:
    """Write answers to a file: Parquet (``.parquet``), one JSON array (``.json``), or JSON Lines; the latter two also ``.gz``.

    ``datasets.load_dataset("json", data_files=path)`` reads JSON, ``load_dataset("parquet", ...)`` Parquet. (It reads no lone
    surrogates, which ``native`` keeps: of such texts it reads ``native`` in Parquet.) The file is replaced whole or not
    at all.

    Args:
        answers: judgements with their queries.
        path: the file to write.
        format: the name of an exchange format.

    Raises:
        FeedbackError: a format that does not exist, or a file that cannot be written.
        ConfigError: Parquet without its library.
    """
    path = Path(path)
    written, dropped = to_records(answers, format)
    replaced = 0
    if format != NATIVE:
        written, replaced = _whole_characters(written)
    if path.exists() and not path.is_file():
        raise FeedbackError(f"{path} could not be written: it is a folder or a device; give the name of a file")
    target = path.resolve()  # what a link points at is replaced, not the link
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if path.suffix == ".parquet":
            write_parquet(written, draft)
        else:
            draft.write_bytes(json_bytes(written, path))
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise FeedbackError(f"{path} could not be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return Exported(len(written), dropped, format_of(format).loses, replaced)


def import_feedback(
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
) -> Imported:
    """Read a file of JSON Lines, one JSON array (either with gzip, ``.gz``), or Parquet. See :func:`from_records`.

    Args:
        path: the file.
        format: the name of an exchange format.
        rater: signs judgements of records that name no rater.
        round: the round that imported queries belong to.

    Raises:
        FeedbackError: a file that cannot be read, or a record that is not of the format.
        ConfigError: Parquet without its library.
    """
    path = Path(path)
    format_of(format)  # before the file is read
    records = read_parquet(path) if path.suffix == ".parquet" else read_json(path)
    try:
        return from_records(records, format, rater=rater, round=round)
    except FeedbackError as error:
        if str(error).startswith("record "):
            raise FeedbackError(f"{path}: {error}") from error
        raise


def add_imported(store: FeedbackStore, found: Imported) -> Added:
    """Add what a file held to a store, all or nothing; what is there already is left as it is.

    A correction whose original is neither in the file nor in the store (a file of current answers only) is added as an
    answer of its own.

    Args:
        store: the store.
        found: the result of the import.

    Raises:
        FeedbackError: the store holds another answer or query under an id, or cannot be written.
    """
    with store.database.writing() as connection:
        queries = rows.append_queries(connection, found.queries)
        judgements = rows.append_judgements(connection, _originals_first(connection, found.judgements))
    return Added(queries, judgements, len(found.judgements) - judgements)


def _originals_first(connection: Connection, given: Sequence[Judgement]) -> list[Judgement]:
    """Judgements in an order that a store takes: a correction after the judgement that it corrects."""
    by_id = {judgement.id: judgement for judgement in given}
    ordered, placed = list[Judgement](), set[str]()
    for judgement in given:
        chain: list[Judgement] = []
        link: Judgement | None = judgement
        while link is not None and link.id not in placed:  # corrections in a ring end here, and the store refuses them
            placed.add(link.id)
            chain.append(link)
            link = by_id.get(link.supersedes or "")
        # One that was given twice comes twice: the store compares the two.
        ordered += reversed(chain) if chain else [judgement]
    corrected = {judgement.supersedes for judgement in given if judgement.supersedes is not None}
    known = by_id.keys() | rows.judgements_by(connection, "id", corrected).keys()
    return [j if j.supersedes is None or j.supersedes in known else replace(j, supersedes=None) for j in ordered]


def _whole_characters(records: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Records without lone surrogates, and the number of those that were replaced."""
    replaced = 0

    def whole(value: Any) -> Any:
        nonlocal replaced
        if isinstance(value, str):
            if _LONE.search(value) is None:
                return value
            text = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # two halves become one
            replaced += text.count("\ufffd") - value.count("\ufffd")
            return text
        if isinstance(value, Mapping):
            return {whole(name): whole(inner) for name, inner in value.items()}
        return [whole(inner) for inner in value] if isinstance(value, list | tuple) else value

    return [whole(record) for record in records], replaced
