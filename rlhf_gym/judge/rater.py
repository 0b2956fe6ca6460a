"""A judge as a rater: it answers the same queries as people, compares in both orders, and gives reasons."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query, QueryType
from rlhf_gym.judge.client import ChatClient, JudgeError, Usage
from rlhf_gym.judge.judge import Judge, Opinion, unreadable
from rlhf_gym.raters.base import RaterError, Ticket

ANSWERED: tuple[QueryType, ...] = ("pair", "ranking", "best", "rating", "thumbs")
"""The query types that a judge answers; it writes no corrected responses (edit)."""


class JudgeRater:
    """Answers pairs, rankings and best-of-k by comparing every two responses in both orders, ratings and thumbs by scores.

    Rankings are by the number of comparisons won (Copeland), so ``k`` responses take ``k (k - 1)`` questions. A comparison
    whose two orders contradict one another is a tie. Queries whose reply cannot be read, and edits, are skipped, with the
    reason in ``details["unreadable"]``.

    Args:
        url: see :class:`~rlhf_gym.judge.reward.JudgeReward`.
        model: likewise.
        rubric: likewise.
        template: of comparisons, likewise.
        name: signs the judgements; default ``judge:MODEL``.
        batch_size: most queries that are sent at once, so that answers are stored as they come.
        options: of :class:`~rlhf_gym.judge.client.ChatClient`.

    Raises:
        ConfigError: a setting out of its range, or the ``openai`` package is missing.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        rubric: str | os.PathLike[str] | None = None,
        template: str | os.PathLike[str] | None = None,
        name: str | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> None:
        client = ChatClient(url, model, **options)
        self._pairs = Judge(client, rubric=rubric, template=template, pairs=True)
        self._scores = Judge(client, rubric=rubric)
        self._client, self._given_name, self._batch_size = client, name, batch_size
        self._open: dict[str, Query] = {}
        self.compared = self.disagreed = self.chose_first = self.chose = 0

    @property
    def name(self) -> str:
        """Signs the judgements."""
        if self._given_name is None:
            self._given_name = "judge:" + "".join(c if c.isprintable() else "?" for c in self._client.model)
        return self._given_name

    @property
    def usage(self) -> Usage:
        """Requests and tokens so far."""
        return self._client.usage

    def __str__(self) -> str:
        bias = ""
        if self.compared:
            bias = f"; {self.disagreed / self.compared:.0%} of {self.compared:,} comparisons changed with the order"
        if self.chose:
            bias += f", the response shown first was chosen {self.chose_first / self.chose:.0%} of the time"
        return f"{self.name}: {self.usage}{bias}"

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Take queries; the judge answers them when they are collected. See :meth:`Rater.submit`."""
        self._open.update((query.id, query) for query in queries)
        return [Ticket(query.id, self.name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """Query the judge, in the order of the tickets. See :meth:`Rater.collect`.

        Args:
            tickets: of open queries, from :meth:`submit`.
            timeout: seconds after which no further batch begins (at least one is judged); None judges all.

        Raises:
            RaterError: the service cannot be reached or refuses; ``judgements`` holds the answers. Collecting again goes on.
            FeedbackError: a ticket is not open here.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        unknown = [ticket for ticket in tickets if ticket.query_id not in self._open]
        if unknown:
            raise FeedbackError(f"query {unknown[0].query_id} is not open at rater {self.name!r}: submit it first")
        judgements: list[Judgement] = []
        for begin in range(0, len(tickets), self._batch_size):
            batch = [self._open[ticket.query_id] for ticket in tickets[begin : begin + self._batch_size]]
            try:
                judgements += self._judge(batch)
            except JudgeError as error:
                raise RaterError(f"rater {self.name!r}: {error}; what was answered is stored", judgements) from error
            if time.monotonic() >= deadline:
                break
        for judgement in judgements:
            self._open.pop(judgement.query_id, None)
        return judgements

    def _judge(self, queries: Sequence[Query]) -> list[Judgement]:
        """Send a batch's questions at once, then make one answer a query."""
        compared = [query for query in queries if query.query_type in ("pair", "ranking", "best")]
        scored = [query for query in queries if query.query_type in ("rating", "thumbs")]
        pairs = [(query, i, j) for query in compared for i, j in combinations(range(len(query.responses)), 2)]
        opinions = self._pairs.compare(
            [(query.prompt, query.responses[i], query.responses[j]) for query, i, j in pairs],
            [query.columns for query, _, _ in pairs],
        )
        single = [(query, response) for query in scored for response in query.responses]
        scores = self._scores.scores(
            [query.prompt for query, _ in single], [response for _, response in single], [q.columns for q, _ in single]
        )
        self._count(opinions)
        queried = [query for query, *_ in pairs] + [query for query, _ in single]
        by_query: dict[str, list[Opinion]] = {query.id: [] for query in queries}
        for query, opinion in zip(queried, [*opinions, *scores], strict=True):
            by_query[query.id].append(opinion)
        return [self._answer(query, by_query[query.id]) for query in queries]

    def _count(self, opinions: Sequence[Opinion]) -> None:
        """Update the counts that measure position bias."""
        read = [opinion for opinion in opinions if opinion.value is not None]
        self.compared += len(read)
        self.disagreed += sum(opinion.disagreed for opinion in read)
        decided = [o for o in read if o.value or o.disagreed]
        self.chose_first += sum(opinion.first_shown for opinion in decided)
        self.chose += 2 * len(decided)

    def _answer(self, query: Query, opinions: Sequence[Opinion]) -> Judgement:
        unread = next((opinion for opinion in opinions if opinion.value is None), None)
        if unread is not None or not opinions:
            why = unreadable(unread) if unread is not None else f"a judge does not answer {query.query_type} queries"
            return Judgement(query_id=query.id, rater=self.name, skipped=True, details={"unreadable": why})
        values = [float(opinion.value or 0) for opinion in opinions]
        details = {"disagreed": sum(opinion.disagreed for opinion in opinions)} if query.query_type != "rating" else {}
        return Judgement(
            query_id=query.id,
            rater=self.name,
            reason=opinions[0].reason,
            details=details,
            **self._fields(query, values),
        )

    def _fields(self, query: Query, values: list[float]) -> dict[str, Any]:
        """The fields of a judgement that hold the answer to a query of this type."""
        if query.query_type == "pair":
            return {"choice": int(values[0] > 0)} if values[0] else {"tie": True}
        if query.query_type == "rating":
            return {"ratings": {"overall": tuple(values)}}
        if query.query_type == "thumbs":
            return {"ratings": {"overall": (int(values[0] > (self._scores.low + self._scores.high) / 2),)}}
        wins = [0.0] * len(query.responses)
        for (i, j), value in zip(combinations(range(len(query.responses)), 2), values, strict=True):
            wins[i] -= value
            wins[j] += value
        if query.query_type == "best":
            return {"choice": wins.index(max(wins))}
        groups = [tuple(i for i, won in enumerate(wins) if won == level) for level in sorted(set(wins), reverse=True)]
        return {"ranking": tuple(groups)}
