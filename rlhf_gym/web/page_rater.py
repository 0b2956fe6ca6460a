"""People behind the two calls that every rater answers: what is submitted is offered on the page, answers come from the store.

The page writes each answer to the store itself, the moment it is given. Collecting therefore loses nothing: whoever
collects may be interrupted, killed and started again, and finds all of it there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import func, select

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.schema import judgements
from rlhf_gym.raters.asking import signed_by
from rlhf_gym.raters.base import Ticket
from rlhf_gym.study.queue import Queue

_POLL = 0.25


class WebRater:
    """The people on a rating page, as one rater. They sign ``web/...``.

    Args:
        store: the store that the page serves; queries must be in it before they are submitted (``ask`` sees to that).
        queue: the page's, where it is served by this process: only what was submitted is then handed out. None leaves it
            to whoever serves the page.
        overlap: number of people who answer each query.
        name: the prefix of people's names as raters.

    Raises:
        ConfigError: an overlap below 1.
    """

    def __init__(
        self, store: FeedbackStore, queue: Queue | None = None, *, overlap: int = 1, name: str = "web"
    ) -> None:
        if overlap < 1:
            raise ConfigError(f"overlap must be at least 1, got {overlap}")
        self.overlap = overlap
        self._store = store
        self._queue = queue
        self._name = name
        self._rounds: dict[str, int] = {}
        self._seen: set[str] = set()
        self._unreturned: list[Judgement] = []
        self._looked_at = -1  # judgements in the store when it was last read through

    @property
    def name(self) -> str:
        """The prefix of people's names as raters."""
        return self._name

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Offer queries on the page: all of a round at once. See :meth:`Rater.submit`."""
        self._rounds.update((query.id, query.round) for query in queries)
        self._looked_at = -1
        if self._queue is not None:
            self._queue.offer(set(self._rounds))
        return [Ticket(query.id, self._name, number) for query in queries for number in range(self.overlap)]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """The answers that people gave since the last call. See :meth:`Rater.collect`.

        With a timeout, waits as long for the first answer and returns whatever is there then.

        Args:
            tickets: from :meth:`submit`.
            timeout: seconds to wait.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        wanted = {ticket.query_id for ticket in tickets}
        found: list[Judgement] = []
        answered: dict[str, int] = {}
        while True:
            for judgement in self._new(wanted):
                found.append(judgement)
                if judgement.supersedes is None:
                    answered[judgement.query_id] = answered.get(judgement.query_id, 0) + 1
            if deadline is None:
                if all(answered.get(ticket.query_id, 0) > ticket.number for ticket in tickets):
                    return found
            elif found or time.monotonic() >= deadline:
                return found
            time.sleep(_POLL if deadline is None else max(0.0, min(_POLL, deadline - time.monotonic())))

    def _new(self, wanted: set[str]) -> list[Judgement]:
        """Answers to some queries that were not returned yet; corrections after what they correct."""
        self._read()
        new = [judgement for judgement in self._unreturned if judgement.query_id in wanted]
        self._unreturned = [judgement for judgement in self._unreturned if judgement.query_id not in wanted]
        return new

    def _read(self) -> None:
        """Look for new answers to anything that was submitted."""
        # A count costs next to nothing; reading rounds through, several times a second, would slow the page down.
        with self._store.database.reading() as connection:
            there = connection.scalar(select(func.count()).select_from(judgements)) or 0
        if there == self._looked_at:
            return
        self._looked_at = there
        for number in sorted(set(self._rounds.values())):
            for judgement in self._store.judgements(number, superseded=True):
                # A repetition measures a rater's agreement with themselves; it answers no ticket.
                mine = signed_by(judgement.rater, self._name) and judgement.details.get("kind") != "repeat"
                if mine and judgement.query_id in self._rounds and judgement.id not in self._seen:
                    self._seen.add(judgement.id)
                    self._unreturned.append(judgement)
