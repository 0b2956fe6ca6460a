"""The queue: every query goes to ``overlap`` people, to each once; no answer is lost or stored twice.

A rater holds a query by a lease. Its random id is what an answer is sent with, so an answer that is sent twice (a double
click, a retry after a lost reply) is one answer. Another answer to it, from a second window, corrects the first. One
transaction writes the judgement, settles the lease and keeps the count; the reply comes after the commit. A lease that ran
out goes to somebody else, and an answer that comes late all the same is kept as one more. An answer taken back is corrected
by a further judgement, never overwritten.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Integer, RowMapping, bindparam, func, select, update
from sqlalchemy.sql.functions import coalesce

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import rows, schema
from rlhf_gym.feedback.purposes import expected
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.store import FeedbackStore, SetAside
from rlhf_gym.feedback.withdrawals import stop_handing_out, withdrawn
from rlhf_gym.study.audit import SET_ASIDE, left_out, record, set_aside_by_page
from rlhf_gym.study.checks import refuse_old_check_questions
from rlhf_gym.study.handing_out import (
    add_slots,
    assigned,
    assignment_of,
    change_slot,
    end_leases,
    hand_out,
    keep_for,
)
from rlhf_gym.study.leases import (
    WEB,
    Answer,
    Assignment,
    QueueSettings,
    RaterCount,
    Receipt,
    RoundProgress,
    judgement_of,
    passed_on,
    receipt_of,
)

_A, _S, _Q = schema.assignments.c, schema.slots.c, schema.queries.c
_REFRESH = 1.0  # seconds for which counts, and the knowledge of which queries there are, may be old
_EXACT = 1000  # open queries up to which they are counted after every answer; counting reads them all

_ONE = assigned.where(_A.id == bindparam("named"))
# What was taken back comes first, the oldest first: undo twice goes back two.
_HELD = (
    assigned.where(_A.rater == bindparam("for_rater"), _A.state == "open")
    .order_by(_A.judgement_id.is_(None), _A.answered, _A.sequence)
    .limit(bindparam("most"))
)
_LAST = coalesce(select(func.max(_A.answered)).where(_A.rater == bindparam("for_rater")).scalar_subquery(), 0)
_SETTLE = update(schema.assignments).where(_A.id == bindparam("named"))
_SETTLE = _SETTLE.values(state="done", judgement_id=bindparam("judgement"), answered=_LAST + 1)
_COUNTS = (
    select(
        func.count().filter(_A.judgement_id.is_not(None)).label("answered"),
        func.count().filter(_A.state == "open").label("held"),
        func.count(_S.query_id.distinct()).label("seen"),
    )
    .select_from(schema.assignments.outerjoin(schema.slots, (_S.query_id == _A.query_id) & _S.open))
    .where(_A.rater == bindparam("for_rater"), _A.kind != "practice")
)
_PLACES = select(_S.round, func.sum(_S.taken)).group_by(_S.round).order_by(_S.round)
_SPARE = select(_S.round, func.sum(bindparam("overlap", type_=Integer) - _S.taken)).where(_S.open).group_by(_S.round)
_IN_HANDS = (
    select(_S.round, func.count())
    .select_from(schema.assignments.join(schema.slots, _S.query_id == _A.query_id))
    .where(_A.state == "open", _A.kind == "query", _A.judgement_id.is_(None))
    .group_by(_S.round)
)
_J = schema.judgements.c
_ANSWERED_ELSEWHERE = (
    select(_J.id)
    .where(_J.query_id == _S.query_id, ~_J.rater.startswith(f"{WEB}/"), ~withdrawn("judgement", _J.id))
    .exists()
)
_HANDED_OUT = select(*rows.query_columns, left_out(_Q.id).label("left_out")).where(
    select(_S.query_id).where(_S.query_id == _Q.id).exists()
    | select(_A.id).where(_A.query_id == _Q.id, _A.state == "open").exists()
)
_OPEN = select(func.count()).select_from(schema.slots).where(_S.open)


class Queue:
    """Hands the store's queries out to people. Safe to use from several threads, and from several processes at once.

    Args:
        store: open for writing.
        settings: overlap, leases, shares.
        offered: only these queries, and what :meth:`offer` adds, are handed out; None: all in the store, as they come.

    Raises:
        FeedbackError: the store cannot be written, or holds check questions of an earlier version.
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
        with self._database.reading() as connection:
            not_of_a_round = connection.execute(select(_Q.id, _Q["columns"]).where(_Q.round == 0))
            refuse_old_check_questions(((row[0], row[1]) for row in not_of_a_round), store.place)
            # Handed out by an earlier version, or since withdrawn by another program: no page can show them.
            unfit = [
                row["asked_id"]
                for row in connection.execute(_HANDED_OUT).mappings()
                if row["left_out"] or not isinstance(rows.usable(row), Query)
            ]
        with self._database.writing() as connection:
            wanted = _S.taken < self.settings.overlap
            if self._everything and not self.settings.answered:
                wanted &= ~_ANSWERED_ELSEWHERE
            connection.execute(update(schema.slots).values(open=wanted))
            for query_id in unfit:
                stop_handing_out(connection, query_id)
        self.offer(offered or ())

    def offer(self, query_ids: Collection[str], rater: str | None = None) -> None:
        """Hand these stored queries out, and from now on only offered ones. Offering a query twice is harmless.

        Args:
            query_ids: the queries.
            rater: who is to answer them; after one lease they are for anybody. None: they are for anybody at once.
        """
        if not query_ids and self._everything:
            return
        self._everything = False
        with self._database.writing() as connection:
            found = rows.queries_by_id(connection, set(query_ids))
            for query_id in connection.scalars(select(_Q.id).where(left_out(_Q.id))):
                found.pop(query_id, None)
            add_slots(connection, [(q.id, q.round, q.index) for q in found.values()], self.settings.overlap)
            if rater is not None:
                for query in found.values():
                    keep_for(connection, query, rater, self._expires(), self.settings)
        self._open = (-_REFRESH, 0)

    def next(self, rater: str, *, count: int = 1) -> list[Assignment]:
        """The questions a rater is to answer now: those taken back, then those held (leases renewed), then new ones.

        Args:
            rater: the rater who gets them.
            count: most questions to return.

        Returns:
            Fewer, or none, where there is nothing to do now.
        """
        self._take_in()
        with self._database.writing() as connection:
            return self._next(connection, rater, count)

    def submit(self, assignment_id: str, rater: str, answer: Answer, *, seconds: float) -> Receipt:
        """Store an answer once, however often it is sent. It is on disk when this returns.

        Args:
            assignment_id: the lease's id.
            rater: the rater who answers.
            answer: the rater's answer.
            seconds: duration of the answer, in seconds.

        Raises:
            FeedbackError: no such assignment of this rater, an answer that does not fit the query, or a database that
                cannot be written (then its ``__cause__`` is set, and the same call may be tried again).
        """
        return self.exchange(assignment_id, rater, answer, seconds=seconds, count=0)[0]

    def exchange(
        self, assignment_id: str, rater: str, answer: Answer, *, seconds: float, count: int
    ) -> tuple[Receipt, list[Assignment]]:
        """Call :meth:`submit`, then :meth:`next` (unless ``count`` is 0), in one transaction: one wait for the disk.

        Args:
            assignment_id: the lease's id.
            rater: the rater who answers.
            answer: the rater's answer.
            seconds: duration of the answer, in seconds.
            count: most questions to hand out afterwards.

        Raises:
            FeedbackError: as :meth:`submit`; then nothing is handed out either.
        """
        if count:
            self._take_in()
        with self._database.writing() as connection:
            receipt = self._submit(connection, assignment_id, rater, answer, seconds)
            following = self._next(connection, rater, count) if count else []
        if self._open[1] <= _EXACT:
            self._open = (-_REFRESH, 0)
        return receipt, following

    def _submit(
        self, connection: Connection, assignment_id: str, rater: str, answer: Answer, seconds: float
    ) -> Receipt:
        now = datetime.now(UTC)
        # Whatever an address may hold: PostgreSQL takes no NUL, not even to say that there is no such thing.
        named = assignment_id if assignment_id.isprintable() else ""
        row = connection.execute(_ONE, {"named": named}).mappings().one_or_none()
        if row is None or row["rater"] != rater:
            raise FeedbackError(f"there is no question {assignment_id[:40]!r} for {rater!r}; load the page again")
        assignment = assignment_of(connection, row)
        earlier = assignment.earlier
        judgement = judgement_of(assignment, answer, seconds, now)
        again = earlier is not None and _says(judgement, earlier)
        if earlier is not None and row["state"] == "done":
            if again or _sent_before(connection, judgement, earlier):
                return receipt_of(assignment, earlier.id, earlier, repeated=True)
            if assignment.kind == "practice":
                raise FeedbackError(
                    "you have answered this practice question already, in another window: the first answer counts; go on with "
                    "the next question"
                )
        if earlier is not None and again:
            judgement = earlier  # taken back, and said again
        else:
            rows.append_judgements(connection, [judgement], queries={assignment.query.id: assignment.query})
        late = row["state"] == "lapsed" or row["expires_at"] < now
        connection.execute(_SETTLE, {"named": named, "judgement": judgement.id, "for_rater": rater})
        self._count(connection, row, judgement, earlier)
        replaced = earlier if row["state"] == "done" else None
        return receipt_of(assignment, judgement.id, judgement, late=late, replaced=replaced)

    def _next(self, connection: Connection, rater: str, count: int) -> list[Assignment]:
        now = datetime.now(UTC)
        expires = self._expires()
        end_leases(connection, now, self.settings)
        held = connection.execute(_HELD, {"for_rater": rater, "most": count}).mappings().all()
        renewed = [row["id"] for row in held if row["expires_at"] < expires - timedelta(seconds=30)]
        if renewed:
            connection.execute(update(schema.assignments).where(_A.id.in_(renewed)).values(expires_at=expires))
        found = [
            assignment_of(connection, {**row, "expires_at": expires} if row["id"] in renewed else row) for row in held
        ]
        while len(found) < count:
            new = hand_out(connection, rater, expires, self.settings)
            if new is None:
                break
            found.append(new)
        return found

    def undo(self, rater: str) -> Assignment | None:
        """Take the rater's last answer back: its question is open again, and the next answer to it is a correction.

        Until then the earlier answer stands. A further call goes one answer further back. None if there is none.
        """
        expires = self._expires()
        done = (_A.rater == rater) & (_A.state != "open") & _A.judgement_id.is_not(None) & (_A.kind != "practice")
        done &= ~withdrawn("query", _A.query_id)
        with self._database.writing() as connection:
            last = assigned.where(done).order_by(_A.answered.desc()).limit(1)
            row = connection.execute(last).mappings().one_or_none()
            if row is None:
                return None
            changed = {"state": "open", "expires_at": expires}
            connection.execute(update(schema.assignments).where(_A.id == row["id"]).values(**changed))
            return assignment_of(connection, {**row, **changed})

    def release(self, rater: str) -> None:
        """Give back the queries that a leaving rater holds, for others to answer."""
        with self._database.writing() as connection:
            held = (_A.rater == rater) & (_A.state == "open")
            connection.execute(update(schema.assignments).where(held).values(expires_at=datetime.fromtimestamp(0, UTC)))
            end_leases(connection, datetime.now(UTC), self.settings)

    def set_aside(self, query_id: str, why: str) -> None:
        """Hand a query that cannot be shown to nobody any more, for good, and take it from those who hold it.

        Args:
            query_id: the query.
            why: what is wrong with it, for the audit trail, by which it is known from now on.
        """
        with self._database.writing() as connection:
            stop_handing_out(connection, query_id)
            if query_id not in set(connection.scalars(set_aside_by_page())):  # two raters may meet it at once
                record(connection, "rating page", SET_ASIDE, query_id, {"why": why[:200]})
        self._open = (-_REFRESH, 0)

    def set_aside_by_page(self) -> list[SetAside]:
        """The queries that :meth:`set_aside` has left out, but for those that are withdrawn."""
        entries = schema.audit.c
        statement = (
            select(_Q.id, _Q.round, entries.details)
            .join_from(schema.audit, schema.queries, entries.subject == _Q.id)
            .where(entries.action == SET_ASIDE, ~withdrawn("query", _Q.id))
            .order_by(entries.sequence)
        )
        with self._database.reading() as connection:
            return [SetAside(row[0], row[1], str(row[2].get("why", ""))) for row in connection.execute(statement)]

    def counts(self, rater: str) -> RaterCount:
        """A rater's progress. With many open queries, their number may be a second old."""
        with self._database.reading() as connection:
            when, waiting = self._open
            if time.monotonic() - when >= _REFRESH:
                waiting = connection.scalar(_OPEN) or 0
                self._open = (time.monotonic(), waiting)
            own = connection.execute(_COUNTS, {"for_rater": rater}).mappings().one()
        return RaterCount(own["answered"], max(0, waiting - own["seen"]) + own["held"])

    def _expires(self) -> datetime:
        """The end of a lease that begins now."""
        return datetime.now(UTC) + timedelta(seconds=self.settings.lease_seconds)

    def progress(self) -> list[RoundProgress]:
        """The progress of each round that is offered, in order."""
        self._take_in()
        with self._database.reading() as connection:
            places = connection.execute(_PLACES).all()
            left: dict[int, Any] = dict(connection.execute(_SPARE, {"overlap": self.settings.overlap}).all())
            held: dict[int, int] = dict(connection.execute(_IN_HANDS).all())
        return [
            RoundProgress(number, int(taken) - held.get(number, 0), held.get(number, 0), int(left.get(number, 0)))
            for number, taken in places
        ]

    def _take_in(self) -> None:
        """Offer queries that others have added to the store, if everything is offered."""
        if not self._everything:
            return
        with self._lock:
            if time.monotonic() - self._looked < _REFRESH:
                return
            self._looked = time.monotonic()
        missing = select(*rows.query_columns).where(
            ~select(_S.query_id).where(_S.query_id == _Q.id).exists(),
            ~left_out(_Q.id),
        )
        with self._database.reading() as connection:
            found = [rows.usable(row) for row in connection.execute(missing).mappings()]
        new = [(q.id, q.round, q.index) for q in found if isinstance(q, Query) and expected(q.columns) is None]
        if new:
            with self._database.writing() as connection:
                add_slots(connection, new, self.settings.overlap, answered=self.settings.answered)
            self._open = (-_REFRESH, 0)

    def _count(self, connection: Connection, row: RowMapping, judgement: Judgement, earlier: Judgement | None) -> None:
        """A late answer counts again, unless its query was handed on; a skipped query is for somebody else."""
        if row["kind"] != "query":
            return
        before = 0 if row["state"] == "lapsed" else 1
        if earlier is not None:
            before = 0 if passed_on(earlier) else 1
        after = 0 if passed_on(judgement) else 1
        if after != before:
            change_slot(connection, row["query_id"], after - before, self.settings.overlap)


def _sent_before(connection: Connection, judgement: Judgement, standing: Judgement) -> bool:
    """True if an answer was stored, and then corrected in another window, and is now sent again: its reply was lost.

    Args:
        connection: a transaction.
        judgement: the answer. A person who gives it anew does not take the same time, to the millisecond.
        standing: the answer that stands.
    """
    earlier: Judgement | None = standing
    while earlier is not None and earlier.supersedes is not None:
        earlier = rows.judgements_by(connection, "id", {earlier.supersedes}).get(earlier.supersedes)
        if earlier is None:
            break
        if earlier.seconds == judgement.seconds and _says(judgement, earlier):
            return True
    return False


def _says(judgement: Judgement, earlier: Judgement) -> bool:
    """True if an answer says what an earlier one to the same question said, whatever each of them corrects."""
    return replace(judgement, supersedes=earlier.supersedes).same_answer(earlier)
