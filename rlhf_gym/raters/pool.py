"""A pool: several raters who answer as one, each query going to one of them or to several."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rlhf_gym.errors import ConfigError, RlhfGymError
from rlhf_gym.feedback.queries import Judgement, Query, content_id
from rlhf_gym.raters.base import Rater, RaterError, Ticket, explained
from rlhf_gym.raters.function import RaterFunction, as_rater, function_name


class RaterPool:
    """Sends each query to ``overlap`` of its members.

    Who gets a query depends on the query, the pool's name and the seed, and on nothing else.

    Args:
        name: the pool's; members sign ``name/...``.
        members: at least ``overlap`` of them, with different names; functions, too, which sign ``name/function``.
        overlap: number of members that answer each query.
        weights: how often each member is chosen, relative to the others; above 0; default evenly.
        seed: 0 or more.

    Raises:
        ConfigError: names that do not fit, or the wrong number of members or weights.
    """

    def __init__(
        self,
        name: str,
        members: Sequence[Rater | RaterFunction],
        *,
        overlap: int = 1,
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        weights = [1.0] * len(members) if weights is None else list(weights)
        raters = [as_rater(member, name=f"{name}/{function_name(member)}") for member in members]
        self.members = {rater.name: rater for rater in raters}
        if not 1 <= overlap <= len(members):
            raise ConfigError(f"overlap must lie in 1..{len(members)}, the number of raters in the pool; got {overlap}")
        if len(self.members) < len(members) or any(not member.startswith(f"{name}/") for member in self.members):
            raise ConfigError(
                f"the raters of pool {name!r} need different names that start with '{name}/'; "
                f"got {', '.join(rater.name for rater in raters)}"
            )
        if len(weights) != len(members) or not all(weight > 0 for weight in weights):
            raise ConfigError(f"weights must be {len(members)} numbers above 0, one a rater; got {weights}")
        self.overlap = overlap
        self.seed = seed
        self._name = name
        self._weights = np.array(weights, dtype=np.float64)

    @property
    def name(self) -> str:
        """The pool's name; its members sign ``name/...``."""
        return self._name

    def assigned(self, query: Query) -> list[str]:
        """Names of the members who answer a query, in the pool's order."""
        key = int(content_id("rater pool", self.seed, self._name, query.id), 16)
        uniforms = np.maximum(np.random.Generator(np.random.Philox(key=key)).random(len(self.members)), 2.0**-54)
        # The smallest of exponential waiting times: a draw without replacement by weight.
        first = np.argsort(-np.log(uniforms) / self._weights)[: self.overlap]
        names = list(self.members)
        return [names[i] for i in sorted(first)]

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Hand each query to its members. See :meth:`Rater.submit`."""
        of_member: dict[str, list[Query]] = defaultdict(list)
        for query in queries:
            for name in self.assigned(query):
                of_member[name].append(query)
        tickets: list[Ticket] = []
        for name, share in of_member.items():
            with explained(self.members[name]):
                tickets += self.members[name].submit(share)
        place = {query.id: i for i, query in enumerate(queries)}
        return sorted(tickets, key=lambda ticket: place[ticket.query_id])

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """Collect from each member in turn. See :meth:`Rater.collect`.

        Args:
            tickets: from :meth:`submit`.
            timeout: seconds to wait.

        Raises:
            RaterError: a member could not go on; ``judgements`` holds also what other members had answered.
        """
        of_member: dict[str, list[Ticket]] = defaultdict(list)
        for ticket in tickets:
            of_member[ticket.rater].append(ticket)
        deadline = None if timeout is None else time.monotonic() + timeout
        judgements: list[Judgement] = []
        for name, share in of_member.items():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                with explained(self.members[name]):
                    judgements += self.members[name].collect(share, left)
            except RaterError as error:
                error.judgements = [*judgements, *error.judgements]
                raise
            except RlhfGymError as error:
                raise RaterError(str(error), judgements) from error
        place = {ticket.query_id: i for i, ticket in enumerate(tickets)}
        return sorted(judgements, key=lambda judgement: place[judgement.query_id])
