"""Limits on rewards that do not answer: a time limit for one call, and a circuit breaker for a service that is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.base import AnyReward, FunctionReward, ScoredBatch, TermReward, as_term, reward_name
from rlhf_gym.rewards.calling import Texts, under_way
from rlhf_gym.text import shorten

log = logging.getLogger(__name__)


class TimeLimit(TermReward):
    """A reward whose calls fail after some seconds.

    Python cannot end a thread from outside: a call that takes too long goes on by itself until it returns or the process ends,
    and its result is dropped.

    Args:
        reward: the reward.
        seconds: most seconds a call, above 0.

    Raises:
        ConfigError: a limit that is not above 0.
    """

    def __init__(self, reward: AnyReward, seconds: float) -> None:
        if not seconds > 0:
            raise ConfigError(f"a time limit must be above 0 seconds, got {seconds}")
        self.reward, self.seconds, self.name = as_term(reward), seconds, reward_name(reward)

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch in a thread of its own, and wait for it.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: the reward failed, or did not return in time.
        """
        unscored: Texts = {}
        context = copy_context()
        context.run(under_way.set, unscored)
        future: Future[ScoredBatch] = Future()
        # A daemon: the process must be able to end while the reward hangs.
        thread = threading.Thread(
            target=context.run,
            args=(self._score_into, future, prompts, responses, columns),
            name="rlhf-gym-time-limit",
            daemon=True,
        )
        thread.start()
        thread.join(self.seconds)
        if not future.done():
            raise RewardError(
                f"reward {self.name!r} did not return within {self.seconds:g} seconds for "
                f"{_where(prompts, responses, unscored)}; mend it, or give it a longer time limit"
            )
        return future.result()

    def _score_into(self, future: Future[ScoredBatch], *batch: Any) -> None:
        try:
            future.set_result(self.reward.score_terms(*batch))
        except BaseException as error:
            future.set_exception(error)


def _where(prompts: list[str], responses: list[str], unscored: Texts) -> str:
    """The sample that a reward of single samples hangs on; for other rewards, their batch."""
    found = next(iter(list(unscored.values())), None)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if (prompt, response) == found:  # found by its texts: a cache in between scores fewer samples
            return f"sample {i}, prompt {shorten(prompt)}, response {shorten(response)}"
    return f"a batch of {len(prompts)}, the first response being {shorten(responses[0])}"


def limit_parts(reward: Any, seconds: float) -> Any:
    """Give every plain reward inside a reward a time limit of its own, so that the message names the one that hangs.

    Args:
        reward: a reward as :func:`~rlhf_gym.rewards.load_reward` makes it; a combination is changed in place.
        seconds: most seconds a call, above 0.

    Returns:
        The reward; for a plain one, a :class:`TimeLimit` around it.

    Raises:
        ConfigError: a limit that is not above 0.
    """
    parts, inner = getattr(reward, "parts", None), getattr(reward, "reward", None)
    if isinstance(reward, TimeLimit):  # the user's own, or of a term that stands in a formula twice
        reward.seconds = min(reward.seconds, seconds)
        return reward
    if not hasattr(reward, "score_terms") or isinstance(reward, FunctionReward):
        return TimeLimit(reward, seconds)
    if isinstance(parts, tuple) and parts:
        reward.parts = tuple(limit_parts(part, seconds) for part in parts)
    elif callable(inner):
        reward.reward = limit_parts(inner, seconds)
    else:
        return TimeLimit(reward, seconds)
    return reward


class UnreachableError(RewardError):
    """A service did not answer, or is not called because it did not answer before."""


class CircuitBreaker:
    """A circuit breaker (Nygard 2007, "Release It!", chapter 5): a dead service fails at once instead of after a wait.

    Closed, it lets every call through and counts those that fail in a row. After ``open_after`` of them it opens: calls fail at
    once. When ``cool_down`` has passed it lets one call through, the trial; the others still fail at once. Its success
    closes the breaker, its failure begins a new ``cool_down``. Each change is one line in the log, under this module's name.
    Safe to use from several threads.

    Args:
        name: the service, for messages.
        open_after: failures in a row, at least 1.
        cool_down: seconds, 0 or more.
        clock: returns seconds that never decrease.

    Raises:
        ConfigError: a value out of its range.

    >>> breaker = CircuitBreaker("a service", open_after=1, cool_down=60)
    >>> breaker.admit()
    False
    >>> breaker.failed("refused")
    >>> breaker.state
    'open'
    """

    def __init__(
        self, name: str, *, open_after: int, cool_down: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if open_after < 1 or not cool_down >= 0:
            raise ConfigError(
                f"a circuit breaker needs open_after of at least 1 and cool_down of 0 or more, got {open_after} and {cool_down}"
            )
        self.name, self.open_after, self.cool_down, self.clock = name, open_after, cool_down, clock
        self._failures = 0
        self._reason = ""
        self._opened: float | None = None  # the clock's time; None while it is closed
        self._trying = False
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        """``"closed"``, ``"open"``, or ``"half-open"``: the next call, or the running one, is the trial."""
        if self._opened is None:
            return "closed"
        return "half-open" if self._trying or self.clock() - self._opened >= self.cool_down else "open"

    def admit(self) -> bool:
        """Ask to make a call. Make it within :meth:`watching`, or report its end by :meth:`succeeded` and the like.

        Returns:
            True if it is the trial.

        Raises:
            UnreachableError: the breaker is open.
        """
        with self._lock:
            if self._opened is None:
                return False
            left = self.cool_down - (self.clock() - self._opened)
            if left <= 0 and not self._trying:
                self._trying = True
                log.warning("%s is tried again after %g s", self.name, self.cool_down)
                return True
            when = "is being tried again by another call" if self._trying else f"will be tried again in {left:.1f} s"
            raise UnreachableError(
                f"{self.name} is not called: its last {self._failures} calls failed, and it {when} (the last error: "
                f"{self._reason})"
            )

    @contextmanager
    def watching(
        self, absent: type[Exception], refused: type[Exception], given_up: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """A context for an admitted call, which reports its end to the breaker.

        Args:
            absent: the exception of a service that did not answer.
            refused: the exception of a service that answered with a refusal; may be a base of ``absent``.
            given_up: returns True if the caller has given up: then ``absent`` says nothing about the service.
        """
        try:
            yield
        except absent as error:
            if given_up():
                self.abandoned()
            else:
                self.failed(str(error))
            raise
        except refused:
            self.succeeded()
            raise
        except BaseException:
            self.abandoned()
            raise
        self.succeeded()

    def succeeded(self) -> None:
        """Report that the service answered."""
        with self._lock:
            if self._opened is not None:
                log.warning("%s answers again", self.name)
            self._failures, self._opened, self._trying = 0, None, False

    def failed(self, reason: str) -> None:
        """Report that the service did not answer, with the reason."""
        with self._lock:
            self._failures += 1
            self._reason, self._trying = reason, False
            if self._failures >= self.open_after:
                self._opened = self.clock()
                log.warning("%s has failed %d times in a row and is left alone for %g s: %s", self.name, self._failures,
                            self.cool_down, reason)  # fmt: skip

    def abandoned(self) -> None:
        """Report that the caller gave up, which says nothing about the service."""
        with self._lock:
            self._trying = False
