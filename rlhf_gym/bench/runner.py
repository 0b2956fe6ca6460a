"""Runs the cells of a suite that have no result yet, each in a process of its own, and keeps every result.

Processes run one after the other, or a few at once; with Ray they run on its workers (:mod:`~rlhf_gym.bench.ray_runner`).
Killed at any moment, only what is unfinished is run again, each run from its own checkpoint.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Protocol

from rlhf_gym.bench.cells import Cell, Selection
from rlhf_gym.bench.contender_catalogue import find_contender
from rlhf_gym.bench.results import ATTEMPTS, RESULT, Attempt, Result, ResultsFolder
from rlhf_gym.errors import ConfigError, RlhfGymError
from rlhf_gym.loop.whole_files import read_json, write_json
from rlhf_gym.objects import import_path


class Watcher(Protocol):
    """Shows what goes on."""

    def found(self, earlier: Sequence[tuple[Cell, Result]]) -> None:
        """Some runs have their results from before; called once, at the start of a suite, with none of them, too."""

    def begun(self, cell: Cell) -> None:
        """A run has begun."""

    def ended(self, cell: Cell, result: Result) -> None:
        """A run has its result.

        Args:
            cell: the run.
            result: its result.
        """


MOST_ATTEMPTS = 3
"""Processes that may die over a run before it counts as failed; an error that a run raises counts at once."""

Executor = Callable[[Sequence[tuple[Cell, Path]], Watcher], Iterator[tuple[Cell, Result]]]
"""Makes runs in their folders and gives their results as they come."""


def run_suite(
    selection: Selection, out: Path | str, watcher: Watcher, *, jobs: int = 1, executor: Executor | None = None,
    retry_failed: bool = False,
) -> ResultsFolder:  # fmt: skip
    """Make all runs of a selection that have no result yet.

    Args:
        selection: suite, contenders, tasks, seeds.
        out: folder of the results.
        watcher: is told of each run.
        jobs: runs at once, each in a process with one thread.
        executor: makes the runs; None takes processes of this machine.
        retry_failed: make runs again that failed or took too long. Those that diverged did what they do, and stay.

    Raises:
        ConfigError: a contender that does not exist or does not fit, results of another suite, another process in the folder.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    cells = list(selection.cells())
    check_cells(cells)
    folder = ResultsFolder(out)
    with folder.open(selection.suite):
        found = folder.read()
        _refuse_other_settings(cells, found, folder)
        retried = {r["run_id"] for r in found if retry_failed and r["status"] in ("failed", "timeout")}
        made = {result["run_id"]: result for result in found if result["run_id"] not in retried}
        watcher.found([(cell, made[cell.run_id]) for cell in cells if cell.run_id in made])
        left = []
        for cell in cells:
            if cell.run_id in made:
                continue
            path = folder.run(cell)
            if cell.run_id in retried:
                for name in (RESULT, ATTEMPTS):
                    (path / name).unlink(missing_ok=True)
            if (result := read_json(path / RESULT)) is not None:  # finished while nobody was there to write it down
                folder.append(result)
                watcher.ended(cell, result)
                continue
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "cell.json", cell.as_json())
            left.append((cell, path))
        processes = Processes(jobs)
        try:
            for cell, result in (executor or processes)(left, watcher):
                folder.append(result)
                watcher.ended(cell, result)
        finally:
            processes.close()
    return folder


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuse, before any work, contenders that do not exist and settings that do not fit.

    Args:
        cells: the runs.

    Raises:
        ConfigError: names the contender and what is wrong with it.
    """
    from rlhf_gym.bench.loop_contender import run_config

    checked = set()
    for cell in cells:
        if (key := (cell.contender, cell.problem)) in checked:
            continue
        checked.add(key)
        try:
            kind = find_contender(cell.agent)
            run_config(cell, {"name": "embedded"}, cell.agent if kind is None else None)
            if kind is not None:
                kind(**cell.settings)
        except (RlhfGymError, TypeError) as error:
            raise ConfigError(f"contender {cell.contender} on {cell.problem}: {error}") from error


def _refuse_other_settings(cells: Sequence[Cell], found: Sequence[Result], folder: ResultsFolder) -> None:
    """One name stands for one thing: a contender's results with other settings or code do not mix with new ones."""
    wanted = {(cell.problem, cell.contender, cell.seed): cell for cell in cells}
    for result in found:
        cell = wanted.get((result["problem"], result["contender"], result["seed"]))
        if cell is not None and cell.run_id != result["run_id"]:
            raise ConfigError(
                f"{folder.path} holds a run of {cell.contender} on {cell.problem} with settings {result['settings']}, now "
                f"they are "
                f"{dict(cell.settings)} (or its code has changed): give the contender another name, or another --out, and "
                "compare the two with `rlhf-gym bench compare`"
            )


class Processes:
    """Makes runs in processes of this machine, which serve one run after the other until :meth:`close`.

    Args:
        jobs: how many at once.
    """

    def __init__(self, jobs: int) -> None:
        self._workers = [Worker() for _ in range(jobs)]

    def __call__(self, left: Sequence[tuple[Cell, Path]], watcher: Watcher) -> Iterator[tuple[Cell, Result]]:
        """Make runs, and give their results as they come.

        Args:
            left: the runs with their folders.
            watcher: is told of each run when it begins.
        """
        free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def one(cell: Cell, path: Path) -> Result:
            worker = free.get()
            try:
                watcher.begun(cell)
                return worker.run(cell, path)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            futures = {pool.submit(one, cell, path): cell for cell, path in left}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:  # Ctrl-C, a full disk: nothing is begun any more, and what runs ends
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()


class Worker:
    """A process that makes runs, one at a time; started when it is first needed, and anew after it was killed or died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closed = False

    def run(self, cell: Cell, path: Path) -> Result:
        """Make a run, to its time limit. A process that dies over it costs an attempt; the run goes on in another one.

        Args:
            cell: the run.
            path: its folder, with ``cell.json``.

        Returns:
            Its result; a failed one where it took too long, or where :data:`MOST_ATTEMPTS` processes have died over it.

        Raises:
            OSError: the disk is full.
            RuntimeError: the worker was closed.
        """
        end = time.monotonic() + cell.time_limit
        while True:
            if self._closed:
                raise RuntimeError("the worker was closed")
            code = self._try(path, end)
            result: Result | None = read_json(path / RESULT)
            if result is not None:
                return result
            if self._closed:
                continue
            if "No space left on device" in _tail(path):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            attempts = int((read_json(path / ATTEMPTS) or {"attempts": MOST_ATTEMPTS})["attempts"])
            if code is None or attempts >= MOST_ATTEMPTS:
                attempt = Attempt(path, attempts, cell.time_limit if code is None else 0.0, 0.0)
                late = f"the run took longer than its time limit of {cell.time_limit:g} seconds"
                outcome = (
                    {"status": "timeout", "error": late}
                    if code is None
                    else {"status": "failed", "error": _death(code, path)}
                )
                return attempt.write_result(cell, outcome)

    def _try(self, path: Path, end: float) -> int | None:
        """Have the process make a run; its exit code if it died, 0 if it answered, None if the time was up."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(f"{path.resolve()}\n")
            process.stdin.flush()
            answer = self._answers.get(timeout=max(0.0, end - time.monotonic()))
        except (BrokenPipeError, queue.Empty) as error:
            self._kill()
            return None if isinstance(error, queue.Empty) else process.returncode
        if answer:
            return 0
        return process.wait()

    def _start(self) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        paths = [*import_path(), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_gym.bench.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(self._process.stdout, self._answers), daemon=True).start()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._closed = True
        self._kill()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()


def _listen(stream: IO[str], answers: queue.SimpleQueue[str]) -> None:
    """Hand on a process's lines; an empty one stands for its end."""
    for line in stream:
        answers.put(line)
    answers.put("")


def _death(code: int, path: Path) -> str:
    name = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"its process ended with {name}: {_tail(path) or 'it printed nothing'}"


def _tail(path: Path) -> str:
    log = path / "log.txt"
    text = log.read_text(encoding="utf-8", errors="replace")[-2000:].strip() if log.exists() else ""
    return text.splitlines()[-1] if text else ""
