"""Live scores as a reward: every response is put to a rater, and training waits for the ratings.

A person can give a few hundred scores in an evening, so this suits small budgets, the last polish and tests of an
interface; for anything larger, fit a reward model to judgements and train against that (``rlhf-gym run --rater ...``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.feedback.store import FeedbackStore
from rlhf_gym.raters.base import Rater, RaterError, Ticket
from rlhf_gym.raters.function import FunctionRater, as_rater

_POLL = 0.5  # seconds between two looks at raters who answer when they answer


class RaterReward:
    """Scores come from a rater that answers ``rating`` queries, such as a person at the terminal or on the web page.

    Each sample becomes a query of one response. The same response to the same prompt is rated once: with a store,
    once over all runs, so that a run that is killed and resumed repeats no query. Several judgements of one response are
    averaged.

    Args:
        rater: answers the queries.
        store: where queries and judgements are kept the moment they come; without one they live as long as this object.
        attribute: the attribute whose rating is the score.
        timeout: seconds to wait for one batch; None waits for ever.
        otherwise: the score of a response that was skipped, or not rated in time; None makes either a
            :class:`~rlhf_gym.errors.RewardError`.
        name: name to report under.

    Raises:
        ConfigError: a time-out that is not above 0, a score that is not finite, or a rater that is a function: functions
            compare responses and rate none.

    >>> from rlhf_gym.raters import SimulatedRater
    >>> rater = SimulatedRater(lambda prompts, responses: [len(r) - 4 for r in responses], beta=float("inf"))
    >>> RaterReward(rater)(["Say more."] * 2, ["gladly", "no"])
    [5.0, 1.0]
    """

    slow = True  # people think while the model writes

    def __init__(
        self,
        rater: Rater,
        store: FeedbackStore | None = None,
        *,
        attribute: str = "overall",
        timeout: float | None = None,
        otherwise: float | None = None,
        name: str = "rating",
    ) -> None:
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"timeout must be above 0 seconds, or None to wait for ever; got {timeout}")
        if otherwise is not None and not math.isfinite(otherwise):
            raise ConfigError(f"otherwise must be a finite score, or None for an error; got {otherwise}")
        self.rater, self.store, self.attribute, self.name = as_rater(rater), store, attribute, name
        if isinstance(self.rater, FunctionRater):
            raise ConfigError(
                f"RaterReward asks for ratings, and the function {self.rater.name!r} compares responses; a function that "
                "scores (prompts, responses) is a reward by itself"
            )
        self.timeout, self.otherwise = timeout, otherwise
        self._given: dict[str, list[Judgement]] = {}
        if store is not None:
            self._keep(store.judgements(0))  # this reward's queries belong to no round

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> list[float]:
        """Put a batch to the rater and wait for its ratings.

        Raises:
            RewardError: a response was skipped or not rated in time and there is no score for that; the ratings that came
                are kept, and not requested again.
            RaterError: the rater could not go on; likewise.
        """
        queries = [
            Query(
                prompt=prompt, responses=(response,), query_type="rating", round=0,
                columns={name: values[i] for name, values in columns.items()},
            )
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]  # fmt: skip
        distinct = {query.id: query for query in queries}
        if self.store is not None:
            self.store.add_queries(distinct.values())
        self._ask([query for query_id, query in distinct.items() if not self._given.get(query_id)])
        return [self._score(i, query) for i, query in enumerate(queries)]

    def _ask(self, queries: Sequence[Query]) -> None:
        """Have queries answered until all are or the time is up."""
        deadline = math.inf if self.timeout is None else time.monotonic() + self.timeout
        open_: list[Ticket] = self.rater.submit(queries) if queries else []
        while open_ and (left := deadline - time.monotonic()) > 0:
            try:
                judgements = self.rater.collect(open_, timeout=min(_POLL, left))
            except RaterError as error:
                self._keep(error.judgements, new=True)
                raise
            self._keep(judgements, new=True)
            open_ = [ticket for ticket in open_ if not self._given.get(ticket.query_id)]
            if not judgements:
                time.sleep(0.01)  # for a rater that does not wait itself

    def _keep(self, judgements: Sequence[Judgement], *, new: bool = False) -> None:
        if new and self.store is not None:
            self.store.add_judgements(judgements)
        for judgement in judgements:
            known = self._given.setdefault(judgement.query_id, [])
            known[:] = [j for j in known if j.id not in (judgement.id, judgement.supersedes)] + [judgement]

    def _score(self, index: int, query: Query) -> float:
        given = [j.ratings for j in self._given.get(query.id, []) if j.ratings is not None]
        if given and all(self.attribute not in ratings for ratings in given):
            raise RewardError(
                f"reward {self.name!r} wants ratings of {self.attribute!r}; rater {self.rater.name!r} gave "
                f"{', '.join(map(repr, given[0]))}"
            )
        values = [value for ratings in given if (value := ratings.get(self.attribute, (None,))[0]) is not None]
        if values:
            return fmean(values)
        if self.otherwise is not None:
            return self.otherwise
        why = "skipped" if self._given.get(query.id) else f"not rated within {self.timeout} seconds"
        raise RewardError(
            f"reward {self.name!r}: sample {index} was {why} by rater {self.rater.name!r}; the other ratings are kept. Give "
            "RaterReward a score for such responses (otherwise=...), or more time (timeout=...)"
        )
