"""Overlapped (async) scoring: calls of slow rewards run in a thread of their own while the caller goes on.

The result is that of calls without a thread: the same calls in the same order, never two at once, so that adaptive rewards
learn the same; the first failure ends it, with its own message.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


def is_slow(reward: object) -> bool:
    """True for a reward that mostly waits for something else than this process's own Python code.

    An attribute ``slow``, on an object or a function, says so (True) or denies it (False). Without one, ``async`` functions are
    slow, and so is a reward made of a slow one: one in its ``parts`` or its ``reward``, or the function of a ``partial``.
    """
    declared = getattr(reward, "slow", None)
    if declared is not None:
        return bool(declared)
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004
        return True
    inner = [reward.func] if isinstance(reward, partial) else [getattr(reward, "reward", None)]
    return any(is_slow(part) for part in (*inner, *getattr(reward, "parts", ())) if part is not None)


@dataclass(frozen=True)
class _Call:
    """A call that waits for its turn.

    Attributes:
        future: takes its result.
        context: the context variables of the caller.
        function: the function to call.
        arguments: its positional arguments.
    """

    future: Future[Any]
    context: Context
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class OverlappedScoring:
    """Makes calls in the order of their submission: in a thread of its own, or each at once.

    Use it as a context manager. At the end of the block the thread ends: calls that have not begun are dropped, and the
    running one is waited for. Only an interrupt (Ctrl-C) does not wait; the thread then ends by itself, or with the process.

    Args:
        threaded: True makes calls in a thread; False makes each within :meth:`submit`.

    Attributes:
        waited: seconds that the caller has waited for calls.

    >>> with OverlappedScoring(threaded=True) as scoring:
    ...     later = scoring.submit(max, 6, 7)
    ...     scoring.wait(later)
    7
    """

    def __init__(self, threaded: bool) -> None:
        self.threaded = threaded
        self.waited = 0.0
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function after the calls that were submitted before.

        Args:
            function: the function to call.
            arguments: its positional arguments.

        Raises:
            Exception: without a thread, what the call raises.
        """
        future: Future[T] = Future()
        if not self.threaded:
            began = time.perf_counter()
            future.set_result(function(*arguments))
            self.waited += time.perf_counter() - began
            return future
        if self._thread is None:
            # A daemon: an interrupted process must not hang at its end on a reward that waits for minutes.
            self._thread = threading.Thread(target=self._work, name="rlhf-gym-scoring", daemon=True)
            self._thread.start()
        self._calls.put(_Call(future, copy_context(), function, arguments))
        return future

    def check(self) -> None:
        """Raise the exception of a call that has failed by now, so that the caller stops early.

        Raises:
            Exception: what the call raised.
        """
        if self._failure is not None:
            raise self._failure

    def wait(self, future: Future[T]) -> T:
        """Wait for a call's result.

        Raises:
            Exception: what the call raised, or one before it.
        """
        began = time.perf_counter()
        try:
            return future.result()
        except CancelledError:
            self.check()  # dropped because one before it failed: raise that one's exception
            raise
        finally:
            self.waited += time.perf_counter() - began

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            if self._ended or self._failure is not None:
                call.future.cancel()
                continue
            try:
                result = call.context.run(call.function, *call.arguments)
            except BaseException as error:
                self._failure = error
                call.future.set_exception(error)
            else:
                call.future.set_result(result)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended = True
        if self._thread is not None:
            self._calls.put(None)
            if error is None or isinstance(error, Exception):
                self._thread.join()
