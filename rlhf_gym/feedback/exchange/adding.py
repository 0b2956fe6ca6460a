"""Adds the answers of a file to a store: each once, however often the file, or a later state of it, is read.

A query is known by its content, an answer by its query and rater. So of next week's export of the same project, new answers are
added, changed ones supersede what they changed, and those that are gone are counted. Nothing is removed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from sqlalchemy import Connection, select

from rlhf_gym.feedback import rows, schema
from rlhf_gym.feedback.exchange.incoming import nth_id
from rlhf_gym.feedback.exchange.records import Answer
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.withdrawals import CURRENT, withdrawn_ids

_AT_ONCE = 500
# In an answer's details: the format and the name of the file that brought it.
_FROM, _FILE = "imported", "imported_from"
Key = tuple[str, str]


@dataclass
class Added:
    """The result of an import into a store.

    Attributes:
        queries: number of new queries.
        judgements: number of new judgements, with those that supersede one.
        known: number of judgements that were there already.
        changed: judgements that supersede one that was there.
        again: answers of the file to a query that the same rater answers in an earlier row.
        otherwise: out of these, those that say something else.
        gone: answers of an earlier state of the file (of the same name, or most of which it holds) that it does not hold any
            more; they stay.
        withdrawn: out of the known answers, those that were withdrawn, or whose query was; they stay withdrawn.
    """

    queries: int = 0
    judgements: int = 0
    known: int = 0
    changed: int = 0
    again: int = 0
    otherwise: int = 0
    gone: int = 0
    withdrawn: int = 0


def add_answers(connection: Connection, answers: Iterable[Answer], format: str, file: str = "") -> Added:  # noqa: A002
    """Add answers within a transaction, some at a time.

    Args:
        connection: writing.
        answers: the answers of one file, in order.
        format: the format of the file; not ``native``, see :func:`add_as_they_are`.
        file: its name, by which a later state of it is known.

    Raises:
        FeedbackError: the store holds another answer or query under an id, or cannot be written.
    """
    adding, given = _Adding(connection, format, file), iter(answers)
    while some := list(islice(given, _AT_ONCE)):
        adding.add(some)
    adding.finish()
    return adding.added


class _Adding:
    """Matches each rater's answers to each query with those in the store."""

    def __init__(self, connection: Connection, format: str, file: str) -> None:  # noqa: A002
        self.added = Added()
        self._connection = connection
        self._origin = {_FROM: format, _FILE: file}
        self._withdrawn = withdrawn_ids(connection)
        self._taken: set[str] = set()  # ids that were added, or found to be there
        self._held = Counter[str]()  # answers that this file has, too, by the file that brought them
        self._first: dict[Key, tuple[object, ...]] = {}  # what a rater's first answer to a query says
        self._stored: dict[Key, list[Judgement]] = {}  # answers in the store that no row has met yet
        self._waiting: dict[Key, list[Judgement]] = defaultdict(list)  # rows that say something else than these

    def add(self, answers: Sequence[Answer]) -> None:
        """Add some answers."""
        queries = {query.id: query for query, _ in answers}
        self.added.queries += rows.append_queries(self._connection, [query for query, _ in answers])
        there = self._there(queries.keys())
        new: list[Judgement] = []
        for query, judgement in answers:
            key, said = (query.id, judgement.rater), _said(judgement)
            if key not in self._first:
                self._first[key] = said
                self._stored[key] = there.get(key, [])
            else:
                self.added.again += 1
                self.added.otherwise += said != self._first[key]
            match = next((stored for stored in self._stored[key] if _said(stored) == said), None)
            if match is not None:
                self._stored[key].remove(match)
                self._hold(match)
                self.added.known += 1
                self.added.withdrawn += not self._withdrawn.isdisjoint((match.id, query.id))
            elif self._stored[key]:
                self._waiting[key].append(judgement)
            else:
                new.append(judgement)
        self._append(new, queries)

    def finish(self) -> None:
        """Let what is left over supersede what is left over in the store, and count what is gone."""
        new: list[Judgement] = []
        for key, waiting in self._waiting.items():
            stored = self._stored[key]
            for judgement in waiting:
                if stored:
                    earlier = stored.pop(0)
                    self._hold(earlier)
                    self.added.changed += 1
                    judgement = replace(judgement, id="", supersedes=earlier.id)
                new.append(judgement)
        self._append(new)
        self.added.gone = self._gone()

    def _append(self, given: Sequence[Judgement], queries: Mapping[str, Query] | None = None) -> None:
        free: list[Judgement] = []
        taken = set(rows.judgements_by(self._connection, "id", [judgement.id for judgement in given if judgement.id]))
        for judgement in given:
            number, key = 0, (judgement.query_id, judgement.rater)
            while judgement.id in taken or judgement.id in self._taken:  # another answer has it, maybe superseded
                number += 1
                judgement = replace(judgement, id=nth_id(key, number))
                taken |= rows.judgements_by(self._connection, "id", [judgement.id]).keys()
            self._taken.add(judgement.id)
            free.append(replace(judgement, details={**judgement.details, **self._origin}))
        self.added.judgements += rows.append_judgements(self._connection, free, queries=queries)

    def _there(self, query_ids: Collection[str]) -> dict[Key, list[Judgement]]:
        """The current answers to some queries in the store, without those of this file, by query and rater."""
        found: dict[Key, list[Judgement]] = defaultdict(list)
        for judgement in rows.current_judgements(self._connection, query_ids):
            if judgement.id not in self._taken:
                found[judgement.query_id, judgement.rater].append(judgement)
        return found

    def _gone(self) -> int:
        """Answers that earlier states of this file brought, and that it does not hold; of its name, or most of it held."""
        missing, table = Counter[str](), schema.judgements.c
        raters = {rater for _, rater in self._first}
        name = table.details[_FILE].as_string()
        brought = select(table.id, table.query_id, table.rater, name)
        brought = brought.where(table.details[_FROM].as_string() == self._origin[_FROM], CURRENT)
        for number, query_id, rater, file in self._connection.execute(brought):
            if rater in raters and number not in self._taken and self._withdrawn.isdisjoint((number, query_id)):
                missing[file or ""] += 1
        own = self._origin[_FILE]
        return sum(n for name, n in missing.items() if self._held[name] > (0 if own and name == own else n))

    def _hold(self, earlier: Judgement) -> None:
        self._taken.add(earlier.id)
        self._held[str(earlier.details.get(_FILE, ""))] += 1


def _said(judgement: Judgement) -> tuple[object, ...]:
    """What an answer says, by whichever file it came."""
    details = {name: value for name, value in judgement.details.items() if name not in (_FROM, _FILE)}
    answer = (judgement.choice, judgement.ranking, judgement.ratings, judgement.tie, judgement.skipped)
    return (*answer, judgement.strength, judgement.reason, details)


def add_as_they_are(connection: Connection, queries: Sequence[Query], judgements: Sequence[Judgement]) -> Added:
    """Add what a native file holds, under its own ids.

    A correction whose original is neither in the file nor in the store (a file of current answers only) is added as an
    answer of its own.

    Args:
        connection: writing.
        queries: the queries of the file.
        judgements: the answers of the file.

    Raises:
        FeedbackError: the store holds another answer or query under an id, or cannot be written.
    """
    new_queries = rows.append_queries(connection, queries)
    new = rows.append_judgements(connection, _originals_first(connection, judgements))
    gone = withdrawn_ids(connection)
    withdrawn = sum(not gone.isdisjoint((judgement.id, judgement.query_id)) for judgement in judgements)
    return Added(new_queries, new, len(judgements) - new, withdrawn=withdrawn)


def _originals_first(connection: Connection, given: Sequence[Judgement]) -> list[Judgement]:
    """Judgements in an order that a store takes: a correction after the judgement that it corrects."""
    by_id = {judgement.id: judgement for judgement in given}
    ordered, placed = list[Judgement](), set[str]()
    for judgement in given:
        chain: list[Judgement] = []
        link: Judgement | None = judgement
        while link is not None and link.id not in placed:  # corrections in a ring end here, and the store refuses them
            placed.add(link.id)
            chain.append(link)
            link = by_id.get(link.supersedes or "")
        # One that was given twice comes twice: the store compares the two.
        ordered += reversed(chain) if chain else [judgement]
    corrected = {judgement.supersedes for judgement in given if judgement.supersedes is not None}
    known = by_id.keys() | rows.judgements_by(connection, "id", corrected).keys()
    return [j if j.supersedes is None or j.supersedes in known else replace(j, supersedes=None) for j in ordered]
