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
    return new


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
