"""Waiting in tests for what must happen, however busy the machine is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rlhf_gym.rewards.service import limits

LONG = 240.0
"""Seconds after which what a test waits for will not come any more; below the limit of a whole test."""


def wait_until(met: Callable[[], object], what: str = "it") -> None:
    """Wait until a condition holds.

    Args:
        met: the condition.
        what: it in words, for the message if it never holds.
    """
    end = time.monotonic() + LONG
    while not met():
        assert time.monotonic() < end, f"waited {LONG:.0f} s: {what}"
        time.sleep(0.005)


def wait_for_more(count: Callable[[], int], more: int, what: str) -> None:
    """Wait until a count has grown by some number.

    Args:
        count: the count.
        more: the number.
        what: it in words, for the message if it never does.
    """
    enough = count() + more
    wait_until(lambda: count() >= enough, what)


def limit_time_by(monkeypatch: pytest.MonkeyPatch, hangs: Callable[[], bool]) -> None:
    """Let a time limit end a call when ``hangs()`` is true, and not before, whatever the clock says."""

    class Thread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            wait_until(lambda: hangs() or not self.is_alive(), "the call to hang or end")

    monkeypatch.setattr(limits, "threading", SimpleNamespace(Thread=Thread, Lock=threading.Lock))
