"""The exchange formats by name, and conversion to and from their records. What a format cannot hold is counted and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.exchange import argilla, dataset_formats, label_studio, records
from rlhf_gym.feedback.exchange import preference_sets as sets
from rlhf_gym.feedback.exchange.oasst import read_oasst
from rlhf_gym.feedback.exchange.pairs import PairReader, is_pair, read_pair
from rlhf_gym.feedback.exchange.prodigy import read_prodigy
from rlhf_gym.feedback.exchange.rated_rows import is_rating, read_ratings, same_prompt
from rlhf_gym.feedback.exchange.records import Dropped, Reader, Record, Writer
from rlhf_gym.feedback.exchange.sides import prompt_column, spelled_messages
from rlhf_gym.feedback.exchange.training_files import read_llama_factory, read_openai_preference
from rlhf_gym.feedback.exchange.transcripts import ASSISTANT, as_transcript
from rlhf_gym.feedback.purposes import purpose_of
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.text import nearest

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One exchange format.

    Attributes:
        read: one record to an answer, or to several.
        recognises: True for a record that has this format's fields; formats are tried in order.
        write: one answer to records; None for a format that is only read.
        loses: the parts that no record of this format can hold, in words.
        together: records that follow one another and have the same key are read as one, with ``rows``; None: each by itself.
        read_by_file: makes the reader out of a file's first rows, where one record does not tell what it means.
    """

    read: Reader
    recognises: Callable[[Row], bool]
    write: Writer | None = None
    loses: str = ""
    together: Callable[[Row], Hashable] | None = None
    read_by_file: Callable[[Sequence[Row]], Reader] | None = None


NATIVE = "native"
"""The format that keeps everything."""

_PAIRS = "raters, times, the order shown, reasons, skips, ties, columns, model versions"


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _sides(row: Row) -> bool:
    return "chosen" in row and "rejected" in row


def _talks(row: Row) -> bool:
    """Messages on both sides."""
    return _sides(row) and all(
        isinstance(row[side], list | Mapping)
        or (isinstance(row[side], str) and spelled_messages(row[side]) is not None)
        for side in ("chosen", "rejected")
    )


def _texts(row: Row) -> bool:
    return _sides(row) and all(isinstance(row[side], str) for side in ("chosen", "rejected"))


def _several(row: Row) -> bool:
    """Lists of texts on both sides."""
    return _sides(row) and all(
        isinstance(row[side], list) and row[side] and isinstance(row[side][0], str) for side in ("chosen", "rejected")
    )


def _llama_factory(row: Row) -> bool:
    talk = isinstance(row.get("conversations"), list) or isinstance(row.get("messages"), list)
    if "kto_tag" in row or (talk and isinstance(row.get("label"), bool)):
        return True
    return _sides(row) and "prompt" not in row and ("conversations" in row or "instruction" in row)


def _label_studio(row: Row) -> bool:
    return (isinstance(row.get("data"), Mapping) and ("annotations" in row or "completions" in row)) or (
        "annotation_id" in row and "annotator" in row
    )


FORMATS: dict[str, Format] = {
    NATIVE: Format(records.read_native, _has("query", "judgement"), records.write_native, "nothing"),
    "label-studio": Format(
        label_studio.read_label_studio, _label_studio, label_studio.write_label_studio,
        "the order shown, ties, strengths, columns, model versions",
    ),
    "argilla": Format(
        argilla.read_argilla, lambda row: isinstance(row.get("fields"), Mapping) or argilla.is_flat(row),
        argilla.write_argilla,
        "times, the order shown, reasons, ties but of ratings, strengths, columns, model versions",
    ),
    "openai-summarize": Format(
        dataset_formats.read_openai_summarize, _has("info", "summaries"), dataset_formats.write_openai_summarize,
        "times, the order shown, reasons, skips, ties, strengths, most columns",
    ),
    "openai-axes": Format(
        sets.read_summary_axes, _has("info", "summary"),
        together=lambda row: (str(row["info"].get("id")), str(row.get("worker"))),
    ),
    "openai-preference": Format(read_openai_preference, _has("input", "preferred_output", "non_preferred_output")),
    "oasst": Format(
        read_oasst, lambda row: "message_tree_id" in row and (isinstance(row.get("prompt"), Mapping) or "role" in row),
        together=lambda row: None if "prompt" in row else str(row["message_tree_id"]),
    ),
    "ultrafeedback": Format(sets.read_ultrafeedback, _has("instruction", "completions")),
    "pku-saferlhf": Format(sets.read_pku, _has("prompt", "response_0", "response_1", "better_response_id")),
    "shp": Format(sets.read_shp, _has("history", "human_ref_A", "human_ref_B", "labels")),
    "chatbot-arena": Format(
        sets.read_arena,
        lambda row: _has("conversation_a", "conversation_b")(row) or _has("response_a", "response_b", "winner_model_a")(row),
    ),
    "helpsteer": Format(
        sets.read_helpsteer, _has("prompt", "response", "helpfulness", "correctness"),
        together=lambda row: str(row["prompt"]),
    ),
    "helpsteer-preference": Format(
        sets.read_helpsteer_preference,
        lambda row: _has("prompt", "response_1", "response_2", "preference_strength")(row)
        or _has("context", "response1", "response2", "overall_preference")(row),
    ),
    "nectar": Format(sets.read_nectar, lambda row: "prompt" in row and isinstance(row.get("answers"), list)),
    "webgpt": Format(sets.read_webgpt, _has("question", "answer_0", "answer_1", "score_0", "score_1")),
    "prodigy": Format(read_prodigy, _has("options", "answer")),
    "alpacafarm": Format(
        dataset_formats.read_alpacafarm, _has("instruction", "output_1", "output_2"), dataset_formats.write_alpacafarm,
        "times, the order shown, reasons, strengths, columns, model versions",
    ),
    "rewardbench-2": Format(sets.read_rewardbench, _several),
    "llama-factory": Format(read_llama_factory, _llama_factory),
    "hh": Format(
        dataset_formats.read_hh,
        lambda row: _texts(row) and "prompt" not in row
        and all(ASSISTANT in as_transcript(row[side]) for side in ("chosen", "rejected")),
        dataset_formats.write_hh, f"{_PAIRS}, strengths",
    ),
    "trl-conversational": Format(dataset_formats.read_trl, _talks, dataset_formats.write_trl_conversational, _PAIRS),
    "trl-explicit": Format(
        dataset_formats.read_trl, lambda row: _sides(row) and prompt_column(row) is not None,
        dataset_formats.write_trl_explicit, _PAIRS,
    ),
    "trl-implicit": Format(
        dataset_formats.read_trl, _texts, dataset_formats.write_trl_implicit, f"{_PAIRS}, where prompts end"
    ),
    "trl-unpaired": Format(
        dataset_formats.read_trl_unpaired, _has("prompt", "completion", "label"), dataset_formats.write_trl_unpaired,
        f"{_PAIRS}, strengths, which pairs belong together",
    ),
    "ratings": Format(read_ratings, is_rating, together=same_prompt),
    "pairs": Format(read_pair, is_pair, read_by_file=PairReader),
}  # fmt: skip

WRITTEN = {name: one for name, one in FORMATS.items() if one.write is not None}
"""The formats that are written, not only read."""


def to_records(
    answers: Iterable[tuple[Query, Judgement]],
    format: str,  # noqa: A002
    *,
    every_purpose: bool = False,
) -> tuple[list[Record], dict[str, int]]:
    """Answers as records of a format, and how many have no place in it, by reason.

    Rankings and ratings become their pairs where the format knows only pairs, and a correction becomes a pair of it and
    the original. Every answer is in a record or is counted. Answers to check questions, practice and repetitions are left out
    (the native format keeps them), or marked by ``purpose``.

    Args:
        answers: judgements with their queries.
        format: the name of an exchange format that is written.
        every_purpose: include answers that measure people.

    Raises:
        FeedbackError: a format that does not exist, or a judgement that does not fit its query.
    """
    write, written, dropped = format_of(format).write, list[Record](), Counter[str]()
    if write is None:
        raise FeedbackError(f"the format {format!r} is only read; to write, choose one of {', '.join(WRITTEN)}")
    for query, judgement in answers:
        purpose = purpose_of(query, judgement)
        if purpose != "preference" and format != NATIVE and not every_purpose:
            dropped[f"answers whose purpose is {purpose}"] += 1
            continue
        answer = (query, judgement) if format == NATIVE else records.as_pair(query, judgement)
        for record in list(write(*answer)) or [Dropped("answers that compare no two responses")]:
            if isinstance(record, Dropped):
                dropped[record.reason] += 1
            else:
                written.append(record if purpose == "preference" else _marked(record, purpose))
    return written, dict(dropped)


def _marked(record: Record, purpose: str) -> Record:
    """A record that says what its answer is for, where the format's tool keeps it."""
    for inner in ("data", "metadata"):
        if inner in record:
            return {**record, inner: {**record[inner], "purpose": purpose}}
    return {**record, "purpose": purpose}


def format_of(name: str) -> Format:
    """The format of a name.

    Raises:
        FeedbackError: there is none.
    """
    if name not in FORMATS:
        raise FeedbackError(f"there is no format {name!r}{nearest(name, FORMATS, cutoff=0)} All: {', '.join(FORMATS)}")
    return FORMATS[name]


def recognise(row: Row) -> str | None:
    """The name of the format whose fields a record has; None where there is none."""
    for name, one in FORMATS.items():
        try:
            if one.recognises(row):
                return name
        except (TypeError, AttributeError, ValueError, KeyError):
            continue
    return None
