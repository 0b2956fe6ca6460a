"""The feedback store: every query and every judgement, in one database that loses nothing.

Append-only: what is stored is never changed or removed (triggers in the database hold that), a correction is a further
judgement, a withdrawal a further record. Idempotent: what is stored twice under one id is stored once. Several processes may
write and read at once. One bad row hides no other: what was stored and is no query is set aside, which is said once.
"""

# ruff: noqa: A002 - a round is called a round everywhere, although Python has a function of that name.

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sqlalchemy import ColumnElement, Connection, RowMapping, func, select

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import rows, schema, withdrawals
from rlhf_gym.feedback.database import Database
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.feedback.purposes import to_learn_from
from rlhf_gym.feedback.queries import Judgement, Query, check_judgement
from rlhf_gym.feedback.sqlite_database import SqliteDatabase
from rlhf_gym.feedback.withdrawals import Withdrawable, Withdrawal

POSTGRES_URLS = ("postgresql+psycopg://", "postgresql://", "postgres://")

log = logging.getLogger(__name__)

_Q, _J = schema.queries.c, schema.judgements.c
_QUERY_ORDER = (_Q.round, _Q["index"], _Q.id)


@dataclass(frozen=True)
class StoreCount:
    """The number of queries, judgements and raters in a store.

    Attributes:
        queries: number of queries.
        answered: queries with at least one judgement (skips count).
        judgements: judgements given, superseded ones included.
        current: judgements that nothing supersedes; the next two count among these.
        skipped: skips.
        ties: pairs held equal.
        raters: names that judged.
    """

    queries: int
    answered: int
    judgements: int
    current: int
    skipped: int
    ties: int
    raters: int


@dataclass(frozen=True)
class SetAside:
    """A stored query that is not used: it is no question, or no page could show it.

    Attributes:
        id: the query's id.
        round: its round.
        why: what is wrong with it.
    """

    id: str
    round: int
    why: str


class FeedbackStore:
    """Queries and judgements in one SQLite file, or in a PostgreSQL database.

    Every list comes in a fixed order: queries by round, index and id; judgements by their query, then as they arrived.
    Safe to use from several threads. Use it as a context manager, or call :meth:`close`.

    Args:
        path: the file, or ``sqlite:///`` and the file; created where it does not exist (unless ``read_only``). Or the URL
            of a PostgreSQL database, ``postgresql+psycopg://user:password@host/database`` (needs the extra ``postgres``);
            its tables are created where it is empty. A store of an older version is brought up to date in one transaction
            (read-only, it is read as it is).
        read_only: open an existing store without ever writing to it, also while another process writes.
        timeout: seconds to wait for another process that is writing.

    Raises:
        FeedbackError: the database cannot be opened, is no feedback store, or was written by a newer rlhf-gym.
        ConfigError: a PostgreSQL URL without psycopg installed.
    """

    def __init__(self, path: str | os.PathLike[str], *, read_only: bool = False, timeout: float = 30.0) -> None:
        self._database = open_database(path, read_only=read_only, timeout=timeout)
        self._said: set[str] = set()

    @property
    def database(self) -> Database:
        """The open database, for the other tables in it."""
        return self._database

    @property
    def path(self) -> Path:
        """The store's file.

        Raises:
            FeedbackError: the store is in PostgreSQL.
        """
        if not isinstance(self._database, SqliteDatabase):
            raise FeedbackError(f"the feedback store {self._database.place} is in a server's database, not in a file")
        return self._database.path

    @property
    def place(self) -> str:
        """The store's place, for messages: its file, or its URL without the password."""
        return self._database.place

    def add_queries(self, queries: Iterable[Query]) -> int:
        """Store queries, all or none; those that are there already are left as they are.

        Returns:
            How many were new. When it returns, the disk has them.

        Raises:
            FeedbackError: an id is taken by a query with another content, a column is not a JSON value, or the database
                cannot be written; then nothing of this call is stored, and all that was stored before still is.
        """
        given = list(queries)
        with self._database.writing() as connection:
            return rows.append_queries(connection, given)

    def add_judgements(self, judgements: Iterable[Judgement]) -> int:
        """Append judgements, all or none; a judgement whose id is there with the same answer is a retry, and ignored.

        Returns:
            How many were new. When it returns, the disk has them.

        Raises:
            FeedbackError: a judgement does not fit its query or names one that is not there; its id is taken by another
                answer; it supersedes what is not there, is another's or was superseded already; or the database cannot
                be written. Then nothing of this call is stored, and all that was stored before still is.
        """
        with self._database.writing() as connection:
            return rows.append_judgements(connection, list(judgements))

    def withdraw(self, given: str, *, reason: str = "", actor: str = "command line") -> Withdrawal:
        """Withdraw a query with all answers to it, or one answer: it stays stored, and is not read any more.

        Args:
            given: its id, or the first six characters or more.
            reason: why.
            actor: who withdraws it.

        Returns:
            The record of the withdrawal; the earlier one if it was withdrawn before.

        Raises:
            FeedbackError: no query and no answer has that id, several begin so, or the database cannot be written.
        """
        with self._database.writing() as connection:
            return withdrawals.withdraw(connection, given, reason=reason, actor=actor)

    def withdrawals(self) -> list[Withdrawal]:
        """All withdrawals, in the order in which they came."""
        if not self._knows_withdrawals:
            return []
        with self._database.reading() as connection:
            return withdrawals.withdrawals(connection)

    def withdrawn_judgements(self) -> set[str]:
        """The ids of the judgements that are withdrawn."""
        return {withdrawal.id for withdrawal in self.withdrawals() if withdrawal.kind == "judgement"}

    def withdrawn_queries(self) -> set[str]:
        """The ids of the queries that are withdrawn."""
        return {withdrawal.id for withdrawal in self.withdrawals() if withdrawal.kind == "query"}

    def queries(self, round: int | None = None) -> list[Query]:
        """The queries of one round, or of all."""
        with self._database.reading() as connection:
            statement = select(*rows.query_columns).where(*self._among(round)).order_by(*_QUERY_ORDER)
            found = [self._usable(row) for row in connection.execute(statement).mappings()]
            return [query for query in found if query is not None]

    def set_aside(self) -> list[SetAside]:
        """The queries that are left out wherever queries are read, because what is stored there is no question.

        Those that are withdrawn are not among them.
        """
        statement = select(*rows.query_columns).where(*self._among(None)).order_by(*_QUERY_ORDER)
        with self._database.reading() as connection:
            found = connection.execution_options(yield_per=500).execute(statement).mappings()
            return [
                SetAside(row["asked_id"], row["asked_round"], str(wrong))
                for row in found
                if isinstance(wrong := rows.usable(row), FeedbackError)
            ]

    def raters(self, query_ids: Iterable[str]) -> dict[str, set[str]]:
        """The raters who have judged each of some queries; queries without a judgement, and withdrawn ones, are left out."""
        with self._database.reading() as connection:
            return rows.raters_by_query(connection, set(query_ids), self._not_withdrawn("judgement", _J.id))

    def judgements(
        self, round: int | None = None, *, rater: str | None = None, superseded: bool = False
    ) -> list[Judgement]:
        """The judgements of one round or all, by one rater or all; with ``superseded``, the superseded ones too.

        Args:
            round: one round; default all.
            rater: one rater; default all.
            superseded: True includes superseded judgements.
        """
        with self._database.reading() as connection:
            return [judgement for _, judgement in self._answers(connection, round, rater, superseded)]

    def answers(
        self,
        round: int | None = None,
        *,
        rater: str | None = None,
        superseded: bool = False,
        to_learn: bool = False,
        after: int = 0,
    ) -> list[tuple[Query, Judgement]]:
        """The same as :meth:`judgements`, each with its query.

        Args:
            round: one round; default all.
            rater: one rater; default all.
            superseded: True includes superseded judgements.
            to_learn: True leaves out answers to check questions, practice and repetitions, which measure people.
            after: only what was stored after the judgement of this number; see :meth:`last_number`.
        """
        with self._database.reading() as connection:
            found = list(self._answers(connection, round, rater, superseded, after))
        return to_learn_from(found) if to_learn else found

    def last_number(self) -> int:
        """The number of the judgement that was stored last, by which later ones are told; 0 in an empty store."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.max(_J.sequence))) or 0

    def preferences(
        self,
        round: int | None = None,
        *,
        rater: str | None = None,
        attribute: str | None = None,
        ties: bool = True,
        every_purpose: bool = False,
    ) -> list[Preference]:
        """The preferences that follow from the current judgements; see :func:`preferences_of`. Skips give none.

        Answers to check questions, practice and repetitions are left out: they measure people.

        Args:
            round: one round; default all.
            rater: one rater; default all.
            attribute: the attribute whose ratings are compared; default their mean.
            ties: False leaves out the pairs that were held equal.
            every_purpose: True includes answers to check questions, practice and repetitions.
        """
        found = preferences_of(self.answers(round, rater=rater, to_learn=not every_purpose), attribute=attribute)
        return [preference for preference in found if ties or not preference.tie]

    def count(self, round: int | None = None) -> StoreCount:
        """Count queries, judgements and raters, of one round or of all; what is withdrawn does not count."""
        with self._database.reading() as connection:
            asked = connection.scalar(select(func.count()).select_from(schema.queries).where(*self._among(round)))
            answered = schema.judgements.join(schema.queries, _J.query_id == _Q.id)
            among = [*self._among(round), *self._not_withdrawn("judgement", _J.id)]
            of_round = select(
                func.count(_J.query_id.distinct()).label("answered"),
                func.count().label("judgements"),
                func.count(_J.rater.distinct()).label("raters"),
            )
            totals = connection.execute(of_round.select_from(answered).where(*among)).mappings().one()
            of_current = select(
                func.count().label("current"),
                func.count().filter(_J.skipped).label("skipped"),
                func.count().filter(_J.tie).label("ties"),
            )
            current = connection.execute(of_current.select_from(answered).where(self._current, *among))
            return StoreCount(queries=asked or 0, **totals, **current.mappings().one())

    @property
    def _knows_withdrawals(self) -> bool:
        return self._database.version >= 3

    @property
    def _current(self) -> ColumnElement[bool]:
        """The condition that nothing supersedes a judgement but what is withdrawn."""
        return withdrawals.CURRENT if self._knows_withdrawals else withdrawals.NOT_SUPERSEDED

    def _not_withdrawn(self, kind: Withdrawable, column: ColumnElement[str]) -> list[ColumnElement[bool]]:
        return [~withdrawals.withdrawn(kind, column)] if self._knows_withdrawals else []

    def _among(self, round: int | None) -> list[ColumnElement[bool]]:
        """The conditions on the queries that are read: of one round or of all, and not withdrawn."""
        return [*([] if round is None else [_Q.round == round]), *self._not_withdrawn("query", _Q.id)]

    def _usable(self, row: RowMapping) -> Query | None:
        """The query in a row; None where there is none in it, which is said once."""
        query = rows.usable(row)
        if isinstance(query, Query):
            return query
        self._say_once(row["asked_id"], f"query {row['asked_id']}", query)
        return None

    def _say_once(self, key: str, what: str, error: FeedbackError) -> None:
        if key not in self._said:
            self._said.add(key)
            log.warning(
                "the feedback store %s: %s was set aside, with what belongs to it: %s. To leave it out without this message: "
                "rlhf-gym rate withdraw %s --store %s",
                self.place, what, error, key, self.place,
            )  # fmt: skip

    def _answers(
        self, connection: Connection, round: int | None, rater: str | None, superseded: bool, after: int = 0
    ) -> Iterator[tuple[Query, Judgement]]:
        statement = select(*rows.query_columns, *rows.judgement_columns).join_from(
            schema.queries, schema.judgements, _J.query_id == _Q.id
        )
        statement = statement.where(*self._among(round), *self._not_withdrawn("judgement", _J.id))
        statement = statement.order_by(*_QUERY_ORDER, _J.sequence)
        if rater is not None:
            statement = statement.where(_J.rater == rater)
        if after:
            statement = statement.where(_J.sequence > after)
        if not superseded:
            statement = statement.where(self._current)
        for row in connection.execute(statement).mappings():
            query = self._usable(row)
            if query is None:
                continue
            try:
                judgement = rows.judgement_of(row)
                check_judgement(query, judgement)
            except FeedbackError as error:
                self._say_once(row["judgement_id"], f"answer {row['judgement_id']}", error)
                continue
            yield query, judgement

    def close(self) -> None:
        """Close the database. The store cannot be used afterwards."""
        self._database.close()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_database(path: str | os.PathLike[str], *, read_only: bool = False, timeout: float = 30.0) -> Database:
    """Open the database that a path or a URL names. See :class:`FeedbackStore`.

    Args:
        path: the file, or the URL of a database.
        read_only: never write.
        timeout: seconds to wait.

    Raises:
        FeedbackError: the URL is of another kind of database, or the database cannot be opened.
    """
    text = os.fspath(path)
    if text.startswith(POSTGRES_URLS):
        from rlhf_gym.feedback.postgres_database import PostgresDatabase

        return PostgresDatabase(text, read_only=read_only, timeout=timeout)
    if text.startswith("sqlite:///") and len(text) > len("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    elif "://" in text:
        raise FeedbackError(
            f"a feedback store is a file, sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE; got {text!r}"
        )
    return SqliteDatabase(Path(text), read_only=read_only, timeout=timeout)
