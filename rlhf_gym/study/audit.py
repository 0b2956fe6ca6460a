"""The audit trail: who did what to whom in a study. The database refuses to change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, insert, select

from rlhf_gym.feedback import schema
from rlhf_gym.feedback.store import FeedbackStore
from rlhf_gym.feedback.withdrawals import withdrawn

SET_ASIDE = "set aside"
"""The action by which the rating page leaves out a query that it cannot show, for good."""


@dataclass(frozen=True)
class AuditEntry:
    """One entry of the trail.

    Attributes:
        at: time of the action, UTC.
        actor: the person who did it, or ``command line``.
        action: the action, in a word or two.
        subject: the person or thing that it was done to.
        details: JSON values.
    """

    at: datetime
    actor: str
    action: str
    subject: str
    details: Mapping[str, Any]


def record(
    connection: Connection, actor: str, action: str, subject: str, details: Mapping[str, Any] | None = None
) -> None:
    """Add an entry to the trail, in the transaction of the action itself.

    Args:
        connection: writing.
        actor: the person who does it.
        action: the action, in a word or two.
        subject: the person or thing that it is done to.
        details: JSON values to record with it.
    """
    row = {
        "at": datetime.now(UTC),
        "actor": actor,
        "action": action,
        "subject": subject,
        "details": dict(details or {}),
    }
    connection.execute(insert(schema.audit), row)


def set_aside_by_page() -> Select[str]:
    """A statement that selects the ids of queries that the page could not show."""
    return select(schema.audit.c.subject).where(schema.audit.c.action == SET_ASIDE)


def left_out(query_id: ColumnElement[str]) -> ColumnElement[bool]:
    """The SQL condition that nobody is asked a query any more: it is withdrawn, or no page could show it."""
    return withdrawn("query", query_id) | query_id.in_(set_aside_by_page())


def trail(store: FeedbackStore, limit: int = 100) -> list[AuditEntry]:
    """The latest entries of the trail, newest first.

    Args:
        store: the study's store.
        limit: most entries to return.
    """
    table = schema.audit.c
    with store.database.reading() as connection:
        found = select(table.at, table.actor, table.action, table.subject, table.details)
        return [AuditEntry(*row) for row in connection.execute(found.order_by(table.sequence.desc()).limit(limit))]
