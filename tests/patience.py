"""Waiting in tests: for what must come, without a bound that a busy machine exceeds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rlhf_gym.rewards.service import limits

PATIENCE = 120.0
"""Seconds that a test waits for what must come; passing tests do not wait so long."""


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.002)


def limit_time_by(monkeypatch: pytest.MonkeyPatch, hangs: Callable[[], bool]) -> None:
    """Let a time limit end a call when ``hangs()`` is true, and not before, whatever the clock says."""

    class Thread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            until(lambda: hangs() or not self.is_alive())

    monkeypatch.setattr(limits, "threading", SimpleNamespace(Thread=Thread, Lock=threading.Lock))
