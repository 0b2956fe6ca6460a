"""Appending queries and judgements: what is refused, what is a retry, and what corrects what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import rows, schema
from rlhf_gym.feedback.queries import Judgement, Query, check_judgement


def append_queries(connection: Connection, given: Sequence[Query]) -> int:
    """What :meth:`rlhf_gym.feedback.FeedbackStore.add_queries` does within its transaction; others may do more in theirs.

    Args:
        connection: writing.
        given: the queries.

    Returns:
        How many were new.

    Raises:
        FeedbackError: as there.
    """
    known = rows.queries_by_id(connection, {query.id for query in given})
    new: dict[str, Query] = {}
    for query in given:
        earlier = known.get(query.id) or new.setdefault(query.id, query)
        if _content(earlier) != _content(query):
            raise FeedbackError(f"query id {query.id} is taken by a query with another content; give it its own id")
    now = datetime.now(UTC)
    rows.insert_rows(connection, schema.queries, [rows.query_row(query, now) for query in new.values()])
    return len(new)


def append_judgements(
    connection: Connection, given: Sequence[Judgement], *, queries: Mapping[str, Query] | None = None
) -> int:
    """What :meth:`rlhf_gym.feedback.FeedbackStore.add_judgements` does within its transaction; others may do more in theirs.

    Args:
        connection: writing.
        given: the judgements.
        queries: what they answer, by id, where that has been read already.

    Returns:
        How many were new.

    Raises:
        FeedbackError: as there.
    """
    corrected = {judgement.supersedes for judgement in given if judgement.supersedes is not None}
    if queries is None:
        queries = rows.queries_by_id(connection, {judgement.query_id for judgement in given})
    known = rows.judgements_by(connection, "id", corrected | {judgement.id for judgement in given})
    successor = rows.judgements_by(connection, "supersedes", corrected)
    new: list[Judgement] = []
    for judgement in given:
        if judgement.query_id not in queries:
            raise FeedbackError(f"judgement {judgement.id} answers query {judgement.query_id}, which is not stored")
        check_judgement(queries[judgement.query_id], judgement)
        if judgement.id in known:
            if not judgement.same_answer(known[judgement.id]):
                raise FeedbackError(
                    f"judgement {judgement.id} by {judgement.rater!r} on query {judgement.query_id} is stored "
                    "with another answer; judgements are never changed: submit one that supersedes it"
                )
            continue
        if judgement.supersedes is not None:
            _check_correction(judgement, known.get(judgement.supersedes), successor.get(judgement.supersedes))
            successor[judgement.supersedes] = judgement
        known[judgement.id] = judgement
        new.append(judgement)
    rows.insert_rows(connection, schema.judgements, [rows.judgement_row(judgement) for judgement in new])
    return len(new)


def _check_correction(judgement: Judgement, earlier: Judgement | None, successor: Judgement | None) -> None:
    """A correction replaces its own rater's latest answer to the same query."""
    problem = None
    if earlier is None:
        problem = "is not stored"
    elif (earlier.query_id, earlier.rater) != (judgement.query_id, judgement.rater):
        problem = (
            f"is by {earlier.rater!r} on query {earlier.query_id}, not by {judgement.rater!r} on {judgement.query_id}"
        )
    elif successor is not None:
        problem = f"was superseded already, by {successor.id}; supersede that one"
    if problem:
        raise FeedbackError(f"judgement {judgement.id} supersedes {judgement.supersedes}, which {problem}")


def _content(query: Query) -> tuple[object, ...]:
    return query.round, query.index, query.form, query.prompt, query.responses
