"""The simulated rater: answers by a reward, with a person's noise and habits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError, FeedbackError, RewardError
from rlhf_gym.feedback.queries import Judgement, Query, content_id
from rlhf_gym.raters.base import RaterError, Ticket
from rlhf_gym.raters.behaviour import Behaviour
from rlhf_gym.rewards.base import Reward, reward_name, score
from rlhf_gym.text import nearest


class SimulatedRater:
    """Answers pair, ranking, best and rating queries at once, by a reward.

    An answer depends on the query, the reward, the behaviour, the rater's name and the seed, and on nothing else: not
    on earlier queries, nor on the batches. So a resumed run gets the same answers.

    Args:
        reward: scores the responses; anything :func:`rlhf_gym.rewards.score` can call. It is given each query's columns.
        behaviour: how the rater answers; default a Boltzmann-rational one with ``beta = 1``.
        seed: 0 or more.
        name: signs the judgements.
        batch_size: most queries scored in one call of the reward.
        **knobs: fields of :class:`Behaviour` to set, e.g. ``beta=2.0, error_rate=0.1``.

    Raises:
        ConfigError: a knob that does not exist or is out of its range.

    >>> rater = SimulatedRater(lambda prompts, responses: [len(r) for r in responses], beta=float("inf"))
    >>> tickets = rater.submit([Query(prompt="Say more.", responses=("no", "gladly"))])
    >>> rater.collect(tickets)[0].choice
    1
    """

    def __init__(
        self,
        reward: Reward | Callable[..., Any],
        behaviour: Behaviour | None = None,
        *,
        seed: int = 0,
        name: str = "simulated",
        batch_size: int = 256,
        **knobs: Any,
    ) -> None:
        for knob in knobs:
            if knob not in Behaviour.knobs():
                raise ConfigError(f"a simulated rater has no {knob!r}{nearest(knob, Behaviour.knobs(), cutoff=0)}")
        if seed < 0 or batch_size < 1 or not name:
            raise ConfigError(
                "a simulated rater needs a name, a seed of 0 or more and a batch_size of 1 or more; "
                f"got {name!r}, {seed} and {batch_size}"
            )
        self.reward = reward
        self.behaviour = replace(behaviour or Behaviour(), **knobs)
        self.seed = seed
        self.batch_size = batch_size
        self._name = name
        self._open: dict[str, Query] = {}

    @property
    def name(self) -> str:
        """Signs the judgements."""
        return self._name

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Take queries; they are scored when they are collected. See :meth:`Rater.submit`."""
        self._open.update((query.id, query) for query in queries)
        return [Ticket(query.id, self._name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """Answer, in the order of the tickets. See :meth:`Rater.collect`.

        Args:
            tickets: from :meth:`submit`.
            timeout: seconds to wait.

        Raises:
            RaterError: the reward failed, and on which query; ``judgements`` holds the answers made before that one.
                The queries stay submitted, so collecting again is trying again.
            FeedbackError: a ticket is not open here: not submitted, or collected already.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        queries = [self._query(ticket) for ticket in tickets]
        judgements: list[Judgement] = []
        for start in range(0, len(queries), self.batch_size):
            batch = queries[start : start + self.batch_size]
            try:
                judgements += self._judge(batch)
            except RewardError:
                judgements += self._judge_singly(batch, judgements)
            if time.monotonic() >= deadline:
                break
        for judgement in judgements:
            self._open.pop(judgement.query_id, None)
        return judgements

    def _query(self, ticket: Ticket) -> Query:
        query = self._open.get(ticket.query_id)
        if query is None or ticket.rater != self._name:
            raise FeedbackError(
                f"query {ticket.query_id} for {ticket.rater!r} is not open at rater {self._name!r}: submit it first, "
                "and collect it once"
            )
        return query

    def _judge_singly(self, batch: Sequence[Query], before: Sequence[Judgement]) -> list[Judgement]:
        """After a batch failed: answer up to the query that the reward fails on, and name it."""
        judgements: list[Judgement] = []
        for query in batch:
            try:
                judgements += self._judge([query])
            except RewardError as error:
                where = f"query {query.id} (round {query.round}, index {query.index})"
                message = f"rater {self._name!r} could not judge {where}: {error}"
                raise RaterError(message, [*before, *judgements]) from error
        return judgements  # the failure has passed, as a network's may

    def _judge(self, batch: Sequence[Query]) -> list[Judgement]:
        """One call of the reward for all responses of all queries, then one answer a query.

        A query with a response that the reward leaves out (:class:`~rlhf_gym.rewards.on_error.SkipOnError`) is skipped.
        """
        names = {name: None for query in batch for name in query.columns}
        flat = [(query, response) for query in batch for response in query.responses]
        columns = {name: [query.columns.get(name) for query, _ in flat] for name in names}
        prompts = [query.prompt for query, _ in flat]
        texts = [response for _, response in flat]
        scored = score(self.reward, prompts, texts, columns, name=reward_name(self.reward), may_skip=True)
        ends = np.cumsum([len(query.responses) for query in batch])
        per_query = np.split(np.asarray(scored.values, dtype=np.float64), ends[:-1])
        complete = [bool(kept.all()) for kept in np.split(scored.kept, ends[:-1])]
        return [
            self._answer(query, rewards) if whole else Judgement(query_id=query.id, rater=self._name, skipped=True)
            for query, rewards, whole in zip(batch, per_query, complete, strict=True)
        ]

    def _answer(self, query: Query, rewards: NDArray[np.float64]) -> Judgement:
        key = int(content_id("simulated rater", self.seed, self._name, query.id), 16)
        rng = np.random.Generator(np.random.Philox(key=key))
        answer = self.behaviour.answer(query, rewards, rng)
        return Judgement(query_id=query.id, rater=self._name, **answer)
