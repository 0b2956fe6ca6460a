"""A process that makes runs of a benchmark, one after the other: ``python -m rlhf_gym.bench.worker``.

It ends with its parent, which holds its standard input open. It writes a run's ``result.json`` whole, or not at all; a run that
was begun before goes on from its own checkpoint.
"""

from __future__ import annotations

import gc
import json
import math
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from rlhf_gym.bench.cells import Cell
from rlhf_gym.bench.contender import Bench
from rlhf_gym.bench.contender_catalogue import find_contender
from rlhf_gym.bench.loop_contender import run_config, trained_by_loop
from rlhf_gym.bench.measure import measure
from rlhf_gym.bench.results import RESULT, Attempt, cell_lock
from rlhf_gym.bench.split_task import split_task
from rlhf_gym.bench.start_models import start_model
from rlhf_gym.errors import NotFiniteError, RlhfGymError
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import STAGE_FUNCTIONS, run_loop
from rlhf_gym.loop.run_directory import FEEDBACK_STAGES, RunDirectory


def work(folder: Path) -> dict[str, Any]:
    """Make the run of a folder, or give the result that is there.

    Args:
        folder: the run's folder, with ``cell.json``.
    """
    with cell_lock(folder):
        if (folder / RESULT).exists():
            found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            return found
        cell = Cell(**json.loads((folder / "cell.json").read_text(encoding="utf-8")))
        attempt = Attempt.begin(folder)
        began, before = time.perf_counter(), _cpu_seconds()
        try:
            outcome = {"status": "done", "error": None, **run_cell(cell, folder)}
        except NotFiniteError as error:
            outcome = {"status": "diverged", "error": str(error)}
        except RlhfGymError as error:
            traceback.print_exc()
            outcome = {"status": "failed", "error": str(error)}
        except MemoryError:
            outcome = {"status": "failed", "error": "out of memory"}
        except Exception as error:
            if _full_disk(error):
                raise  # not the contender's fault: the run is made again once there is room
            traceback.print_exc()
            outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        attempt.add(time.perf_counter() - began, _cpu_seconds() - before)
        return attempt.write_result(cell, outcome)


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train a contender and measure it.

    Args:
        cell: the run.
        folder: its folder.

    Returns:
        The result's fields: metrics, curve, samples, tokens, optimizer steps.

    Raises:
        RlhfGymError: whatever went wrong, in words.
    """
    torch.set_num_threads(1)
    kind = find_contender(cell.agent)
    task = split_task(
        task=cell.task_name, options=cell.task_options, part=cell.part, validation_prompts=cell.validation_prompts,
        test_prompts=cell.test_prompts,
    )  # fmt: skip
    model = start_model(cell.model, task, cell.seed, folder / "start_model")
    config = run_config(cell, model, cell.agent if kind is None else None)
    run, progress = RunDirectory(folder / "run"), Progress()
    if kind is None:
        run_loop(config, run.path, resume=True, progress=progress)
        context = RunContext.of(config, run, Progress(quiet=True))
        trained = trained_by_loop(run, context)
    else:
        context = RunContext.of(config, run, progress)
        contender = kind(**cell.settings)
        with run.open(config, resume=True):
            for stage in FEEDBACK_STAGES if config.reward_model.enabled else ():
                if not run.done(1, stage):
                    STAGE_FUNCTIONS[stage](context, 1)
                    run.mark_done(1, stage, 0.0)
            own = folder / "own"
            own.mkdir(exist_ok=True)
            trained = contender.train(Bench(cell, context, own))
    metrics, samples = measure(Bench(cell, context, folder / "own"), trained)
    if not math.isfinite(metrics["reward"]):
        raise NotFiniteError(f"the reward of {cell.contender} is {metrics['reward']}")
    return {
        "metrics": metrics, "samples": samples, "tokens": trained.tokens, "optimizer_steps": trained.optimizer_steps,
        "curve": [[point.tokens, point.reward, point.kl] for point in trained.curve],
    }  # fmt: skip


def _cpu_seconds() -> float:
    """CPU seconds of this process and of those that it has waited for, such as a trainer's from outside."""
    return sum(os.times()[:4])


def _full_disk(error: BaseException) -> bool:
    texts = ("No space left on device", "disk is full", "Disk quota exceeded")
    return any(text in f"{error} {error.__cause__}" for text in texts)


def lines_of_parent() -> queue.Queue[str]:
    """The lines of standard input as they come. This process ends when it is closed: whoever started it is gone then."""
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        os._exit(70)

    threading.Thread(target=listen, daemon=True).start()
    return lines


def serve() -> None:
    """Make one run after the other: a folder's name comes in as a line, the same line goes out once its result is written.

    What a run prints goes to its ``log.txt``.
    """
    answers = os.fdopen(os.dup(1), "w")
    folders = lines_of_parent()
    while True:
        folder = Path(folders.get())
        with (folder / "log.txt").open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        work(folder)
        sys.stdout.flush()
        gc.collect()
        print(folder, file=answers, flush=True)


if __name__ == "__main__":
    serve()
