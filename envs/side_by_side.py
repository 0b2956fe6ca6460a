"""Slow work of several slots at the same time: a tool, a service, a person."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
MOST_THREADS = 64


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
