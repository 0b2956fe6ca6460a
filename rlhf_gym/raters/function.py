"""A plain function as a rater: one that compares two responses, or one that looks at all of them."""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import combinations
from numbers import Integral
from typing import Any

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.queries import Judgement, Query, QueryType
from rlhf_gym.raters.base import Rater, RaterError, Ticket
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
      answers rankings and best-of-k, too: each two responses are compared, and those that win more comparisons rank higher
      (Copeland).
    - ``(prompt, responses)`` looks at all candidates and returns the index of the best, a ranking (indices, best first; a
      list of indices inside it holds equally good ones; responses may be left out), or None (no preference).
    - A first parameter called ``prompts`` makes either batched: ``(prompts, a, b)`` takes three lists, ``(prompts,
      responses)`` a list of prompts and a list of lists of responses; it returns a list with one answer for each prompt.

    None is a tie of all responses the function was shown; of a best-of-k query, which knows no tie, it is a skip. An ``async``
    function is called for all queries of a batch at once.

    Args:
        function: see above.
        name: signs the judgements; default the function's own name.
        batch_size: most queries that are answered before their judgements can be stored.

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
            timeout: seconds after which no further batch is begun.

        Raises:
            RaterError: the function raised or returned something else than an answer, and on which query; ``judgements`` holds
                all other answers. The query stays submitted, so collecting again is trying again.
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
            answered, error = self._judge(batch)
            judgements += answered
            for judgement in answered:
                self._open.pop(judgement.query_id, None)
            if error is not None:
                error.judgements = judgements
                raise error
            if time.monotonic() >= deadline:
                break
        return judgements

    def _judge(self, batch: Sequence[Query]) -> tuple[list[Judgement], RaterError | None]:
        """The judgements of a batch, and the first error, if there was one."""
        questions: list[Question] = []
        for query in batch:
            k = len(query.responses)
            shown = combinations(range(k), 2) if self._compares_two else [tuple(range(k))]
            questions += [(query, indices) for indices in shown]
        answers: dict[str, list[Any]] = {query.id: [] for query in batch}
        for (query, _), answer in zip(questions, self._call(questions), strict=False):
            answers[query.id].append(answer)
        judgements: list[Judgement] = []
        first: RaterError | None = None
        for query in batch:
            given = answers[query.id]
            failed = next((answer for answer in given if isinstance(answer, Exception)), None)
            try:
                if failed is not None:
                    raise self._error(query, f"raised {type(failed).__name__}: {failed}") from failed
                wanted = math.comb(len(query.responses), 2) if self._compares_two else 1
                if len(given) == wanted:  # fewer: a function that failed was not called for what comes after
                    said = self._said_of_pairs(query, given) if self._compares_two else self._said(query, given[0])
                    judgements.append(Judgement(query_id=query.id, rater=self._name, **said))
            except RaterError as error:
                first = first or error
        return judgements, first

    def _call(self, questions: Sequence[Question]) -> list[Any]:
        """An answer or an exception a question, in order; nothing for the questions after one on which the function raised."""
        if self._batched:
            return self._call_batched(questions)
        answers: list[Any] = []
        for query, shown in questions:
            responses = [query.responses[i] for i in shown]
            try:
                answers.append(self.function(query.prompt, *(responses if self._compares_two else [responses])))
            except Exception as error:  # the function is the user's: it may raise anything
                answers.append(error)
                break
        if any(inspect.isawaitable(answer) for answer in answers):
            return list(wait_for(_gather(answers)))
        return answers

    def _call_batched(self, questions: Sequence[Question]) -> list[Any]:
        prompts = [query.prompt for query, _ in questions]
        shown = [[query.responses[i] for i in indices] for query, indices in questions]
        try:
            columns = [list(side) for side in zip(*shown, strict=True)] if self._compares_two else [shown]
            answers = wait_for(self.function(prompts, *columns))
            if not isinstance(answers, Sequence) or isinstance(answers, str) or len(answers) != len(questions):
                got = f"{len(answers)} answers" if isinstance(answers, Sequence) else type(answers).__name__
                raise ValueError(f"expected a list of {len(questions)} answers, one a prompt, got {got}")
        except Exception as error:  # the function is the user's: it may raise anything
            return [error]
        return list(answers)

    def _said_of_pairs(self, query: Query, answers: Sequence[Any]) -> dict[str, Any]:
        """The answer to a query out of comparisons of each two of its responses."""
        k = len(query.responses)
        wins = [0] * k
        for (i, j), answer in zip(combinations(range(k), 2), answers, strict=True):
            if answer is None:
                continue
            if not _is_index(answer, 2):
                raise self._error(
                    query, f"returned {_shown(answer)}; expected 0 (a is better), 1 (b is better) or None"
                )
            better, worse = (j, i) if answer else (i, j)
            wins[better] += 1
            wins[worse] -= 1
        groups = [tuple(i for i in range(k) if wins[i] == level) for level in sorted(set(wins), reverse=True)]
        return _in_type(query, groups)

    def _said(self, query: Query, answer: Any) -> dict[str, Any]:
        """The answer to a query out of one look at all of its responses."""
        k = len(query.responses)
        if answer is None:
            return _in_type(query, [tuple(range(k))])
        if _is_index(answer, k):
            if query.query_type == "ranking" and k > 2:
                raise self._error(
                    query,
                    f"returned {answer}, the index of the best; a ranking query needs all in order, best first, such as "
                    f"{list(range(k))}: return that, or ask for the best only (rater.query_type=best)",
                )
            return _in_type(query, [(int(answer),), tuple(i for i in range(k) if i != answer)])
        if isinstance(answer, list | tuple) and answer:
            groups = [tuple(group) if isinstance(group, list | tuple) else (group,) for group in answer]
            named = [i for group in groups for i in group]
            if all(groups) and all(_is_index(i, k) for i in named) and len(set(named)) == len(named):
                return _in_type(query, [tuple(map(int, group)) for group in groups])
        raise self._error(
            query,
            f"returned {_shown(answer)}; expected the index of the best (0 to {k - 1}), a ranking (a list of indices, best "
            "first) or None",
        )

    def _error(self, query: Query, problem: str) -> RaterError:
        where = f"query {query.id} (round {query.round}, index {query.index}, prompt {shorten(query.prompt)})"
        return RaterError(f"rater {self._name!r} could not judge {where}: the function {problem}")


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
    """The name a function was defined by; of an object that is called, its class's."""
    return str(getattr(function, "__name__", type(function).__name__))


def is_factory(thing: Any) -> bool:
    """True for what makes a rater when it is called with ``reward=`` and ``seed=``: a class, or a function that takes both."""
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
    """Names of the parameters that must be given, by position; None where there is no signature, or others must be given."""
    if not callable(function):
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in needed] if all(p.kind != p.KEYWORD_ONLY for p in needed) else None


async def _gather(answers: Sequence[Any]) -> list[Any]:
    """All at once: an ``async`` function would otherwise be waited for query by query."""

    async def one(answer: Any) -> Any:
        try:
            return await answer if isinstance(answer, Awaitable) else answer
        except SystemExit as error:  # it would end the loop, which others share
            raise RuntimeError(f"SystemExit: {error}") from error

    return list(await asyncio.gather(*map(one, answers), return_exceptions=True))


def _is_index(value: Any, k: int) -> bool:
    """True for a whole number in 0..k-1. True and False are none: they may mean either response."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < k


def _shown(value: Any) -> str:
    hint = " (give int(...): True and False may mean either response)" if isinstance(value, bool) else ""
    return f"{shorten(repr(value))}{hint}"


def _in_type(query: Query, groups: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """An order, best group first, as the query type asks for it; a best-of-k whose best are several is skipped."""
    groups = [group for group in groups if group]
    first = groups[0]
    if query.query_type == "ranking":
        return {"ranking": tuple(groups)}
    if len(first) == 1:
        return {"choice": first[0]}
    return {"tie": True} if query.query_type == "pair" else {"skipped": True}
