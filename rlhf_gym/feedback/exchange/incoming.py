"""Rows of a file as queries with their answers: the format found or named, every row read or counted with the reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time
from itertools import chain, groupby, islice
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.attributes import ATTRIBUTE
from rlhf_gym.feedback.exchange.formats import FORMATS, NATIVE, Format, format_of, recognise
from rlhf_gym.feedback.exchange.records import Answer, Dropped, Origin
from rlhf_gym.feedback.exchange.sides import NoTextError
from rlhf_gym.feedback.exchange.transcripts import is_talk
from rlhf_gym.feedback.purposes import OTHER_PURPOSES
from rlhf_gym.feedback.queries import Judgement, Query, content_id
from rlhf_gym.text import shorten

AUTO = "auto"
"""Finds the format by the fields of the first rows."""

_LOOKED_AT = 100  # rows in which the format is looked for
_READ_FIRST = 1000  # rows by which a reader finds what the file's values mean
_PLAIN = (str, int, bool, type(None))


@dataclass
class Tally:
    """Counts things by reason, each with an example.

    Attributes:
        counts: how many, by reason.
        examples: the row of the first one, by reason, and what was wrong with it where the reason does not say.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, dropped: Dropped) -> None:
        """Count one thing."""
        self.counts[dropped.reason] += 1
        detail = f": {dropped.detail}" if dropped.detail else ""
        self.examples.setdefault(dropped.reason, f"row {dropped.row}{detail}" if dropped.row else "")

    def __str__(self) -> str:
        parts = [(n, reason, self.examples.get(reason)) for reason, n in self.counts.items()]
        return "; ".join(f"{n:,} {reason}" + (f" (e.g. {example})" if example else "") for n, reason, example in parts)


@dataclass(frozen=True)
class Imported:
    """The contents of a file.

    Attributes:
        queries: one for each judgement.
        judgements: the judgements of the file.
        dropped: number of records that were left out, by reason.
        examples: an example of each reason, as its row.
        format: the format that the file was read in.
    """

    queries: list[Query] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    format: str = NATIVE


def from_records(
    given: Iterable[Mapping[str, Any]],
    format: str,  # noqa: A002
    *,
    rater: str = "import",
    round: int = 0,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> Imported:
    """Records of a format as queries with their judgements, all at once; add both to a store.

    Args:
        given: the records.
        format: one of :data:`FORMATS`, or ``auto``; any paired format of TRL is read under each of its names.
        rater: signs judgements of records that name none.
        round: the round that the queries belong to.
        columns: the name in the records of what the format calls otherwise.

    Raises:
        FeedbackError: a format that does not exist or cannot be found, or (``native``) a record that is not of it.
    """
    rows = Rows(given, format, rater=rater, round=round, columns=columns)
    answers = list(rows)
    return Imported(
        [query for query, _ in answers], [judgement for _, judgement in answers], dict(rows.dropped.counts),
        rows.dropped.examples, rows.format,
    )  # fmt: skip


class Rows:
    """The answers in a file's rows, read as they are asked for; iterate once, then ask what was left out.

    Args:
        given: the rows.
        format: one of :data:`FORMATS`, or ``auto``.
        rater: signs judgements of records that name none.
        round: the round that the queries belong to.
        columns: the name in the rows of what the format calls otherwise, e.g. ``{"prompt": "question"}``; dots lead into
            mappings.
        place: the file's name, for messages.

    Attributes:
        read: rows read so far.
        dropped: what was left out, by reason.
        noted: what was taken and is worth saying, by reason.

    Raises:
        FeedbackError: a format that does not exist or cannot be found.
    """

    def __init__(
        self,
        given: Iterable[Mapping[str, Any]],
        format: str = AUTO,  # noqa: A002
        *,
        rater: str = "import",
        round: int = 0,  # noqa: A002
        columns: Mapping[str, str] | None = None,
        place: str = "the file",
    ) -> None:
        if format != AUTO:
            format_of(format)  # before anything is read
        named = (renamed(row, columns or {}) for row in given)
        first = list(islice(named, _LOOKED_AT)) if format == AUTO else []
        self.found = format == AUTO and len(first) > 0
        self.format = _found(first, place) if self.found else NATIVE if format == AUTO else format
        one = format_of(self.format)
        self._read = one.read
        if one.read_by_file is not None:
            first += islice(named, _READ_FIRST - len(first))
            self._read = one.read_by_file(first)
        self.read = 0
        self.dropped, self.noted = Tally(), Tally()
        self._given = chain(first, named)
        self._rater, self._round, self._place = rater, round, place
        self._seen: Counter[tuple[str, str]] = Counter()

    def __iter__(self) -> Iterator[Answer]:
        one = format_of(self.format)
        for number, record in _together(self._given, one):
            self.read = number + len(record["rows"]) - 1 if one.together and "rows" in record else number
            for answer in self._answers(number, record):
                if isinstance(answer, Dropped):
                    self.dropped.add(replace(answer, row=number))
                elif self.format == NATIVE:
                    yield answer
                else:
                    yield self._finished(record, answer, number)

    def _answers(self, number: int, record: Mapping[str, Any]) -> Sequence[Answer | Dropped]:
        try:
            if isinstance(record.get(_MISSING), str):
                return [Dropped(f"rows without the column {record[_MISSING]!r}")]
            answer = self._read(record, Origin(number - 1, self._rater, self._round))
        except NoTextError as error:
            return [Dropped(str(error))]
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RecursionError,
            FeedbackError,
        ) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else shorten(str(error), 200)
            if self.format == NATIVE:  # answers name one another there: a part of them would be another store
                raise FeedbackError(
                    f"{self._place}: record {number} is not of the format {self.format!r}: {problem}"
                ) from error
            other = recognise(record) if isinstance(record, Mapping) else None
            if other not in (None, self.format):
                return [Dropped(f"rows of another format ({other})", detail=problem)]
            return [Dropped(f"rows that are not of the format {self.format!r}", detail=problem)]
        return answer if isinstance(answer, list) else [answer]

    def _finished(self, record: Mapping[str, Any], answer: Answer, number: int) -> Answer:
        """The answer with columns that are JSON, its purpose, and an id of its own where the file asks a person twice."""
        query, judgement = answer
        columns, changed = plain(query.columns)
        if changed:
            self.noted.add(Dropped("side columns made text or null, which JSON cannot hold (dates, NaN)", number))
        purpose = columns.get("purpose", record.get("purpose"))
        if purpose in OTHER_PURPOSES:
            columns.pop("purpose", None)
            judgement = replace(judgement, details={**judgement.details, "kind": purpose})
            self.noted.add(
                Dropped(f"answers that are not learned from, since their column 'purpose' says {purpose}", number)
            )
        talk = columns.get("messages")
        if talk is not None and (not is_talk(talk) or talk[-1]["role"] == "assistant"):
            # A tokenizer would take them for the prompt. What is the prompt's has been read already.
            columns.pop("messages")
            self.noted.add(
                Dropped("side columns 'messages' left out, which are not the prompt's chat messages", number)
            )
        if isinstance(attribute := columns.get(ATTRIBUTE), str) and attribute and judgement.ratings is None:
            columns.pop(ATTRIBUTE)  # of the answer: the same responses may be compared in several attributes
            judgement = replace(judgement, details={**judgement.details, ATTRIBUTE: attribute})
        if self.format == "trl-implicit" and isinstance(record.get("chosen"), str):
            self.noted.add(Dropped("pairs whose prompt is what both texts begin with", number))
        details, _ = plain(judgement.details)
        query = replace(query, columns=columns)
        if len(set(query.responses)) < len(query.responses):
            self.noted.add(Dropped("queries with equal responses", number))
        if not all(response.strip() for response in query.responses):
            self.noted.add(Dropped("queries with an empty response", number))
        key = (query.id, judgement.rater)
        judgement = replace(judgement, details=details, id=nth_id(key, self._seen[key]))
        self._seen[key] += 1
        return query, judgement


def nth_id(key: tuple[str, str], number: int) -> str:
    """The id of a rater's answer to a query that a file holds: of the first one, that which any judgement has.

    Args:
        key: the query's id and the rater's name.
        number: how many answers of this rater to this query the file held before.
    """
    return content_id("judgement", *key, None) if number == 0 else content_id("judgement", *key, f"#{number}")


def plain(columns: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Columns as JSON values, and True if some had to be changed: a time becomes text, a number that is none null."""
    changed = False

    def made(value: Any) -> Any:
        nonlocal changed
        if isinstance(value, _PLAIN) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, Mapping):
            return {str(name): made(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [made(inner) for inner in value]
        changed = True
        if isinstance(value, float):
            return None
        return value.isoformat() if isinstance(value, datetime | date | time) else str(value)

    return {str(name): made(value) for name, value in columns.items()}, changed


_MISSING = "\0missing"


def renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Mapping[str, Any]:
    """A row with columns under the names that its format gives them.

    Args:
        row: of a file.
        columns: the name in the file of what the format calls otherwise; dots lead into mappings.
    """
    if not columns or not isinstance(row, Mapping):
        return row
    for inner in ("data", "fields"):  # of Label Studio, of Argilla
        if isinstance(row.get(inner), Mapping) and not any(_dig(row, path) is not None for path in columns.values()):
            return {**row, inner: renamed(row[inner], columns)}
    found = {name: _dig(row, path) for name, path in columns.items()}
    rest = {name: value for name, value in row.items() if name not in columns.values() and name not in found}
    missing = next((columns[name] for name, value in found.items() if value is None), None)
    return {**rest, **found, **({} if missing is None else {_MISSING: missing})}


def _dig(row: Mapping[str, Any], path: str) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.lstrip("-").isdigit():
            value = value[int(part)] if -len(value) <= int(part) < len(value) else None
        else:
            return None
    return value


def _found(rows: Sequence[Mapping[str, Any]], place: str) -> str:
    """The format whose fields the first rows have.

    Raises:
        FeedbackError: none.
    """
    for row in rows:
        name = recognise(row) if isinstance(row, Mapping) else None
        if name is not None:
            return name
    columns = dict.fromkeys(str(name) for row in rows if isinstance(row, Mapping) for name in row)
    names = ", ".join(columns) or type(rows[0]).__name__
    raise FeedbackError(
        f"the format of {place} is not plain from its columns ({shorten(names, 300)}): "
        f"name it (--format {', '.join(FORMATS)}), "
        "or say which column is what (--columns prompt=... chosen=... rejected=..., or prompt=... response_a=... "
        "response_b=... choice=..., or prompt=... completion=... label=..., or prompt=... response=... rating=...)"
    )


def _together(rows: Iterable[Mapping[str, Any]], one: Format) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each record with its row number, from 1; with ``rows``, those that are read together."""
    numbered = enumerate(rows, start=1)
    if one.together is None:
        yield from numbered
        return

    def key(row: Mapping[str, Any]) -> Hashable:
        """None for a row that stands alone: a whole tree, a broken row."""
        try:
            return one.together(row) if one.together else None
        except (KeyError, TypeError, AttributeError):
            return None

    for together, group in groupby(numbered, key=lambda item: key(item[1]) or (item[0],)):
        first, *others = group
        alone = together == (first[0],)
        yield first[0], first[1] if alone else {"rows": [first[1], *(row for _, row in others)]}
