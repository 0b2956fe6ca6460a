"""Runs on Ray: each run is a task with declared CPUs and GPUs, made again elsewhere when its worker or its machine dies.

Scheduling is Ray's. A task that is made again finds the run's folder and goes on from its checkpoint, if the folder is on a
disk that the machines share; without one it begins anew. Needs ``pip install 'rlhf-gym[ray]'``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_gym.bench.cells import Cell
from rlhf_gym.bench.results import ATTEMPTS, Attempt, Result
from rlhf_gym.bench.runner import Watcher, Worker
from rlhf_gym.errors import ConfigError, first_line
from rlhf_gym.loop.whole_files import read_json, write_json
from rlhf_gym.ray_connection import connect, load_ray, worker_environment

MOST_RETRIES = 5
"""Workers that may die over a run before it counts as failed."""

_WORKER: list[Worker] = []  # the process that makes runs for this worker of Ray; it ends with it


@dataclass(frozen=True)
class RayRuns:
    """Makes runs on Ray.

    Attributes:
        address: ``local`` starts Ray on this machine for as long as this lasts; else a cluster's address, or ``auto``.
        cpus: CPUs that each run declares.
        gpus: GPUs that each run declares; a part of one lets runs share it.
    """

    address: str = "local"
    cpus: float = 1
    gpus: float = 0

    def __call__(self, left: Sequence[tuple[Cell, Path]], watcher: Watcher) -> Iterator[tuple[Cell, Result]]:
        """Make runs, and give their results as they come.

        Args:
            left: the runs with their folders.
            watcher: is told of each run when Ray gets it.

        Raises:
            ConfigError: Ray is not installed, or there is no cluster at the address.
        """
        if not left:
            return
        ray = load_ray("without --ray, runs are made in processes")
        if ray.is_initialized():
            raise ConfigError("Ray is initialized in this process already: call ray.shutdown() before")
        connect(self.address, ray)
        try:
            task = ray.remote(make_run).options(
                num_cpus=self.cpus, num_gpus=self.gpus, max_retries=MOST_RETRIES, runtime_env=worker_environment()
            )
            waiting = {}
            for cell, path in left:
                watcher.begun(cell)
                waiting[task.remote(cell.as_json(), str(path.resolve()))] = (cell, path)
            while waiting:
                (reference,), _ = ray.wait(list(waiting), num_returns=1)
                cell, path = waiting.pop(reference)
                try:
                    yield cell, ray.get(reference)
                except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError) as error:
                    attempts = read_json(path / ATTEMPTS) or {"attempts": MOST_RETRIES + 1}
                    attempt = Attempt(path, int(attempts["attempts"]), 0.0, 0.0)
                    outcome = {
                        "status": "failed",
                        "error": f"its worker of Ray died each time: {first_line(error)}",
                    }
                    yield cell, attempt.write_result(cell, outcome)
        finally:
            ray.shutdown()


def make_run(cell: dict[str, Any], folder: str) -> Result:
    """Make a run in a worker of Ray.

    Args:
        cell: the run, as plain values.
        folder: its folder.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    if not (path / "cell.json").exists():  # the disk is not shared
        write_json(path / "cell.json", cell)
    if not _WORKER:
        _WORKER.append(Worker())
    return _WORKER[0].run(Cell(**cell), path)
