"""Slow work of several slots at the same time: a tool, a service, a person."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
MOST_THREADS = 64


class Beside(Generic[T]):
    """Work of several slots beside the caller's own: asked for now, taken once it is done.

    The threads are daemons: when Ctrl-C ends the wait for a person, the program can end, too.

    Args:
        threads: True: each work runs in a thread; False: at once, where it is asked for, and is there to be taken.

    Attributes:
        asked: slots whose work was asked for and is not taken yet.
    """

    def __init__(self, threads: bool) -> None:
        self.asked: set[int] = set()
        self._threads, self._running = threads, 0
        self._todo: queue.SimpleQueue[tuple[int, Callable[[], T]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, T | None, BaseException | None]] = queue.SimpleQueue()

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for _ in range(self._running):
            self._todo.put(None)

    def ask(self, slot: int, work: Callable[[], T]) -> None:
        """Have a slot's work done.

        Args:
            slot: one that no work was asked for, or whose work was taken.
            work: a function without arguments.
        """
        self.asked.add(slot)
        if not self._threads:
            self._done.put((slot, work(), None))
            return
        self._todo.put((slot, work))
        if self._running < min(MOST_THREADS, len(self.asked)):
            self._running += 1
            threading.Thread(target=self._work, name="slot", daemon=True).start()

    def take(self, *, wait: bool) -> dict[int, T]:
        """The results that are there, in the order of their slots.

        Args:
            wait: True: wait for one where there is none.

        Raises:
            BaseException: the first error in the order of the slots, once all that was asked for is done.
        """
        results: dict[int, T] = {}
        errors: dict[int, BaseException] = {}
        while self.asked and (errors or (wait and not results) or not self._done.empty()):
            slot, result, error = self._done.get()
            self.asked.remove(slot)
            if error is None:
                results[slot] = result  # type: ignore[assignment]
            else:
                errors[slot] = error
        if errors:
            raise errors[min(errors)]
        return dict(sorted(results.items()))

    def _work(self) -> None:
        while (one := self._todo.get()) is not None:
            slot, work = one
            try:
                self._done.put((slot, work(), None))
            except BaseException as error:  # raised again where it is taken
                self._done.put((slot, None, error))


def side_by_side(work: Sequence[Callable[[], T]]) -> list[T]:
    """Do several things at once, each in a thread; returns their results in their order.

    The threads are daemons: when Ctrl-C ends the wait for a person, the program can end, too.

    Args:
        work: functions without arguments.

    Raises:
        BaseException: the first error in the order of the work, once all of it is done.
    """
    if len(work) == 1:
        return [work[0]()]
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for i in range(len(work)):
        waiting.put(i)
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}
    done: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run() -> None:
        while True:
            try:
                i = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results[i] = work[i]()
            except BaseException as error:  # raised again where it is waited for
                errors[i] = error
            done.put(i)

    for _ in range(min(MOST_THREADS, len(work))):
        threading.Thread(target=run, name="slot", daemon=True).start()
    for _ in work:
        done.get()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(work))]
