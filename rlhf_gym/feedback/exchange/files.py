"""Writes judgements to files (JSON Lines, a JSON array, Parquet), and adds what files hold to a store."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.exchange.adding import Added, add_answers, add_as_they_are
from rlhf_gym.feedback.exchange.formats import NATIVE, format_of, to_records
from rlhf_gym.feedback.exchange.incoming import AUTO, Imported, Rows
from rlhf_gym.feedback.exchange.record_files import json_bytes, read_records, write_parquet
from rlhf_gym.feedback.exchange.records import stored_answer, write_native
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.schema import to_json
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


def export_feedback(
    answers: Iterable[tuple[Query, Judgement]],
    path: str | os.PathLike[str],
    format: str,  # noqa: A002
    *,
    every_purpose: bool = False,
) -> Exported:
    """Write answers to a file: Parquet (``.parquet``), one JSON array (``.json``), or JSON Lines; the latter two also ``.gz``.

    ``datasets.load_dataset("json", data_files=path)`` reads JSON, ``load_dataset("parquet", ...)`` Parquet. (It reads no lone
    surrogates, which ``native`` keeps: of such texts it reads ``native`` in Parquet.) The file is replaced whole or not
    at all.

    Args:
        answers: judgements with their queries.
        path: the file to write.
        format: the name of an exchange format.
        every_purpose: include answers to check questions, practice and repetitions, marked by ``purpose``; ``native``, which
            keeps everything, always does.

    Raises:
        FeedbackError: a format that does not exist, or a file that cannot be written.
        ConfigError: Parquet without its library.
    """
    path = Path(path)
    written, dropped = to_records(answers, format, every_purpose=every_purpose)
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
    format: str = AUTO,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> Imported:
    """Read a file of JSON Lines, one JSON array, CSV (all also with gzip, ``.gz``) or Parquet into memory.

    Args:
        path: the file.
        format: the name of an exchange format; ``auto`` finds it by the fields of the first rows.
        rater: signs judgements of records that name no rater.
        round: the round that imported queries belong to.
        columns: the name in the file of what the format calls otherwise, e.g. ``{"prompt": "question"}``.

    Raises:
        FeedbackError: a file that cannot be read, or whose format cannot be found; a record that is not ``native``.
        ConfigError: Parquet without its library.
    """
    rows = read_feedback(path, format, rater=rater, round=round, columns=columns)
    answers = list(rows)
    return Imported(
        [query for query, _ in answers], [judgement for _, judgement in answers], dict(rows.dropped.counts),
        rows.dropped.examples, rows.format,
    )  # fmt: skip


def read_feedback(
    path: str | os.PathLike[str],
    format: str = AUTO,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> Rows:
    """The answers in a file, read as they are asked for: the file may be larger than the memory.

    Args:
        path: the file; this and what follows as for :func:`import_feedback`.
        format: the format's name, or ``auto``.
        rater: of records that name none.
        round: of the queries.
        columns: other names of columns.

    Raises:
        FeedbackError: as for :func:`import_feedback`, in part only while the rows are read.
        ConfigError: Parquet without its library.
    """
    return Rows(read_records(Path(path)), format, rater=rater, round=round, columns=columns, place=str(path))


def add_imported(store: FeedbackStore, found: Imported) -> Added:
    """Add what a file held to a store, all or nothing; what is there already is left as it is. See :func:`import_into`.

    Args:
        store: the store.
        found: the result of the import.

    Raises:
        FeedbackError: the store holds another answer or query under an id, or cannot be written.
    """
    with store.database.writing() as connection:
        if found.format == NATIVE:
            return add_as_they_are(connection, found.queries, found.judgements)
        return add_answers(connection, zip(found.queries, found.judgements, strict=True), found.format)


@contextmanager
def spooled(
    path: str | os.PathLike[str],
    format: str = AUTO,  # noqa: A002
    *,
    rater: str = "import",
    round: int | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> Iterator[Spool]:
    """Read and check all of a file, before a store is touched: whoever rates meanwhile must not wait for the reading.

    Args:
        path: the file.
        format: the name of an exchange format; ``auto`` finds it by the fields of the first rows.
        rater: signs judgements of records that name no rater.
        round: the round that imported queries belong to (default: 0); ``native`` has its own.
        columns: the name in the file of what the format calls otherwise, e.g. ``{"prompt": "question"}``.

    Raises:
        FeedbackError: a file that cannot be read, whose format cannot be found, or out of whose rows none was taken.
        ConfigError: Parquet without its library.
    """
    path = Path(path)
    rows = read_feedback(path, format, rater=rater, round=round or 0, columns=columns)
    if round is not None and rows.format == NATIVE:
        raise FeedbackError(f"a round does not go with the format {NATIVE}: its queries name their own rounds")
    taken = 0
    with tempfile.TemporaryFile("w+", encoding="ascii") as file:
        for query, judgement in rows:
            taken += 1
            file.writelines(f"{to_json(record)}\n" for record in write_native(query, judgement))
        if taken == 0:
            if rows.read == 0:
                raise FeedbackError(f"{path} holds no rows")
            raise FeedbackError(
                f"{path}: nothing was taken of {rows.read:,} rows, read as {rows.format}: {rows.dropped}"
            )
        yield Spool(path, rows, file)


@dataclass(frozen=True)
class Spool:
    """A file that was read and checked, and waits in a temporary file to be added to a store.

    Attributes:
        path: the file.
        rows: what was left out (``dropped``) or is worth saying (``noted``), and the format.
        file: its answers, in the native format.
    """

    path: Path
    rows: Rows
    file: IO[str]

    def add_to(self, store: FeedbackStore) -> Added:
        """Add the answers to a store, all or nothing.

        Raises:
            FeedbackError: the store holds another answer or query under an id, or cannot be written.
        """
        with store.database.writing() as connection:
            if self.rows.format == NATIVE:
                answers = list(self._answers())  # which may name one another
                return add_as_they_are(connection, [query for query, _ in answers], [said for _, said in answers])
            return add_answers(connection, self._answers(), self.rows.format, self.path.name)

    def _answers(self) -> Iterator[tuple[Query, Judgement]]:
        self.file.seek(0)
        return (stored_answer(json.loads(line)) for line in self.file)


def import_into(
    store: FeedbackStore,
    path: str | os.PathLike[str],
    format: str = AUTO,  # noqa: A002
    *,
    rater: str = "import",
    round: int | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> tuple[Added, Rows]:
    """Add the answers in a file to a store, all or nothing, without holding all of the file in memory.

    New answers are added, changed ones supersede what they changed, and those that were there are left as they are.

    Args:
        store: the store.
        path: the file.
        format: the name of an exchange format; ``auto`` finds it by the fields of the first rows.
        rater: signs judgements of records that name no rater.
        round: the round that imported queries belong to (default: 0); ``native`` has its own.
        columns: the name in the file of what the format calls otherwise, e.g. ``{"prompt": "question"}``.

    Returns:
        What was added, and what was left out (``dropped``) or is worth saying (``noted``).

    Raises:
        FeedbackError: a file that cannot be read, whose format cannot be found, or out of whose rows none was taken; the
            store holds another answer or query under an id, or cannot be written.
        ConfigError: Parquet without its library.
    """
    with spooled(path, format, rater=rater, round=round, columns=columns) as spool:
        return spool.add_to(store), spool.rows


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
