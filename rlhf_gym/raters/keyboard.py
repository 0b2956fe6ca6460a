"""One key at a time from a terminal, or one character at a time from a pipe."""

from __future__ import annotations

import os
import sys
from collections import deque
from typing import TextIO


class Keyboard:
    """Single keys, without Enter.

    Args:
        source: stream of the keys; default standard input.
    """

    def __init__(self, source: TextIO | None = None) -> None:
        self._source = source or sys.stdin
        self._ahead: deque[str] = deque()

    def read(self) -> str:
        r"""Wait for one key.

        Returns:
            One character, lower case; ``"\n"`` for Enter; ``"q"`` at the end of the input.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        if not self._ahead:
            burst = self._burst() if self._source.isatty() else self._source.read(1)
            # Arrow and function keys arrive as one burst that starts with Escape: one key, which means nothing here.
            self._ahead.extend(["\x1b"] if burst.startswith("\x1b") else burst or "q")
        key = self._ahead.popleft()
        if key == "\x03":
            raise KeyboardInterrupt
        return {"\x04": "q", "\r": "\n"}.get(key, key.lower())

    def discard(self) -> None:
        """Forget keys typed ahead at a terminal: a key pressed before a query was shown is no answer to it."""
        self._ahead.clear()
        if self._source.isatty():
            try:
                import termios
            except ImportError:  # Windows
                return
            termios.tcflush(self._source.fileno(), termios.TCIFLUSH)

    def _burst(self) -> str:
        try:
            import termios
            import tty
        except ImportError:  # Windows
            import msvcrt

            return str(msvcrt.getwch())  # type: ignore[attr-defined,unused-ignore]
        file = self._source.fileno()
        before = termios.tcgetattr(file)
        try:
            tty.setcbreak(file, termios.TCSADRAIN)  # signals stay on: Ctrl-C and Ctrl-Z work as ever
            # Past Python's buffer, which would hold keys back from the next call.
            return os.read(file, 64).decode(self._source.encoding or "utf-8", errors="replace")
        finally:
            termios.tcsetattr(file, termios.TCSADRAIN, before)
