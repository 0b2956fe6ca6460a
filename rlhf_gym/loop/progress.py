"""Progress of a run: a bar for each stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Bar:
    """The bar of one stage.

    Args:
        bars: rich's display, to which the bar is added; None shows nothing.
        total: number of steps; 0 if it is not known yet.
        title: a few words in front of the bar.
    """

    def __init__(self, bars: Bars | None, total: int, title: str) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=total or None, note="") if bars else None

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show how much is done.

        Args:
            done: steps done.
            note: a few words behind the bar.
            total: number of steps, if it was not known before.
        """
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, note=note, total=total)

    def remove(self) -> None:
        """Remove the bar from the display."""
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)


class _Console(Console):
    """A console that raises an error when nobody reads its output any more, where rich's own ends the process."""

    def on_broken_pipe(self) -> None:
        """Raise the error that made rich call this."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output any more")


class Progress:
    """Bars on a terminal, plain lines elsewhere, nothing when quiet.

    Args:
        quiet: show nothing.
        console: the console to print to; by default standard output.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        # What language models write is printed, too: nothing in it is markup.
        self.console = console or _Console(markup=False, highlight=False, emoji=False, quiet=quiet)
        self._bars: Bars | None = None

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Bar]:
        """Show a stage's progress, and its duration once it is done.

        Args:
            title: e.g. ``"round 1 samples"``.
            total: number of steps; 0 if it is not known yet.
        """
        started = time.perf_counter()
        if self._bars is not None:  # a stage within a stage
            bar = Bar(self._bars, total, title)
            try:
                yield bar
            finally:
                bar.remove()
            return
        if self.console.is_terminal and not self.console.quiet:
            columns = (
                TextColumn("{task.description:<22}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            try:
                with Bars(*columns, console=self.console) as self._bars:
                    yield Bar(self._bars, total, title)
            finally:
                self._bars = None
            return
        self.say(f"{title} ...")
        yield Bar(None, total, title)
        self.say(f"{title} done in {time.perf_counter() - started:.1f} s")

    def say(self, line: str) -> None:
        """Print one line, above the bar where there is one."""
        self.console.print(line, soft_wrap=True)
