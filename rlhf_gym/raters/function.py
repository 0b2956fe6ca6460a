"""A plain function as a rater: one that compares two responses, or one that looks at all of them."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query, QueryType
from rlhf_gym.objects import place_in_code
from rlhf_gym.raters.base import Rater, RaterError, Ticket
from rlhf_gym.raters.function_answers import (
    NotAnAnswerError,
    answer_from_candidates,
    answer_from_pairs,
    batch_of,
)
from rlhf_gym.rewards.calling import wait_for
from rlhf_gym.text import shorten

RaterFunction = Callable[..., Any]
"""``(prompt, a, b) -> 0 | 1 | None``, or ``(prompt, responses) -> index | ranking | None``; both also ``async`` or batched."""

ANSWERED: tuple[QueryType, ...] = ("pair", "ranking", "best")
"""The query types that functions answer: those that compare responses."""

SHAPES = "(prompt, a, b), (prompt, responses), (prompts, a, b) or (prompts, responses)"

Question = tuple[Query, tuple[int, ...]]
"""One call: a query and the indices of the responses that the function sees."""


class FunctionRater:
    """Answers pair, ranking and best queries by calling a function.

    The function's positional parameters say what it does:

    - ``(prompt, a, b)`` compares two responses and returns 0 (``a`` is better), 1 (``b`` is) or None (no preference). It
      answers rankings and best-of-k, too: each two responses are compared, and the number of comparisons won minus those
      lost decides (Copeland).
    - ``(prompt, responses)`` looks at all candidates and returns the index of the best, a ranking (indices, best first; a
      list of indices inside it holds equally good ones; responses may be left out), or None (no preference).
    - A first parameter called ``prompts`` makes either batched: ``(prompts, a, b)`` takes three lists, ``(prompts,
      responses)`` a list of prompts and a list of lists of responses; it returns a list with one answer for each prompt.

    None is a tie of all responses the function was shown; of a best-of-k query, which knows no tie, it is a skip. An ``async``
    function is called for all queries of a batch at once.

    Args:
        function: see above.
        name: signs the judgements; default the function's own name.
        batch_size: most queries in one call of a batched function, and most that an ``async`` one answers at once.

    Raises:
        ConfigError: the parameters fit none of the above, or ``batch_size`` is below 1.

    >>> def shorter(prompt, a, b):
    ...     return None if len(a) == len(b) else int(len(b) < len(a))
    >>> rater = FunctionRater(shorter)
    >>> rater.collect(rater.submit([Query(prompt="Say less.", responses=("gladly", "no"))]))[0].choice
    1
    """

    def __init__(self, function: RaterFunction, *, name: str | None = None, batch_size: int = 32) -> None:
        self._name = name or function_name(function)
        if batch_size < 1:
            raise ConfigError(f"rater {self._name!r}: batch_size must be at least 1, got {batch_size}")
        names = _positional(function)
        if names is None or len(names) not in (2, 3):
            given = "cannot be read" if names is None else f"are ({', '.join(names)})"
            raise ConfigError(
                f"rater {self._name!r} is a function whose parameters {given}; expected {SHAPES}, or a factory (reward, seed) "
                "that makes a rater"
            )
        self.function = function
        self.batch_size = batch_size
        self._compares_two = len(names) == 3
        self._batched = names[0] == "prompts"
        self._open: dict[str, Query] = {}

    @property
    def name(self) -> str:
        """Signs the judgements."""
        return self._name

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        """Take queries; the function is called when they are collected. See :meth:`Rater.submit`.

        Raises:
            FeedbackError: a query type that functions do not answer.
        """
        for query in queries:
            if query.query_type not in ANSWERED:
                raise FeedbackError(
                    f"rater {self._name!r} is a function and answers {', '.join(ANSWERED)} queries; got {query.query_type}"
                )
        self._open.update((query.id, query) for query in queries)
        return [Ticket(query.id, self._name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        """Answer, in the order of the tickets. See :meth:`Rater.collect`.

        Args:
            tickets: from :meth:`submit`.
            timeout: seconds after which no further call begins; at least one query or batch is answered.

        Raises:
            RaterError: the function raised, or returned something that is not an answer; the message names the query, and
                ``judgements`` holds all other answers. The query stays submitted: collecting again tries again.
            FeedbackError: a ticket is not open here: not submitted, or collected already.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        strange = [ticket for ticket in tickets if ticket.query_id not in self._open]
        if strange:
            raise FeedbackError(
                f"query {strange[0].query_id} is not open at rater {self._name!r}: submit it first, and collect it once"
            )
        judgements: list[Judgement] = []
        for begin in range(0, len(tickets), self.batch_size):
            batch = [self._open[ticket.query_id] for ticket in tickets[begin : begin + self.batch_size]]
            answered, error = self._judge(batch, deadline)
            judgements += answered
            for judgement in answered:
                self._open.pop(judgement.query_id, None)
            if error is not None:
                error.judgements = judgements
                raise error
            if time.monotonic() >= deadline:
                break
        return judgements

    def _judge(self, batch: Sequence[Query], deadline: float) -> tuple[list[Judgement], RaterError | None]:
        """The judgements of a batch, and the first error, if there was one."""
        questions: list[Question] = []
        for query in batch:
            k = len(query.responses)
            shown = combinations(range(k), 2) if self._compares_two else [tuple(range(k))]
            questions += [(query, indices) for indices in shown]
        values: dict[str, list[Any]] = {query.id: [] for query in batch}
        for (query, _), value in zip(questions, self._call(questions, deadline), strict=False):
            values[query.id].append(value)
        judgements: list[Judgement] = []
        first: RaterError | None = None
        for query in batch:
            given = values[query.id]
            failed = next((value for value in given if isinstance(value, BaseException)), None)
            # Fewer values than calls: the function was not called on them, after an error or at the end of the time.
            if failed is None and len(given) == (math.comb(len(query.responses), 2) if self._compares_two else 1):
                try:
                    said = (
                        answer_from_pairs(query, given)
                        if self._compares_two
                        else answer_from_candidates(query, given[0])
                    )
                    judgements.append(Judgement(query_id=query.id, rater=self._name, **said))
                except NotAnAnswerError as error:
                    failed = error
            if failed is not None and first is None:
                first = self._error(query, failed)
        return judgements, first

    def _call(self, questions: Sequence[Question], deadline: float) -> list[Any]:
        """A value or an exception for each question, in order; nothing for those that the function was not called on."""
        if self._batched:
            return self._call_batched(questions)
        values: list[Any] = []
        for number, (query, shown) in enumerate(questions, start=1):
            responses = [query.responses[i] for i in shown]
            try:
                values.append(self.function(query.prompt, *(responses if self._compares_two else [responses])))
            except (Exception, SystemExit) as error:  # the function is the user's: it may raise anything
                values.append(error)
                break
            # A slow function's answers are returned one by one, so that an interrupted run has stored them.
            whole = number == len(questions) or questions[number][0] is not query
            if whole and time.monotonic() >= deadline and not inspect.isawaitable(values[-1]):
                break
        if any(inspect.isawaitable(value) for value in values):
            return list(wait_for(_gather(values)))
        return values

    def _call_batched(self, questions: Sequence[Question]) -> list[Any]:
        prompts = [query.prompt for query, _ in questions]
        shown = [[query.responses[i] for i in indices] for query, indices in questions]
        try:
            columns = [list(side) for side in zip(*shown, strict=True)] if self._compares_two else [shown]
            return batch_of(wait_for(self.function(prompts, *columns)), len(questions))
        except (Exception, SystemExit) as error:  # the function is the user's: it may raise anything
            return [error]

    def _error(self, query: Query, cause: BaseException) -> RaterError:
        where = f"query {query.id} (round {query.round}, index {query.index}, prompt {shorten(query.prompt)})"
        raised = f"raised {type(cause).__name__}: {cause}{place_in_code(cause)}"
        problem = str(cause) if isinstance(cause, NotAnAnswerError) else raised
        error = RaterError(f"rater {self._name!r} could not judge {where}: the function {problem}")
        error.__cause__ = cause
        return error


def as_rater(thing: Rater | RaterFunction, *, name: str | None = None, batch_size: int = 32) -> Rater:
    """A rater from a rater or a function: the rater as it is, the function as a :class:`FunctionRater`.

    Args:
        thing: an object with ``name``, ``submit`` and ``collect``, or a function.
        name: signs the judgements of a function; default its own name.
        batch_size: of a function.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(thing, type):
        if isinstance(thing, Rater):
            return thing
        if callable(thing):
            return FunctionRater(thing, name=name, batch_size=batch_size)
    what = f"the class {thing.__name__}; give an object of it" if isinstance(thing, type) else type(thing).__name__
    raise ConfigError(f"a rater is an object with name, submit and collect, or a function {SHAPES}; got {what}")


def function_name(function: Any) -> str:
    """The function's name; of another callable object, its class's."""
    return str(getattr(function, "__name__", type(function).__name__))


def is_factory(thing: Any) -> bool:
    """True for a factory of raters, called with ``reward=`` and ``seed=``: a class, or a function that takes both."""
    if isinstance(thing, type):
        return True
    if isinstance(thing, Rater) or not callable(thing):
        return False
    try:
        inspect.signature(thing).bind(reward=None, seed=0)
    except (TypeError, ValueError):
        return False
    return True


def _positional(function: RaterFunction) -> list[str] | None:
    """Names of the required positional parameters; None where there is no signature, or a required one is keyword-only."""
    if not callable(function):
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in needed] if all(p.kind != p.KEYWORD_ONLY for p in needed) else None


async def _gather(values: Sequence[Any]) -> list[Any]:
    """Wait for all at once: an ``async`` function would otherwise be waited for query by query."""

    async def one(value: Any) -> Any:
        try:
            return await value if isinstance(value, Awaitable) else value
        except SystemExit as error:  # it would end the loop, which others share
            raise RuntimeError(f"SystemExit: {error}") from error

    return list(await asyncio.gather(*map(one, values), return_exceptions=True))
