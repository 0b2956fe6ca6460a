"""Slow rewards beside other work: calls made one after the other in a thread of their own, while the caller goes on.

What comes out is what calls in turn would have given: the same calls in the same order, never two at once, so that rewards
that learn while they score learn the same; the first failure ends it, with its own message.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


def is_slow(reward: object) -> bool:
    """Whether a reward mostly waits for something else than this process's own Python code.

    An attribute ``slow``, on an object or a function, says so (True) or denies it (False). Without one, ``async`` functions are
    slow, and so is a reward made of a slow one: what it keeps in ``parts`` or ``reward``, or what a ``partial`` calls.
    """
    said = getattr(reward, "slow", None)
    if said is not None:
        return bool(said)
    if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(getattr(reward, "__call__", None)):  # noqa: B004
        return True
    inner = [reward.func] if isinstance(reward, partial) else [getattr(reward, "reward", None)]
    return any(is_slow(part) for part in (*inner, *getattr(reward, "parts", ())) if part is not None)


class Beside:
    """Makes calls in the order they are handed in: in a thread of its own, or each at once.

    Use it as a context manager. When the block is left the thread is gone: calls that have not begun are dropped, and one that
    runs is waited for. Only an interrupt (Ctrl-C) does not wait; the thread then ends by itself, or with the process.

    Args:
        threaded: make calls in a thread; else ``submit`` makes each at once, in the caller's own.

    Attributes:
        waited: seconds that the caller stood still for them.

    >>> with Beside(threaded=True) as beside:
    ...     later = beside.submit(lambda: 6 * 7)
    ...     beside.wait(later)
    42
    """

    def __init__(self, threaded: bool) -> None:
        self.threaded = threaded
        self.waited = 0.0
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._failure: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Have a call made after those handed in before.

        Raises:
            Exception: what the call raises where it is made at once.
        """
        future: Future[T] = Future()
        if not self.threaded:
            began = time.perf_counter()
            future.set_result(call())
            self.waited += time.perf_counter() - began
            return future
        if self._thread is None:
            # A daemon: an interrupted process must not hang at its end on a reward that waits for minutes.
            self._thread = threading.Thread(target=self._work, name="rlhf-gym-beside", daemon=True)
            self._thread.start()
        self._calls.put((future, partial(copy_context().run, call)))
        return future

    def check(self) -> None:
        """Raise what a call has raised meanwhile, so that nobody goes on for long after a failure."""
        if self._failure is not None:
            raise self._failure

    def wait(self, future: Future[T]) -> T:
        """A call's result, waited for.

        Raises:
            Exception: what the call raised, or one before it.
        """
        began = time.perf_counter()
        try:
            return future.result()
        except CancelledError:
            self.check()  # dropped, for one before it failed: that one's message counts
            raise
        finally:
            self.waited += time.perf_counter() - began

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            future, call = entry
            if self._ended or self._failure is not None:
                future.cancel()
                continue
            try:
                result = call()
            except BaseException as error:
                self._failure = error
                future.set_exception(error)
            else:
                future.set_result(result)

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
