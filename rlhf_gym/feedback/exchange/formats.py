"""The exchange formats by name, and conversion to and from their records. What a format cannot hold is counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.exchange import annotation_tools, dataset_formats, records
from rlhf_gym.feedback.exchange.records import Dropped, Origin, Reader, Record, Writer
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.text import nearest


@dataclass(frozen=True)
class Format:
    """One exchange format.

    Attributes:
        write: one answer to records.
        read: one record to an answer, or to several.
        loses: the parts that no record of this format can hold, in words.
    """

    write: Writer
    read: Reader
    loses: str


NATIVE = "native"
"""The format that keeps everything."""

_PAIRS = "raters, times, the order shown, reasons, skips, ties, columns, model versions"
FORMATS: dict[str, Format] = {
    NATIVE: Format(records.write_native, records.read_native, "nothing"),
    "trl-explicit": Format(dataset_formats.write_trl_explicit, dataset_formats.read_trl, _PAIRS),
    "trl-implicit": Format(
        dataset_formats.write_trl_implicit, dataset_formats.read_trl, f"{_PAIRS}, where prompts end"
    ),
    "trl-conversational": Format(dataset_formats.write_trl_conversational, dataset_formats.read_trl, _PAIRS),
    "trl-unpaired": Format(
        dataset_formats.write_trl_unpaired,
        dataset_formats.read_trl_unpaired,
        f"{_PAIRS}, strengths, which pairs belong together",
    ),
    "hh": Format(dataset_formats.write_hh, dataset_formats.read_hh, f"{_PAIRS}, strengths"),
    "alpacafarm": Format(
        dataset_formats.write_alpacafarm,
        dataset_formats.read_alpacafarm,
        "times, the order shown, reasons, strengths, columns, model versions",
    ),
    "openai-summarize": Format(
        dataset_formats.write_openai_summarize,
        dataset_formats.read_openai_summarize,
        "times, the order shown, reasons, skips, ties, strengths, most columns",
    ),
    "label-studio": Format(
        annotation_tools.write_label_studio,
        annotation_tools.read_label_studio,
        "the order shown, ties, strengths, columns, model versions",
    ),
    "argilla": Format(
        annotation_tools.write_argilla,
        annotation_tools.read_argilla,
        "times, the order shown, reasons, ties but of ratings, strengths, columns, model versions",
    ),
}


@dataclass(frozen=True)
class Imported:
    """The contents of a file.

    Attributes:
        queries: one for each judgement.
        judgements: the judgements of the file.
        dropped: number of records that were left out, by reason.
    """

    queries: list[Query] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


def to_records(answers: Iterable[tuple[Query, Judgement]], format: str) -> tuple[list[Record], dict[str, int]]:  # noqa: A002
    """Answers as records of a format, and how many have no place in it, by reason.

    Rankings and ratings become their pairs where the format knows only pairs, and a correction becomes a pair of it and
    the original. Every answer is in a record or is counted.

    Args:
        answers: judgements with their queries.
        format: the name of an exchange format.

    Raises:
        FeedbackError: a format that does not exist, or a judgement that does not fit its query.
    """
    write, written, dropped = format_of(format).write, list[Record](), Counter[str]()
    for query, judgement in answers:
        answer = (query, judgement) if format == NATIVE else records.as_pair(query, judgement)
        for record in list(write(*answer)) or [Dropped("answers that compare no two responses")]:
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
        format: one of :data:`FORMATS`; any paired format of TRL is read under each of its names.
        rater: signs judgements of records that name none.
        round: the round that the queries belong to.

    Raises:
        FeedbackError: a format that does not exist, or a record that is not of it; the message gives its place.
    """
    read, found, dropped = format_of(format).read, Imported(), Counter[str]()
    for index, record in enumerate(given):
        try:
            answer = read(record, Origin(index, rater, round))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, FeedbackError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise FeedbackError(f"record {index + 1} is not of the format {format!r}: {problem}") from error
        for one in answer if isinstance(answer, list) else [answer]:
            if isinstance(one, Dropped):
                dropped[one.reason] += 1
            else:
                found.queries.append(one[0])
                found.judgements.append(one[1])
    found.dropped.update(dropped)
    return found


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        FeedbackError: there is none.
    """
    if name not in FORMATS:
        raise FeedbackError(f"there is no format {name!r}{nearest(name, FORMATS, cutoff=0)} All: {', '.join(FORMATS)}")
    return FORMATS[name]
