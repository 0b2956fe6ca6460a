"""Who is asked what: every query goes to as many people as asked for, to each once, and no answer is lost or doubled.

A rater holds a query by a lease. Its random id is what an answer is sent with, so an answer that is sent twice (a double
click, a retry after a lost reply) is one answer. One transaction writes the judgement, settles the lease and keeps the
count; the reply comes after the commit. A lease that ran out goes to somebody else, and an answer that comes late all the
same is kept as one more. An answer taken back is corrected by a further judgement, never overwritten.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, RowMapping, func, insert, select, update
from sqlalchemy.sql.functions import coalesce

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import rows, schema, work
from rlhf_gym.feedback.gold import expected, is_practice, meets
from rlhf_gym.feedback.query import Judgement, Query, content_id
from rlhf_gym.feedback.store import FeedbackStore, append_judgements

Kind = Literal["query", "gold", "repeat", "practice"]
WEB = "web"
"""What signatures of people begin with: ``web/calm-otter-41``."""

_A, _S, _Q, _J = work.assignments.c, work.slots.c, schema.queries.c, schema.judgements.c
_REFRESH = 1.0  # seconds for which counts, and the knowledge of which queries there are, may be old
_REPEAT_AFTER = 5  # answers between a query and its repetition, at least


@dataclass(frozen=True)
class QueueSettings:
    """How queries are handed out.

    Attributes:
        overlap: people who answer each query.
        lease_seconds: how long a query is kept for the rater who holds it.
        gold_share: share of a rater's questions whose answer is known, where there are such queries.
        repeat_share: share of a rater's questions that repeat an earlier one.
        practice: practice questions before a rater's first real one.
        seed: of orders and shares.

    Raises:
        ConfigError: a number out of bounds.
    """

    overlap: int = 1
    lease_seconds: float = 900
    gold_share: float = 0.0
    repeat_share: float = 0.0
    practice: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.overlap < 1 or self.practice < 0 or not self.lease_seconds > 0:
            raise ConfigError(
                f"overlap must be at least 1, practice at least 0, lease_seconds above 0; got {self.overlap}, "
                f"{self.practice}, {self.lease_seconds}"
            )
        shares = (self.gold_share, self.repeat_share)
        if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
            raise ConfigError(f"gold_share and repeat_share must be at least 0 and below 1 together, got {shares}")


@dataclass(frozen=True)
class Assignment:
    """A query in a rater's hands.

    Attributes:
        id: the lease: random, and the answer's idempotency key.
        query: what is asked.
        rater: who holds it.
        order_shown: the responses in the order this rater sees them.
        kind: ``query``; ``gold`` (the answer is known); ``repeat`` (asked before); ``practice`` (told afterwards).
        expires_at: until when it is kept for this rater.
        earlier: the answer that was taken back, where there is one.
    """

    id: str
    query: Query
    rater: str
    order_shown: tuple[int, ...]
    kind: Kind
    expires_at: datetime
    earlier: Judgement | None = None


@dataclass(frozen=True)
class Answer:
    """What a rater says; responses are named by their place IN THE ORDER SHOWN, from 0.

    Attributes:
        choice, ranking, ratings, tie, skipped, strength, reason, details: as in :class:`Judgement`.
    """

    choice: int | None = None
    ranking: tuple[tuple[int, ...], ...] | None = None
    ratings: Mapping[str, tuple[float | None, ...]] | None = None
    tie: bool = False
    skipped: bool = False
    strength: float | None = None
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What became of an answer.

    Attributes:
        judgement_id: the judgement that holds it.
        repeated: it was there already; this is the receipt it had.
        late: the lease had run out; it is kept all the same.
        correct: of practice only: whether it is what was expected.
        explanation: of practice only.
    """

    judgement_id: str
    repeated: bool = False
    late: bool = False
    correct: bool | None = None
    explanation: str = ""


@dataclass(frozen=True)
class RaterCount:
    """How far a rater is: questions answered, and queries this rater could still be handed (held ones included)."""

    answered: int
    waiting: int


class Queue:
    """Hands the store's queries out to people. Safe to use from several threads, and from several processes at once.

    Args:
        store: open for writing.
        settings: overlap, leases, shares.
        offered: only these queries, and what :meth:`offer` adds, are handed out; None: all in the store, as they come.
    """

    def __init__(
        self, store: FeedbackStore, settings: QueueSettings | None = None, *, offered: Collection[str] | None = None
    ) -> None:
        self.store = store
        self.settings = settings or QueueSettings()
        self._database = store.database
        self._everything = offered is None
        self._lock = threading.Lock()
        self._looked = -_REFRESH
        self._open: tuple[float, int] = (-_REFRESH, 0)
        self._known: set[tuple[bool, str]] = set()
        with self._database.writing() as connection:
            connection.execute(update(work.slots).values(open=_S.taken < self.settings.overlap))
        self.offer(offered or ())

    def offer(self, query_ids: Collection[str]) -> None:
        """Hand these stored queries out too. Offering twice is harmless. From here on the rest of the store is not."""
        if not query_ids and self._everything:
            return
        self._everything = False
        with self._database.writing() as connection:
            found = rows.queries_by_id(connection, set(query_ids))
            _add_slots(connection, [(q.id, q.round, q.index) for q in found.values()], self.settings.overlap)
        self._open = (-_REFRESH, 0)

    def next(self, rater: str, *, count: int = 1) -> list[Assignment]:
        """What a rater is to answer now: first what was taken back, then what is held (leases renewed), then new queries.

        Args:
            rater: who asks.
            count: at most so many.

        Returns:
            Fewer, or none, where there is nothing to do now.
        """
        self._take_in()
        now = datetime.now(UTC)
        expires = now + timedelta(seconds=self.settings.lease_seconds)
        with self._database.writing() as connection:
            self._release(connection, now)
            held = (_A.rater == rater) & (_A.state == "open")
            # What was taken back comes first, the oldest first: undo twice goes back two.
            order = (_A.judgement_id.is_(None), _A.answered, _A.sequence)
            query = select(work.assignments).where(held).order_by(*order).limit(count)
            found = [dict(row) for row in connection.execute(query).mappings()]
            renewed = [row["id"] for row in found if row["expires_at"] < expires - timedelta(seconds=30)]
            if renewed:
                connection.execute(update(work.assignments).where(_A.id.in_(renewed)).values(expires_at=expires))
                found = [{**row, "expires_at": expires} if row["id"] in renewed else row for row in found]
            while len(found) < count:
                row = self._new(connection, rater, expires)
                if row is None:
                    break
                found.append(row)
            return [_assignment(connection, row) for row in found]

    def submit(self, assignment_id: str, rater: str, answer: Answer, *, seconds: float) -> Receipt:
        """Store an answer, once, however often it is sent. When it returns, the disk has it.

        Raises:
            FeedbackError: no such assignment of this rater, an answer that does not fit the query, or a database that
                cannot be written (then its ``__cause__`` is set, and the same call may be tried again).
        """
        now = datetime.now(UTC)
        with self._database.writing() as connection:
            # Whatever an address may hold: PostgreSQL takes no NUL, not even to say that there is no such thing.
            named = assignment_id if assignment_id.isprintable() else ""
            row = connection.execute(select(work.assignments).where(_A.id == named)).mappings().one_or_none()
            if row is None or row["rater"] != rater:
                raise FeedbackError(f"there is no question {assignment_id[:40]!r} for {rater!r}; load the page again")
            assignment = _assignment(connection, row)
            if row["state"] == "done":
                return _receipt(assignment, row["judgement_id"], _stored(connection, row), repeated=True)
            judgement = _judgement(assignment, answer, row, seconds, now)
            earlier = assignment.earlier
            if earlier is None or not _same(judgement, earlier):
                append_judgements(connection, [judgement])
            else:
                judgement = earlier  # taken back, and said again
            late = row["state"] == "lapsed" or row["expires_at"] < now
            answered = coalesce(select(func.max(_A.answered)).where(_A.rater == rater).scalar_subquery(), 0) + 1
            settled = {"state": "done", "judgement_id": judgement.id}
            connection.execute(
                update(work.assignments).where(_A.id == assignment_id).values(**settled, answered=answered)
            )
            self._count(connection, row, judgement, earlier)
        self._open = (-_REFRESH, 0)
        return _receipt(assignment, judgement.id, judgement, late=late)

    def undo(self, rater: str) -> Assignment | None:
        """Take the rater's last answer back: its question is open again, and the next answer to it is a correction.

        Until then the earlier answer stands. Called again, it goes one further back. None: there is none.
        """
        expires = datetime.now(UTC) + timedelta(seconds=self.settings.lease_seconds)
        done = (_A.rater == rater) & (_A.state != "open") & _A.judgement_id.is_not(None) & (_A.kind != "practice")
        with self._database.writing() as connection:
            last = select(work.assignments).where(done).order_by(_A.answered.desc()).limit(1)
            row = connection.execute(last).mappings().one_or_none()
            if row is None:
                return None
            changed = {"state": "open", "expires_at": expires}
            connection.execute(update(work.assignments).where(_A.id == row["id"]).values(**changed))
            return _assignment(connection, {**row, **changed})

    def release(self, rater: str) -> None:
        """Give back what a rater holds, for others to answer: they are leaving."""
        with self._database.writing() as connection:
            held = (_A.rater == rater) & (_A.state == "open")
            connection.execute(update(work.assignments).where(held).values(expires_at=datetime.fromtimestamp(0, UTC)))
            self._release(connection, datetime.now(UTC))

    def counts(self, rater: str) -> RaterCount:
        """How far a rater is."""
        own = (_A.rater == rater) & (_A.kind != "practice")
        with self._database.reading() as connection:
            when, waiting = self._open
            if time.monotonic() - when >= _REFRESH:
                waiting = connection.scalar(select(func.count()).select_from(work.slots).where(_S.open)) or 0
                self._open = (time.monotonic(), waiting)
            states = (
                func.count().filter(_A.judgement_id.is_not(None)).label("answered"),
                func.count().filter(_A.state == "open").label("held"),
            )
            counted = connection.execute(select(*states).where(own)).mappings().one()
            joined = work.assignments.join(work.slots, _S.query_id == _A.query_id)
            seen = select(func.count(_A.query_id.distinct())).select_from(joined).where(_A.rater == rater, _S.open)
            unseen = max(0, waiting - (connection.scalar(seen) or 0))
            return RaterCount(counted["answered"], unseen + counted["held"])

    def _take_in(self) -> None:
        """Offer what others have put into the store, where everything is offered."""
        if not self._everything:
            return
        with self._lock:
            if time.monotonic() - self._looked < _REFRESH:
                return
            self._looked = time.monotonic()
        missing = select(_Q.id, _Q.round, _Q["index"], _Q["columns"]).where(
            ~select(_S.query_id).where(_S.query_id == _Q.id).exists()
        )
        with self._database.reading() as connection:
            new = [(i, n, k) for i, n, k, columns in connection.execute(missing) if expected(columns) is None]
        if new:
            with self._database.writing() as connection:
                _add_slots(connection, new, self.settings.overlap)
            self._open = (-_REFRESH, 0)

    def _release(self, connection: Connection, now: datetime) -> None:
        """Leases that ran out: a query goes back to all, one that was taken back keeps the answer it had."""
        # Written while a clock was far ahead: a lease must not outlive its rater by as much as the clock has gone back.
        lease = timedelta(seconds=self.settings.lease_seconds)
        ahead = (_A.state == "open") & (_A.expires_at > now + 2 * lease)
        connection.execute(update(work.assignments).where(ahead).values(expires_at=now + lease))
        ran_out = (_A.state == "open") & (_A.expires_at < now)
        for row in connection.execute(select(work.assignments).where(ran_out)).mappings().all():
            connection.execute(update(work.assignments).where(_A.id == row["id"]).values(state="lapsed"))
            if row["kind"] == "query" and row["judgement_id"] is None:
                self._change(connection, row["query_id"], -1)

    def _change(self, connection: Connection, query_id: str, by: int) -> None:
        taken = _S.taken + by
        changed = {"taken": taken, "open": taken < self.settings.overlap}
        connection.execute(update(work.slots).where(_S.query_id == query_id).values(**changed))

    def _count(self, connection: Connection, row: RowMapping, judgement: Judgement, earlier: Judgement | None) -> None:
        """A late answer counts again, unless its query was handed on; a skipped query is for somebody else."""
        if row["kind"] != "query":
            return
        before = 0 if row["state"] == "lapsed" else 1
        if earlier is not None:
            before = 0 if _passed_on(earlier) else 1
        after = 0 if _passed_on(judgement) else 1
        if after != before:
            self._change(connection, row["query_id"], after - before)

    def _new(self, connection: Connection, rater: str, expires: datetime) -> dict[str, Any] | None:
        """Hand out one more question: practice first, then gold or a repetition when it is their turn, then the next query."""
        settings = self.settings
        own = _A.rater == rater
        kinds = {
            row[0]: row[1] for row in connection.execute(select(_A.kind, func.count()).where(own).group_by(_A.kind))
        }
        given = sum(number for kind, number in kinds.items() if kind != "practice")
        if kinds.get("practice", 0) < settings.practice:
            query_id = self._special(connection, rater, practice=True)
            if query_id is not None:
                return self._lease(connection, query_id, rater, "practice", expires)
        draw = int(content_id("share", settings.seed, rater, given), 16) / 2.0**128
        if draw < settings.gold_share:
            query_id = self._special(connection, rater, practice=False)
            if query_id is not None:
                return self._lease(connection, query_id, rater, "gold", expires)
        elif draw < settings.gold_share + settings.repeat_share:
            query_id = _to_repeat(connection, rater)
            if query_id is not None:
                return self._lease(connection, query_id, rater, "repeat", expires)
        # What lapsed in this rater's own hands may come back to them: they may be the only one.
        seen = select(_A.id).where(own, _A.query_id == _S.query_id, _A.state != "lapsed").exists()
        judged = select(_J.id).where(_J.rater == rater, _J.query_id == _S.query_id).exists()
        fresh = select(_S.query_id).where(_S.open, ~seen, ~judged).order_by(_S.round, _S["index"]).limit(1)
        query_id = connection.scalar(fresh)
        if query_id is None:
            return None
        self._change(connection, query_id, 1)
        lapsed = select(work.assignments).where(own, _A.query_id == query_id, _A.kind == "query")
        row = connection.execute(lapsed).mappings().one_or_none()
        if row is not None:  # the same lease again, so that two answers to it are one
            connection.execute(
                update(work.assignments).where(_A.id == row["id"]).values(state="open", expires_at=expires)
            )
            return {**row, "state": "open", "expires_at": expires}
        return self._lease(connection, query_id, rater, "query", expires)

    def _special(self, connection: Connection, rater: str, *, practice: bool) -> str | None:
        """A gold or practice query that this rater has not seen, in an order of the rater's own."""
        seen = select(_A.id).where(_A.rater == rater, _A.query_id == _Q.id).exists()
        found = connection.execute(
            select(_Q.id, _Q["columns"]).where(_Q.round == 0, ~seen).order_by(_Q["index"], _Q.id)
        )
        fitting: list[str] = [
            i for i, columns in found if expected(columns) is not None and is_practice(columns) == practice
        ]
        if practice or not fitting:
            return fitting[0] if fitting else None
        return min(fitting, key=lambda query_id: content_id("gold", self.settings.seed, rater, query_id))

    def _lease(
        self, connection: Connection, query_id: str, rater: str, kind: Kind, expires: datetime
    ) -> dict[str, Any]:
        [query] = rows.queries_by_id(connection, {query_id}).values()
        token = secrets.token_urlsafe(18)
        key = int(content_id("order", self.settings.seed, rater, query_id, kind), 16)
        order = np.random.Generator(np.random.Philox(key=key)).permutation(len(query.responses))
        row = {
            "id": token, "query_id": query_id, "rater": rater, "kind": kind, "state": "open",
            "order_shown": [int(i) for i in order], "expires_at": expires, "judgement_id": None, "answered": 0,
        }  # fmt: skip
        connection.execute(insert(work.assignments), row)
        return row


def _add_slots(connection: Connection, given: Collection[tuple[str, int, int]], overlap: int) -> None:
    """Rows for queries that have none yet; what people have answered before counts."""
    ids = {query_id for query_id, _, _ in given}
    have = {
        i for chunk in rows.chunks(ids) for i in connection.scalars(select(_S.query_id).where(_S.query_id.in_(chunk)))
    }
    raters = rows.raters_by_query(connection, ids - have)
    new = []
    for query_id, number, index in given:
        if query_id not in have:
            taken = sum(name.startswith(f"{WEB}/") for name in raters.get(query_id, ()))
            new.append({"query_id": query_id, "round": number, "index": index, "taken": taken, "open": taken < overlap})
    if new:
        connection.execute(insert(work.slots), new)


def _to_repeat(connection: Connection, rater: str) -> str | None:
    """The rater's oldest answered query that was not repeated yet and is some answers back."""
    repeated = select(_A.query_id).where(_A.rater == rater, _A.kind == "repeat")
    back = coalesce(select(func.max(_A.answered)).where(_A.rater == rater).scalar_subquery(), 0) - _REPEAT_AFTER
    done = (_A.rater == rater) & (_A.kind == "query") & (_A.state == "done") & (_A.answered <= back)
    statement = select(_A.query_id).where(done, _A.query_id.not_in(repeated)).order_by(_A.answered).limit(1)
    return connection.scalar(statement)


def _assignment(connection: Connection, row: Mapping[str, Any] | RowMapping) -> Assignment:
    [query] = rows.queries_by_id(connection, {row["query_id"]}).values()
    return Assignment(
        id=row["id"], query=query, rater=row["rater"], order_shown=tuple(row["order_shown"]), kind=row["kind"],
        expires_at=row["expires_at"], earlier=_stored(connection, row),
    )  # fmt: skip


def _stored(connection: Connection, row: Mapping[str, Any] | RowMapping) -> Judgement | None:
    if row["judgement_id"] is None:
        return None
    return rows.judgements_by(connection, _J.id, {row["judgement_id"]}).get(row["judgement_id"])


def _judgement(assignment: Assignment, answer: Answer, row: RowMapping, seconds: float, now: datetime) -> Judgement:
    """The answer with responses named as the query names them."""
    order = assignment.order_shown
    places = [i for group in answer.ranking or () for i in group] + ([] if answer.choice is None else [answer.choice])
    if not all(0 <= place < len(order) for place in places):
        raise FeedbackError(f"the answer names a response that was not shown: {places}, of {len(order)}")
    ratings = None
    if answer.ratings is not None:
        if any(len(values) != len(order) for values in answer.ratings.values()):
            raise FeedbackError(f"a rating needs a value (or None) for each of {len(order)} responses")
        ratings = {
            name: tuple(values[order.index(i)] for i in range(len(order))) for name, values in answer.ratings.items()
        }
    details = dict(answer.details) | ({} if assignment.kind == "query" else {"kind": assignment.kind})
    earlier = assignment.earlier
    return Judgement(
        # From the lease, not from query and rater: repetitions ask the same rater the same query again.
        id=content_id("assignment", assignment.id, earlier.id if earlier else None),
        query_id=assignment.query.id, rater=assignment.rater,
        choice=None if answer.choice is None else order[answer.choice],
        ranking=None if answer.ranking is None else tuple(tuple(order[i] for i in group) for group in answer.ranking),
        ratings=ratings, tie=answer.tie, skipped=answer.skipped, strength=answer.strength, order_shown=order,
        seconds=seconds, created_at=now, supersedes=earlier.id if earlier else None, reason=answer.reason, details=details,
    )  # fmt: skip


def _same(judgement: Judgement, earlier: Judgement) -> bool:
    said = ("choice", "ranking", "ratings", "tie", "skipped", "strength", "reason")
    alike = all(getattr(judgement, name) == getattr(earlier, name) for name in said)
    return alike and dict(judgement.details) == dict(earlier.details)


def _passed_on(judgement: Judgement) -> bool:
    """A plain skip: somebody else may know. What was flagged is not handed on."""
    return judgement.skipped and not judgement.details.get("flagged")


def _receipt(
    assignment: Assignment,
    judgement_id: str,
    judgement: Judgement | None,
    *,
    repeated: bool = False,
    late: bool = False,
) -> Receipt:
    if assignment.kind != "practice" or judgement is None:
        return Receipt(judgement_id, repeated, late)
    columns = assignment.query.columns
    return Receipt(judgement_id, repeated, late, meets(judgement, columns), str(columns.get("explanation", "")))
