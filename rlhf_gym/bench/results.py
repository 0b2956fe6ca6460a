"""Results on disk: a folder for each run, and ``results.jsonl``, to which each finished run adds one line.

============================  ======================================================================================
``suite.json``                name, version and hash of the suite whose results these are
``results.jsonl``             one result a line (docs/bench.md has the schema)
``runs/NAME/cell.json``       the run: contender, problem, seed, settings, budget
``runs/NAME/run/``            an ordinary run's directory, with its checkpoint
``runs/NAME/log.txt``         what the run's process printed
``runs/NAME/result.json``     the result, until it stands in ``results.jsonl`` and after
============================  ======================================================================================

Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rlhf_gym.bench.cells import Cell
from rlhf_gym.bench.suite import Suite
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.run_directory import locked, versions
from rlhf_gym.loop.whole_files import read_json, write_json

RESULT = "result.json"
ATTEMPTS = "attempts.json"
SCHEMA = 1
"""Version of the results' fields."""

Result = dict[str, Any]


@contextmanager
def cell_lock(folder: Path) -> Iterator[None]:
    """Hold a run's lock, and wait for it: of two processes that make one run, the second finds it made."""
    with locked(folder / ".cell.lock", folder, wait=True):
        yield


@dataclass
class Attempt:
    """The attempts at a run, counted in its folder: a kill costs an attempt, not the run.

    Attributes:
        folder: the run's folder.
        number: this attempt's number, from 1.
        wall_seconds: of all attempts that ended by themselves.
        cpu_seconds: likewise.
    """

    folder: Path
    number: int
    wall_seconds: float
    cpu_seconds: float

    @classmethod
    def begin(cls, folder: Path) -> Self:
        """Count an attempt."""
        before = read_json(folder / ATTEMPTS) or {"attempts": 0}
        number = int(before["attempts"]) + 1
        write_json(folder / ATTEMPTS, {"attempts": number})
        return cls(folder, number, 0.0, 0.0)

    def add(self, wall_seconds: float, cpu_seconds: float) -> None:
        """Add an attempt's time.

        Args:
            wall_seconds: by the clock.
            cpu_seconds: of the processor.
        """
        self.wall_seconds += wall_seconds
        self.cpu_seconds += cpu_seconds

    def write_result(self, cell: Cell, outcome: Mapping[str, Any]) -> Result:
        """Write ``result.json``.

        Args:
            cell: the run.
            outcome: its fields beyond those that every result has.
        """
        result = {
            **result_head(cell), "tokens": 0, "optimizer_steps": 0, "metrics": {}, "curve": [], "samples": [],
            "wall_seconds": round(self.wall_seconds, 3), "cpu_seconds": round(self.cpu_seconds, 3),
            "attempts": self.number, **outcome,
        }  # fmt: skip
        write_json(self.folder / RESULT, result)
        found: Result = read_json(self.folder / RESULT)
        return found


def result_head(cell: Cell) -> Result:
    """The fields that say which run a result is of, and what made it."""
    found = versions()
    return {
        "schema": SCHEMA, "run_id": cell.run_id, "suite": cell.suite, "suite_version": cell.suite_version,
        "suite_hash": cell.suite_hash, "problem": cell.problem, "task": cell.task, "contender": cell.contender,
        "agent": cell.agent, "settings": dict(cell.settings), "seed": cell.seed, "part": cell.part, "equal": cell.equal,
        "budget": cell.budget, "level": cell.level, "folder": cell.folder, "date": found.pop("started_at"),
        "commit": commit(), "versions": found, "machine": f"{platform.machine()} {platform.system()}",
    }  # fmt: skip


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with ``+`` where it was changed; None for an installed one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head, changed = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


class ResultsFolder:
    """The folder of a suite's results.

    Args:
        path: the folder; :meth:`open` makes it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def file(self) -> Path:
        """The file of results."""
        return self.path / "results.jsonl"

    def run(self, cell: Cell) -> Path:
        """The folder of a run."""
        return self.path / "runs" / cell.folder

    @contextmanager
    def open(self, suite: Suite) -> Iterator[None]:
        """Lock the folder for this process, and begin results of a suite in it if there are none.

        Args:
            suite: the suite.

        Raises:
            ConfigError: the folder holds results of another suite, or of another version of it, or another process works on it.
        """
        self.check(suite)
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / ".lock", self.path):
            self.check(suite)
            write_json(self.path / "suite.json", {
                "schema": SCHEMA, "name": suite.name, "version": suite.version, "hash": suite.hash, "equal": suite.equal,
                "about": suite.about, "measured": suite.measured, "models": dict(suite.models),
                "tasks": {name: {"range": list(task.range), "level": task.level} for name, task in suite.tasks.items()},
            })  # fmt: skip
            self._mend()
            yield

    def check(self, suite: Suite) -> None:
        """Check that results of a suite may go here.

        Args:
            suite: the suite.

        Raises:
            ConfigError: they may not, and why.
        """
        found = read_json(self.path / "suite.json") if self.path.is_dir() else None
        if found is None:
            if self.path.exists() and not self.path.is_dir():
                raise ConfigError(f"--out {self.path} is a file; give a directory")
            if self.path.is_dir() and (others := [p.name for p in self.path.iterdir() if p.name[0] != "."]):
                raise ConfigError(
                    f"{self.path} is no folder of results and not empty (it holds {others[0]!r}); give another --out"
                )
            return
        if (found["name"], found["hash"]) != (suite.name, suite.hash):
            raise ConfigError(
                f"{self.path} holds results of suite {found['name']!r} version {found['version']} (hash {found['hash']}), "
                f"not of "
                f"{suite.name!r} version {suite.version} (hash {suite.hash}): tasks, budgets or settings differ, so the two "
                "cannot stand in one table. Give another --out"
            )

    def _mend(self) -> None:
        """End a last line that a kill has cut short, so that the next one begins a line of its own."""
        if self.file.exists() and (size := self.file.stat().st_size):
            with self.file.open("rb+") as file:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def append(self, result: Result) -> None:
        """Add a result, in one write that is on the disk when this returns.

        Args:
            result: the result.

        Raises:
            OSError: the disk is full; the file is as it was, but for a broken last line that readers leave out.
        """
        with self.file.open("ab") as file:
            file.write((json.dumps(result, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Result]:
        """All results, of each run the last; lines that a kill cut short are left out, and their runs are made again.

        Raises:
            ConfigError: there are no results, or they were written by a newer version.
        """
        if not (self.path / "suite.json").exists():
            raise self._no_results()
        found: dict[str, Result] = {}
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []:
            try:
                result = json.loads(line)
                run_id, schema = result["run_id"], result["schema"]
            except (ValueError, KeyError, TypeError):
                continue
            if schema != SCHEMA:
                raise ConfigError(f"{self.file} has results of schema {schema}, this version reads {SCHEMA}")
            found[run_id] = result
        return list(found.values())

    @property
    def suite(self) -> dict[str, Any]:
        """What ``suite.json`` says of the suite.

        Raises:
            ConfigError: there are no results here.
        """
        found = read_json(self.path / "suite.json")
        if found is None:
            raise self._no_results()
        return dict(found)

    def _no_results(self) -> ConfigError:
        if not self.path.exists():
            return ConfigError(f"there is no folder {self.path}; `rlhf-gym bench run` makes one (--out)")
        return ConfigError(f"{self.path} holds no results of `rlhf-gym bench run` (no suite.json in it)")
