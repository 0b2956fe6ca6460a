"""What goes on in a benchmark: a table on a terminal, a line for each run elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rlhf_gym.bench.cells import Cell

STATES = ("running", "done", "failed")


def settings_words(settings: Mapping[str, Any]) -> str:
    """Settings in a line, ``learning_rate=0.001, n_epochs=4``."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in settings.items()
    )


class BenchProgress:
    """Counts runs by contender and problem.

    Args:
        cells: all runs, those that have results already included.
        quiet: show nothing.
        console: where to; by default standard output.
    """

    def __init__(self, cells: Sequence[Cell], *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(markup=False, highlight=False, emoji=False, quiet=quiet)
        self._problems = list(dict.fromkeys(cell.problem for cell in cells))
        self._contenders = list(dict.fromkeys(cell.contender for cell in cells))
        self._all = Counter((cell.contender, cell.problem) for cell in cells)
        self._state: dict[str, tuple[tuple[str, str], str]] = {}
        self._rewards: dict[tuple[str, str], list[float]] = {}
        self._lock, self._began, self._ended, self._total = Lock(), time.monotonic(), 0, len(cells)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal and not quiet else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def found(self, earlier: Sequence[tuple[Cell, dict[str, Any]]]) -> None:
        """Count runs that have their results from before."""
        for cell, result in earlier:
            self._count(cell, result)
        self._show()
        if earlier and self._live is None:
            self.console.print(f"{len(earlier)} of {self._total} runs have their results already", soft_wrap=True)

    def begun(self, cell: Cell) -> None:
        """A run has begun."""
        self._set(cell, "running")
        self._show()

    def ended(self, cell: Cell, result: dict[str, Any]) -> None:
        """A run has its result.

        Args:
            cell: the run.
            result: its result.
        """
        self._count(cell, result)
        self._show()
        if self._live is None:
            metrics = result["metrics"]
            kl = metrics.get("kl")
            words = f"reward {metrics['reward']:.3f}" if metrics else f"{result['status']}: {result['error']}"
            words += "" if kl is None else f", KL {kl:.2f}"
            name = f"{cell.problem} {cell.contender} seed {cell.seed}"
            if cell.part == "validation":  # of a search: which settings these are
                name += f" ({settings_words(cell.settings)})"
            of = f"/{self._total}" if self._total else ""
            self.console.print(f"{self._ended}{of} {name}: {words}, {result['wall_seconds']:.0f} s", soft_wrap=True)

    def _count(self, cell: Cell, result: dict[str, Any]) -> None:
        self._ended += 1
        if result["status"] == "done":
            self._rewards.setdefault((cell.contender, cell.problem), []).append(result["metrics"]["reward"])
        self._set(cell, "done" if result["status"] == "done" else "failed")

    def _set(self, cell: Cell, state: str) -> None:
        with self._lock:
            for known, name in ((self._problems, cell.problem), (self._contenders, cell.contender)):
                if name not in known:
                    known.append(name)
            self._state[cell.run_id] = ((cell.contender, cell.problem), state)

    def _show(self) -> None:
        if self._live is not None:
            with self._lock:
                self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """The table as it is now: for each contender and problem the runs done, failed and running, and the mean reward."""
        minutes, seconds = divmod(round(time.monotonic() - self._began), 60)
        of = f" of {self._total}" if self._total else ""  # a search does not know how many it will prune
        table = Table(title=f"{self._ended} runs ended{of}, {minutes} min {seconds:02} s")
        table.add_column("contender")
        for problem in self._problems:
            table.add_column(problem, justify="right")
        for contender in self._contenders:
            table.add_row(contender, *(self._cell((contender, problem)) for problem in self._problems))
        return table

    def _cell(self, key: tuple[str, str]) -> str:
        states = [state for where, state in self._state.values() if where == key]
        running, done, failed = (states.count(state) for state in STATES)
        rewards = self._rewards.get(key)
        words = f"{sum(rewards) / len(rewards):.3f} " if rewards else ""
        words += f"{done + failed}" + (f"/{self._all[key]}" if key in self._all else "")
        return words + (f" {failed} failed" if failed else "") + (" …" if running else "")
