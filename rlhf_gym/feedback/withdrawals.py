"""Withdrawals: queries and answers that are kept, and never read again.

Nothing is removed from a store. A withdrawal is a further record, which the database guards like all others; whatever reads
queries and answers leaves out what is withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import schema

Withdrawable = Literal["query", "judgement"]

_W, _A = schema.withdrawals.c, schema.assignments.c
_J = schema.judgements.c
_LATER, _BEFORE = schema.judgements.alias("later"), schema.judgements.alias("before")
_TABLES = {"query": schema.queries, "judgement": schema.judgements}


@dataclass(frozen=True)
class Withdrawal:
    """One withdrawal.

    Attributes:
        kind: ``query`` (with all answers to it) or ``judgement``.
        id: the id of the query or of the judgement.
        reason: why, in somebody's words.
        actor: the person who withdrew it, or ``command line``.
        at: when, UTC.
    """

    kind: Withdrawable
    id: str
    reason: str
    actor: str
    at: datetime


def withdrawn(kind: Withdrawable, column: ColumnElement[str]) -> ColumnElement[bool]:
    """The SQL condition that something is withdrawn.

    Args:
        kind: of what the column has the ids.
        column: a column of ids.
    """
    return select(_W.id).where(_W.kind == kind, _W.id == column).exists()


NOT_SUPERSEDED = ~select(_LATER.c.id).where(_LATER.c.supersedes == _J.id).exists()
"""The SQL condition that no judgement supersedes one, withdrawn or not."""


def _current() -> ColumnElement[bool]:
    """A withdrawn judgement supersedes nothing: before the last ones of a chain, all withdrawn, another stands again."""
    later = schema.judgements.alias("last")
    last = ~select(later.c.id).where(later.c.supersedes == _BEFORE.c.id).exists()
    gone = select(_BEFORE.c.supersedes).where(withdrawn("judgement", _BEFORE.c.id), last)
    chain = gone.cte("withdrawn_corrections", recursive=True)
    again = select(_LATER.c.supersedes).where(_LATER.c.id == chain.c.supersedes, withdrawn("judgement", _LATER.c.id))
    chain = chain.union_all(again)
    return NOT_SUPERSEDED | _J.id.in_(select(chain.c.supersedes).where(chain.c.supersedes.is_not(None)))


CURRENT = _current()
"""The SQL condition that a judgement is current: nothing supersedes it but what is withdrawn."""


def withdraw(connection: Connection, given: str, *, reason: str, actor: str) -> Withdrawal:
    """Withdraw a query or an answer; what was withdrawn before stays as it was recorded then.

    A query that people hold on the rating page is taken out of their hands.

    Args:
        connection: writing.
        given: an id, or the first six characters or more of one.
        reason: why.
        actor: who withdraws it.

    Raises:
        FeedbackError: no query and no answer has that id, or several begin so.
    """
    kind, subject = _find(connection, given)
    known = select(_W.kind, _W.id, _W.reason, _W.actor, _W.at).where(_W.kind == kind, _W.id == subject)
    earlier = connection.execute(known).one_or_none()
    if earlier is not None:
        return Withdrawal(*earlier)
    new = Withdrawal(kind, subject, reason, actor, datetime.now(UTC))
    connection.execute(insert(schema.withdrawals), vars(new))
    if kind == "query":
        stop_handing_out(connection, subject)
    else:
        _hand_out_again(connection, subject)
    return new


def _hand_out_again(connection: Connection, judgement_id: str) -> None:
    """Offer the query of a withdrawn answer to one more person, if it was an answer to a query that somebody was handed."""
    settled = select(_A.query_id, _J.skipped, _J.details).where(
        _A.judgement_id == judgement_id, _A.kind == "query", _A.state == "done", _A.judgement_id == _J.id,
        _J.supersedes.is_(None) | withdrawn("judgement", _J.supersedes),  # else the earlier answer stands again
    )  # fmt: skip
    for query_id, skipped, details in connection.execute(settled):
        if not skipped or details.get("flagged"):  # a plain skip was passed on already
            slot = schema.slots.c
            changed = {"taken": slot.taken - 1, "open": True}
            connection.execute(update(schema.slots).where(slot.query_id == query_id, slot.taken > 0).values(**changed))


def stop_handing_out(connection: Connection, query_id: str) -> None:
    """Offer a query to nobody any more, and take it out of the hands of whoever holds it.

    Args:
        connection: writing.
        query_id: the query.
    """
    connection.execute(delete(schema.slots).where(schema.slots.c.query_id == query_id))
    held = (_A.query_id == query_id) & (_A.state == "open")
    connection.execute(update(schema.assignments).where(held).values(state="lapsed"))


def withdrawals(connection: Connection) -> list[Withdrawal]:
    """All withdrawals, in the order in which they came."""
    found = select(_W.kind, _W.id, _W.reason, _W.actor, _W.at).order_by(_W.sequence)
    return [Withdrawal(*row) for row in connection.execute(found)]


def withdrawn_ids(connection: Connection) -> set[str]:
    """The ids of all queries and judgements that are withdrawn."""
    return set(connection.scalars(select(_W.id)))


def _find(connection: Connection, given: str) -> tuple[Withdrawable, str]:
    """The kind and the whole id of what an id, or the beginning of one, names."""
    exact: list[tuple[Withdrawable, str]] = []
    alike: list[tuple[Withdrawable, str]] = []
    for kind, table in _TABLES.items():
        begins = table.c.id.startswith(given, autoescape=True) if len(given) >= 6 else table.c.id == given
        for found in connection.scalars(select(table.c.id).where(begins).limit(3)):
            (exact if found == given else alike).append((kind, found))  # type: ignore[arg-type]
    found_here = exact or alike
    if not found_here:
        raise FeedbackError(
            f"the store has no query and no answer with the id {given!r}; the native export, the page's list of answers and "
            "messages about what was set aside name ids"
        )
    if len(found_here) > 1:
        raise FeedbackError(
            f"{given!r} is the beginning of several ids, e.g. {found_here[0][1]} and {found_here[1][1]}"
        )
    return found_here[0]
