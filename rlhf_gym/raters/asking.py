"""Puts queries to a rater and stores each answer at once, so that a crash loses none."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.store import FeedbackStore
from rlhf_gym.raters.base import Rater, RaterError, Ticket, explained
from rlhf_gym.raters.function import RaterFunction, as_rater

# Seconds between two looks at raters who answer when they answer; also how often progress is reported.
_POLL = 0.5
_LOOK = 1.0  # seconds between two looks at what was withdrawn meanwhile


def ask(
    rater: Rater | RaterFunction,
    queries: Sequence[Query],
    store: FeedbackStore,
    *,
    quota: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Store queries, have a rater answer those it has not answered yet, and store every answer as it comes.

    To resume, call it again with the same queries: stored answers are neither requested nor stored twice. A query that was
    withdrawn, before or meanwhile, is not waited for. Where an answer was withdrawn before, the rater is asked again.

    Args:
        rater: answers the queries: a rater, or a function as :class:`~rlhf_gym.raters.function.FunctionRater` takes it.
        queries: the queries to answer.
        store: receives queries and judgements.
        quota: share of the queries, in 0..1, after which to wait no longer; the rest stays with the rater.
        on_progress: called with the number of queries answered and of all, at the start, whenever answers came, and
            now and then while none come.

    Returns:
        Number of new judgements.

    Raises:
        RaterError: the rater could not go on; what it had judged is stored.
        FeedbackError: the store cannot be written, or an answer does not fit its query.
    """
    rater = as_rater(rater)
    store.add_queries(queries)
    withdrawn, gone = store.withdrawn_queries(), store.withdrawn_judgements()
    asked = {query.id: query for query in queries if query.id not in withdrawn}
    answered = _answered(rater, asked, store)
    with explained(rater):
        tickets = rater.submit([query for query_id, query in asked.items() if query_id not in answered])
    total, seen, new, looked = len(asked), set[str](), 0, time.monotonic()
    if on_progress:
        on_progress(len(answered), total)
    # Less a hair, so that 0.7 of 10 queries are 7.
    while tickets and total - len({ticket.query_id for ticket in tickets}) < quota * total - 1e-9:
        try:
            with explained(rater):
                judgements = rater.collect(tickets, timeout=_POLL)
        except RaterError as error:
            store.add_judgements([_anew(judgement, gone) for judgement in error.judgements])
            raise
        if not judgements:
            if time.monotonic() - looked >= _LOOK:
                looked, withdrawn = time.monotonic(), store.withdrawn_queries()
            tickets = [ticket for ticket in tickets if ticket.query_id not in withdrawn]
            if on_progress:
                on_progress(total - len({ticket.query_id for ticket in tickets}), total)
            time.sleep(0.01)  # for a rater that does not wait itself
            continue
        new += store.add_judgements([_anew(judgement, gone) for judgement in judgements])
        tickets = _still_open(tickets, [judgement for judgement in judgements if judgement.id not in seen])
        seen.update(judgement.id for judgement in judgements)
        if on_progress:
            on_progress(total - len({ticket.query_id for ticket in tickets}), total)
    return new


def _anew(judgement: Judgement, gone: Collection[str]) -> Judgement:
    """An answer in place of the withdrawn one that has its id, if there is one.

    Args:
        judgement: the answer.
        gone: the ids of withdrawn answers.
    """
    while judgement.id in gone:
        judgement = replace(judgement, id="", supersedes=judgement.id)
    return judgement


def signed_by(signature: str, name: str) -> bool:
    """True if a rater of this name, or a member of it (``name/member``), signs so.

    Args:
        signature: the name under a judgement.
        name: a rater's name.
    """
    return signature == name or signature.startswith(f"{name}/")


def _answered(rater: Rater, query_ids: Iterable[str], store: FeedbackStore) -> set[str]:
    """Out of some queries, those that this rater (for a pool: as many members as it sends) has answered already."""
    wanted = getattr(rater, "overlap", 1)
    return {
        query_id
        for query_id, signatures in store.raters(query_ids).items()
        if sum(signed_by(signature, rater.name) for signature in signatures) >= wanted
    }


def _still_open(tickets: Sequence[Ticket], judgements: Sequence[Judgement]) -> list[Ticket]:
    """The tickets that no judgement answers; a judgement answers one ticket, a correction none."""
    by_query = defaultdict(list)
    for judgement in judgements:
        if judgement.supersedes is None:
            by_query[judgement.query_id].append(judgement.rater)
    still_open = []
    for ticket in tickets:
        signatures = by_query[ticket.query_id]
        match = next((signature for signature in signatures if signed_by(signature, ticket.rater)), None)
        if match is None:
            still_open.append(ticket)
        else:
            signatures.remove(match)
    return still_open
