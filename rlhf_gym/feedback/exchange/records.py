"""The interface of exchange formats, the format that keeps everything, and what writers of pairs share.

Writers yield records, or the reason why part of an answer has no place in the format. Readers return a query and a
judgement, or the reason why the record is not a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.preferences import demonstration_from, judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query

Record = dict[str, Any]
Answer = tuple[Query, Judgement]


@dataclass(frozen=True)
class Dropped:
    """The reason why something was left out."""

    reason: str


@dataclass(frozen=True)
class Origin:
    """The place, rater and round of a record, where the record does not name them.

    Attributes:
        index: the record's place in its file, from 0.
        rater: signs judgements of records without a rater.
        round: the round that imported queries belong to.
    """

    index: int
    rater: str
    round: int

    def answer(self, record: Mapping[str, Any], responses: tuple[str, str], prompt: str, **fields: Any) -> Answer:
        """A pair query with its judgement.

        Args:
            record: one record of the format.
            responses: the two responses.
            prompt: the prompt of the responses.
            **fields: of the judgement; ``columns`` and ``model_versions`` are the query's.
        """
        columns, versions = fields.pop("columns", {}), fields.pop("model_versions", ())
        query = Query(
            prompt=prompt,
            responses=responses,
            columns=columns,
            model_versions=versions,
            round=self.round,
            index=self.index,
        )
        return query, Judgement(query_id=query.id, rater=fields.pop("rater", self.rater), **fields)


Writer = Callable[[Query, Judgement], Iterator[Record | Dropped]]
Reader = Callable[[Mapping[str, Any], Origin], Answer | Dropped | list[Answer | Dropped]]


def write_native(query: Query, judgement: Judgement) -> Iterator[Record | Dropped]:
    """The whole query and judgement.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    asked = {f.name: getattr(query, f.name) for f in fields(query)}
    said = {f.name: getattr(judgement, f.name) for f in fields(judgement)}
    said |= {"created_at": judgement.created_at.isoformat(), "details": dict(judgement.details)}
    yield {"query": asked | {"columns": dict(query.columns)}, "judgement": said}


def read_native(record: Mapping[str, Any], origin: Origin) -> Answer | Dropped:
    """The same query and judgement that were written.

    Args:
        record: one record of the format.
        origin: the record's place, rater and round, where it does not name them.
    """
    query, judgement = record["query"], record["judgement"]
    created_at = datetime.fromisoformat(judgement["created_at"])
    return Query(**query), Judgement(**{**judgement, "created_at": created_at})


def as_pair(query: Query, judgement: Judgement) -> Answer:
    """A correction as a pair with the original, since most formats have only pairs; other answers as given.

    The two are put in the order of their texts: if the better one were always second, its place would give the answer away.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    demonstration = demonstration_from(query, judgement)
    if demonstration is None or not demonstration.corrects:
        return query, judgement
    original, correction = query.responses[0], demonstration.response
    responses = (original, correction) if original < correction else (correction, original)
    versions = tuple(
        "" if response == correction else version for version in query.model_versions for response in responses
    )
    pair = replace(query, id="", query_type="pair", responses=responses, model_versions=versions)
    details = {name: value for name, value in judgement.details.items() if name != "edited"}
    return pair, replace(
        judgement, query_id=pair.id, choice=responses.index(correction), order_shown=(), details=details
    )


def ordered_pairs(query: Query, judgement: Judgement) -> Iterator[tuple[str, str, Record]]:
    """Chosen, rejected and, where there is one, the margin, of every pair that is not a tie.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    for chosen, rejected, margin, tie in judged_pairs(query, judgement):
        if not tie:
            yield query.responses[chosen], query.responses[rejected], {} if margin is None else {"margin": margin}


def left_out(query: Query, judgement: Judgement) -> Iterator[Dropped]:
    """The parts of an answer that formats of chosen and rejected responses cannot hold: skips and ties.

    Args:
        query: the query that was answered.
        judgement: the answer to it.
    """
    if judgement.skipped:
        yield Dropped("skips")
    for *_, tie in judged_pairs(query, judgement):
        if tie:
            yield Dropped("ties")
