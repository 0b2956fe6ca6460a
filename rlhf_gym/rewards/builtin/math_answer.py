"""Mathematical equivalence as a reward: 1/2 is 0.5, by ``math-verify``. ``pip install rlhf-gym[math]``."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.builtin.needs import column_of
from rlhf_gym.text import shorten

STARTING = 60.0  # seconds that a new process gets for its first answer: it imports sympy


class MathAnswer:
    r"""1 if a response's answer is the reference's, mathematically, else 0; by the package ``math-verify``.

    The answer is what stands in the last ``\boxed{}``, else in ``$...$``, else the last number (``1,000``, ``3/4``, ``50%``).
    Fractions, roots, intervals, sets, matrices and equations are compared by algebra (sympy), numbers to six digits.

    Answers are read by a grammar of LaTeX, never evaluated as Python. They are compared in a process of their own with a limit
    on memory, and one that takes longer than ``seconds`` counts as wrong, as ``9^{9^{9^9}}`` does.

    Args:
        column: the data set's column with the reference: a text (LaTeX, with or without dollars), a number, or a list of them.
        seconds: most seconds an answer, above 0.

    Attributes:
        timed_out: answers that took too long so far.

    Raises:
        ConfigError: math-verify is not installed, or ``seconds`` is not above 0.
    """

    name = "math"

    def __init__(self, column: str = "reference", seconds: float = 5.0) -> None:
        if not seconds > 0:
            raise ConfigError(f"math's seconds must be above 0, got {seconds}")
        if missing := [module for module in ("math_verify", "antlr4") if find_spec(module) is None]:
            raise ConfigError("reward 'math' needs math-verify: pip install 'rlhf-gym[math]'") from ModuleNotFoundError(
                f"no module named {missing[0]!r}"
            )
        self.column, self.seconds = column, seconds
        self.timed_out = 0
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and other processes', have a process of their own."""
        return {**vars(self), "_worker": None}

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: the data have no such column, or something else than texts and numbers in it.
        """
        references = self._references(columns)
        with self._lock:
            return [float(self._equal(some, r)) for some, r in zip(references, responses, strict=True)]

    def _references(self, columns: Mapping[str, list[Any]]) -> list[list[str]]:
        found = []
        for i, given in enumerate(column_of(columns, self.column, self.name)):
            some = list(given) if isinstance(given, list | tuple) else [given]
            if not some or any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in some):
                raise RewardError(
                    f"reward 'math' got {given!r:.80} as the reference of sample {i}, expected a text, a number or a list"
                )
            found.append([str(one) for one in some])
        return found

    def _equal(self, references: list[str], response: str) -> bool:
        fresh = self._worker is None
        self._worker = self._worker or _Worker()
        if fresh and self._worker.ask(["1"], "1", STARTING) is not True:
            said = self._worker.end()
            self._worker = None
            raise RewardError(f"reward 'math' could not start its process: {shorten(said, 300)}")
        answer = self._worker.ask(references, response, self.seconds)
        if answer is None:
            self.timed_out += 1
            self._worker.end()
            self._worker = None
        return bool(answer)


class _Worker:
    """The process, and a thread that reads from it: pipes cannot be waited for with a time-out everywhere."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("math_worker.py")
        # -P: the folder of the script must not hide modules from one another by its files' names.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8",
        )  # fmt: skip
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, name="rlhf-gym-math", daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, references: list[str], response: str, seconds: float) -> bool | None:
        """True if they are equal; None where no answer came in time, or the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([references, response]) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except (queue.Empty, OSError):
            return None
        return bool(json.loads(line)) if line else None

    def end(self) -> str:
        """Kill the process; returns its error output."""
        self._process.kill()
        said = self._process.communicate()[1]
        return said.strip().splitlines()[-1] if said.strip() else "it said nothing"
