"""The steps of a queue's transaction: the next question of a rater, leases, slots.

Every answer waits for these statements, so there are few of them: a lease is read with its query.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import BindParameter, Connection, RowMapping, bindparam, func, insert, select, update
from sqlalchemy.sql.functions import coalesce

from rlhf_gym.feedback import rows, schema
from rlhf_gym.feedback.purposes import expected, is_practice
from rlhf_gym.feedback.queries import Judgement, Query, content_id
from rlhf_gym.feedback.withdrawals import withdrawn
from rlhf_gym.study.audit import left_out
from rlhf_gym.study.leases import WEB, Assignment, Kind, QueueSettings

_A, _S, _Q, _J = schema.assignments.c, schema.slots.c, schema.queries.c, schema.judgements.c
_REPEAT_AFTER = 5  # answers between a query and its repetition, at least

# Statements are made once: making one takes SQLAlchemy longer than it takes the database to answer it.
assigned = select(schema.assignments, *rows.query_columns).join_from(
    schema.assignments, schema.queries, _A.query_id == _Q.id
)
"""Assignments, each with its query."""

_CHANGE = update(schema.slots).where(_S.query_id == bindparam("slot"))
_CHANGE = _CHANGE.values(taken=_S.taken + bindparam("by"), open=_S.taken + bindparam("by") < bindparam("overlap"))

_WRONG = select(_A.id, _A.query_id, _A.kind, _A.expires_at, _A.judgement_id).where(
    _A.state == "open", (_A.expires_at < bindparam("now")) | (_A.expires_at > bindparam("latest"))
)

_RATER: BindParameter[str] = bindparam("for_rater")
_OWN = schema.assignments.alias("own")
_LAPSED = (_OWN.c.rater == _RATER) & (_OWN.c.query_id == _S.query_id) & (_OWN.c.kind == "query")
_SEEN = select(_A.id).where(_A.rater == _RATER, _A.query_id == _S.query_id, _A.state != "lapsed").exists()
_JUDGED = select(_J.id).where(_J.rater == _RATER, _J.query_id == _S.query_id).exists()
# What lapsed in a rater's own hands may come back to them: they may be the only one.
_FRESH = (
    select(*rows.query_columns, *_OWN.c)
    .select_from(schema.slots.join(schema.queries, _Q.id == _S.query_id).outerjoin(_OWN, _LAPSED))
    .where(_S.open, ~_SEEN, ~_JUDGED)
    .order_by(_S.round, _S["index"])
    .limit(1)
)
_LEASE = insert(schema.assignments)


def assignment_of(connection: Connection, row: Mapping[str, Any] | RowMapping) -> Assignment:
    """The assignment in a row of :data:`assigned`, with the answer that stands for it now, if there is one.

    Args:
        connection: a transaction.
        row: a row of the statement's.
    """
    return _assignment(row, rows.query_of(row), _answer(connection, row))


def _answer(connection: Connection, row: Mapping[str, Any] | RowMapping) -> Judgement | None:
    """The judgement that stands for an assignment now."""
    if row["judgement_id"] is None:
        return None
    return rows.judgements_by(connection, "id", {row["judgement_id"]}).get(row["judgement_id"])


def add_slots(
    connection: Connection, given: Collection[tuple[str, int, int]], overlap: int, *, answered: bool = True
) -> None:
    """Offer queries that are not offered yet; what people have answered before counts.

    Args:
        connection: writing.
        given: each query's id, round and index.
        overlap: people who answer each.
        answered: offer those, too, that somebody who is not on the page has answered.
    """
    ids = {query_id for query_id, _, _ in given}
    have = {
        i for chunk in rows.chunks(ids) for i in connection.scalars(select(_S.query_id).where(_S.query_id.in_(chunk)))
    }
    raters = rows.raters_by_query(connection, ids - have, [~withdrawn("judgement", _J.id)])
    new = []
    for query_id, number, index in given:
        if query_id not in have:
            names = raters.get(query_id, ())
            taken = sum(name.startswith(f"{WEB}/") for name in names)
            open_ = taken < overlap and (answered or taken == len(names))
            new.append({"query_id": query_id, "round": number, "index": index, "taken": taken, "open": open_})
    if new:
        connection.execute(insert(schema.slots), new)


def change_slot(connection: Connection, query_id: str, by: int, overlap: int) -> None:
    """Change the number of people who have answered a query or hold it, by one.

    Args:
        connection: a transaction.
        query_id: the query.
        by: 1 or -1.
        overlap: people who answer each query.
    """
    connection.execute(_CHANGE, {"slot": query_id, "by": by, "overlap": overlap})


def end_leases(connection: Connection, now: datetime, settings: QueueSettings) -> None:
    """End leases that ran out: a query is offered to all again; one whose answer was taken back keeps that answer.

    Args:
        connection: a transaction.
        now: the current time.
        settings: the settings.
    """
    lease = timedelta(seconds=settings.lease_seconds)
    # Written while a clock was far ahead: a lease must not outlive its rater by as much as the clock has gone back.
    wrong = {"now": now, "latest": now + 2 * lease}
    for row in connection.execute(_WRONG, wrong).mappings().all():
        ran_out = row["expires_at"] < now
        changed = {"state": "lapsed"} if ran_out else {"expires_at": now + lease}
        connection.execute(update(schema.assignments).where(_A.id == row["id"]).values(**changed))
        if ran_out and row["kind"] == "query" and row["judgement_id"] is None:
            change_slot(connection, row["query_id"], -1, settings.overlap)


def hand_out(connection: Connection, rater: str, expires: datetime, settings: QueueSettings) -> Assignment | None:
    """Hand out one question: practice first, then a check question or a repetition when one is due, then the next query.

    Args:
        connection: writing.
        rater: the rater who gets it.
        expires: until when it is kept for them.
        settings: the queue's.

    Returns:
        None where there is nothing for this rater now.
    """
    special = _special(connection, rater, settings)
    if special is not None:
        query_id, kind = special
        found = rows.queries_by_id(connection, {query_id}).get(query_id)
        if found is not None:
            return _lease(connection, found, rater, kind, expires, settings)
    row = connection.execute(_FRESH, {"for_rater": rater}).mappings().one_or_none()
    if row is None:
        return None
    query = rows.query_of(row)
    change_slot(connection, query.id, 1, settings.overlap)
    if row["id"] is None:  # never in this rater's hands
        return _lease(connection, query, rater, "query", expires, settings)
    # The same lease again, so that two answers to it are one.
    connection.execute(update(schema.assignments).where(_A.id == row["id"]).values(state="open", expires_at=expires))
    return _assignment({**row, "expires_at": expires}, query, _answer(connection, row))


def keep_for(connection: Connection, query: Query, rater: str, expires: datetime, settings: QueueSettings) -> None:
    """Put a query that nobody has had yet into a rater's hands.

    Args:
        connection: writing.
        query: a query that is offered.
        rater: the rater.
        expires: until when it is kept for them.
        settings: the queue's.
    """
    if connection.scalar(select(_A.id).where(_A.query_id == query.id).limit(1)) is None:
        change_slot(connection, query.id, 1, settings.overlap)
        _lease(connection, query, rater, "query", expires, settings)


def _special(connection: Connection, rater: str, settings: QueueSettings) -> tuple[str, Kind] | None:
    """A practice question, check question or repetition, if one is due."""
    if not (settings.practice or settings.check_share or settings.repeat_share):
        return None
    counted = connection.execute(select(_A.kind, func.count()).where(_A.rater == rater).group_by(_A.kind))
    kinds: dict[str, int] = {row[0]: row[1] for row in counted}
    given = sum(number for kind, number in kinds.items() if kind != "practice")
    draw = int(content_id("share", settings.seed, rater, given), 16) / 2.0**128
    query_id: str | None = None
    kind: Kind = "practice"
    if kinds.get("practice", 0) < settings.practice:
        query_id = _known(connection, rater, settings.seed, practice=True)
    if query_id is None and draw < settings.check_share:
        query_id, kind = _known(connection, rater, settings.seed, practice=False), "check"
    elif query_id is None and draw < settings.check_share + settings.repeat_share:
        query_id, kind = _to_repeat(connection, rater), "repeat"
    return None if query_id is None else (query_id, kind)


def _known(connection: Connection, rater: str, seed: int, *, practice: bool) -> str | None:
    """A check or practice question that this rater has not seen; each rater gets check questions in a random order."""
    seen = select(_A.id).where(_A.rater == rater, _A.query_id == _Q.id).exists()
    found = connection.execute(
        select(_Q.id, _Q["columns"]).where(_Q.round == 0, ~seen, ~left_out(_Q.id)).order_by(_Q["index"], _Q.id)
    )
    fitting: list[str] = [
        i for i, columns in found if expected(columns) is not None and is_practice(columns) == practice
    ]
    if practice or not fitting:
        return fitting[0] if fitting else None
    # "gold" is the name of a stream of random numbers: another one would draw other questions for the same seed.
    return min(fitting, key=lambda query_id: content_id("gold", seed, rater, query_id))


def _to_repeat(connection: Connection, rater: str) -> str | None:
    """The rater's oldest answered query that was not repeated yet, at least some answers ago."""
    repeated = select(_A.query_id).where(_A.rater == rater, _A.kind == "repeat")
    back = coalesce(select(func.max(_A.answered)).where(_A.rater == rater).scalar_subquery(), 0) - _REPEAT_AFTER
    done = (_A.rater == rater) & (_A.kind == "query") & (_A.state == "done") & (_A.answered <= back)
    fresh = ~left_out(_A.query_id) & _A.query_id.not_in(repeated)
    return connection.scalar(select(_A.query_id).where(done, fresh).order_by(_A.answered).limit(1))


def _lease(
    connection: Connection, query: Query, rater: str, kind: Kind, expires: datetime, settings: QueueSettings
) -> Assignment:
    key = int(content_id("order", settings.seed, rater, query.id, kind), 16)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(len(query.responses))
    row = {
        "id": secrets.token_urlsafe(18), "query_id": query.id, "rater": rater, "kind": kind, "state": "open",
        "order_shown": order.tolist(), "expires_at": expires, "judgement_id": None, "answered": 0,
    }  # fmt: skip
    connection.execute(_LEASE, row)
    return _assignment(row, query, None)


def _assignment(row: Mapping[str, Any] | RowMapping, query: Query, earlier: Judgement | None) -> Assignment:
    return Assignment(
        id=row["id"], query=query, rater=row["rater"], order_shown=tuple(row["order_shown"]), kind=row["kind"],
        expires_at=row["expires_at"], earlier=earlier,
    )  # fmt: skip
