"""The interface of exchange formats, the format that keeps everything, and what writers of pairs share.

Writers yield records, or the reason why part of an answer has no place in the format. Readers return a query and a
judgement, or the reason why the record is not a comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from rlhf_gym.feedback.exchange.sides import Prompt, text_of
from rlhf_gym.feedback.preferences import demonstration_from, judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query, QueryType, content_id

Record = dict[str, Any]
Answer = tuple[Query, Judgement]


@dataclass(frozen=True)
class Dropped:
    """Something that was left out.

    Attributes:
        reason: why, in the plural, as it is counted.
        row: its row in the file, from 1; 0 where there is none.
        detail: what was wrong with it, where the reason does not say.
    """

    reason: str
    row: int = 0
    detail: str = ""


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

    def query(
        self, prompt: str | Prompt, responses: Sequence[Any], query_type: QueryType = "pair", **fields: Any
    ) -> Query:
        """A query, whose id depends on its content alone: the same row in next week's file is the same query.

        Args:
            prompt: the prompt, whose messages go to the columns.
            responses: the responses.
            query_type: type of the query.
            **fields: ``columns`` and ``model_versions``.

        Raises:
            NoTextError: a response is no text.
        """
        if isinstance(prompt, Prompt):
            fields["columns"] = {**fields.get("columns", {}), **prompt.columns}
            prompt = prompt.text
        texts = tuple(text_of(response, "a response") for response in responses)
        number = content_id("imported", self.round, query_type, prompt, texts)
        return Query(
            prompt=prompt, responses=texts, query_type=query_type, round=self.round, index=self.index, id=number, **fields
        )  # fmt: skip

    def answer(self, prompt: str | Prompt, responses: Sequence[Any], **fields: Any) -> Answer:
        """A query with its judgement.

        Args:
            prompt: the prompt of the responses.
            responses: the responses.
            **fields: of the judgement; ``columns``, ``model_versions`` and ``query_type`` are the query's.

        Raises:
            NoTextError: a response is no text.
        """
        asked = {name: fields.pop(name) for name in ("columns", "model_versions", "query_type") if name in fields}
        query = self.query(prompt, responses, **asked)
        rater = str(fields.pop("rater", None) or self.rater)
        return query, Judgement(query_id=query.id, rater=rater if rater.isprintable() else repr(rater), **fields)

    def preferred(
        self, prompt: str | Prompt, chosen: str, rejected: Sequence[str], models: Sequence[str] = (), **fields: Any
    ) -> Answer:
        """One response that is better than one or several others, as a query with its judgement.

        The responses are put in the order of their texts: place would give the answer away, and a row whose answer was
        changed would ask another question.

        Args:
            prompt: the prompt of the responses.
            chosen: the better response.
            rejected: the others.
            models: the models that wrote the chosen and the others.
            **fields: as for :meth:`answer`.

        Raises:
            NoTextError: a response is no text.
        """
        texts = [text_of(chosen, "the chosen response"), *(text_of(other, "a rejected response") for other in rejected)]
        order = sorted(range(len(texts)), key=lambda i: (texts[i], i))
        if len(models) == len(texts):
            fields["model_versions"] = tuple(models[i] for i in order)
        fields.setdefault("query_type", "pair" if len(texts) == 2 else "best")
        return self.answer(prompt, [texts[i] for i in order], choice=order.index(0), **fields)


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
    return stored_answer(record)


def stored_answer(record: Mapping[str, Any]) -> Answer:
    """The query and judgement in a native record."""
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


def user_name(given: Any) -> str | None:
    """A signature for an annotation tool's user: its number, never an address."""
    number = given.get("id") if isinstance(given, Mapping) else given
    return None if number is None else f"user-{number}"
