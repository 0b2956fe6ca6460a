"""Compares the algorithms on the offline tasks: a search for their settings, then the table; resumable at any moment.

    python benchmarks/algorithms/run.py search --out runs/algorithms --jobs 2
    python benchmarks/algorithms/run.py table --out runs/algorithms --jobs 2
    python benchmarks/algorithms/run.py print --out runs/algorithms > table.md

Each run adds a line to ``search.jsonl`` or ``table.jsonl`` when it ends, and is not run again. For a part of the comparison:
``--algorithm PPO RLOO --task copy --seeds 2``. `settings.py` has the tasks and the algorithms, `training.py` a run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from settings import ALGORITHMS, EMBEDDED_RATES, MOST_KL, SEARCHED_ON, SETTINGS, Options

Job = tuple[str, str, int, Options]  # algorithm, task, seed, options
BOOTSTRAPS = 2000


def key(algorithm: str, task: str, seed: int, options: Options) -> str:
    """The key of a run: equal for equal runs."""
    return json.dumps([algorithm, task, seed, sorted(options.items())])


def lines(path: Path) -> list[dict[str, Any]]:
    """The runs of a file, none if there is no file; a last line that a crash cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: a broken line is left out, and its run is made again", file=sys.stderr)
    return found


def rate_name(algorithm: str) -> str:
    """The setting that the search tries on the embedded model: the learning rate, or else the first of the grid."""
    return "learning_rate" if "learning_rate" in ALGORITHMS[algorithm].grid else next(iter(ALGORITHMS[algorithm].grid))


def search_jobs(algorithms: list[str], seeds: int) -> Iterator[Job]:
    """The runs of the search: every candidate of every algorithm, and on the embedded model the size of the step alone."""
    for seed in range(seeds):
        for task in SEARCHED_ON:
            for name in algorithms:
                for options in ALGORITHMS[name].candidates():
                    yield name, task, 100 + seed, options  # other seeds than the table's
        for name in algorithms:
            step = rate_name(name)
            values = EMBEDDED_RATES if step == "learning_rate" else ALGORITHMS[name].grid[step]
            for value in values:
                yield name, "sentiment", 100 + seed, {step: value}


def objective(run: dict[str, Any]) -> float:
    """Reward less the KL penalty, of one run."""
    return float(run["reward"] - SETTINGS[run["task"]].kl_coef * run["kl"])


def chosen(found: list[dict[str, Any]], algorithm: str, task: str) -> Options:
    """The candidate that the search found best; of equal ones the first tried.

    All algorithms maximise the same objective, the reward less the KL penalty. Candidates are compared by its mean less the
    mean's standard error, averaged over tasks, so that one lucky run of three does not decide. Candidates whose KL exceeds
    :data:`settings.MOST_KL` are excluded, unless all do.

    Raises:
        SystemExit: the search has not run.
    """
    tasks = SEARCHED_ON if SETTINGS[task].untrained else ("sentiment",)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in found:
        if run["algorithm"] == algorithm and run["task"] in tasks:
            runs[json.dumps(run["options"], sort_keys=True)][run["task"]].append(run)
    if not runs:
        raise SystemExit(f"the search has no run of {algorithm} on {' or '.join(tasks)}; run `search` first")

    def worth(options: str) -> tuple[bool, float]:
        by_task = list(runs[options].values())
        near = all(np.mean([run["kl"] for run in of]) <= MOST_KL for of in by_task)
        return near, float(np.mean([lower_bound([objective(run) for run in of]) for of in by_task]))

    best: Options = json.loads(max(runs, key=worth))
    return best


def lower_bound(values: list[float]) -> float:
    """The mean less its standard error; a single value is its own bound."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(np.mean(values) - error)


def run_all(jobs: list[Job], path: Path, workers: int) -> None:
    """Run the jobs that the file does not have yet, and write each run's line when it ends."""
    done = {key(r["algorithm"], r["task"], r["seed"], r["options"]) for r in lines(path)}
    left = [job for job in jobs if key(*job) not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"  # before the workers import torch
    with ProcessPoolExecutor(workers) as pool, path.open("a", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_text(encoding="utf-8").endswith("\n"):
            file.write("\n")  # after a line that a crash cut off
        futures = [pool.submit(work, job) for job in left]
        for count, future in enumerate(as_completed(futures), start=1):
            result = future.result()
            print(json.dumps(result), file=file, flush=True)
            metrics = f"reward {result['reward']:.3f}, KL {result['kl']:.2f}, {result['seconds']:.0f} s"
            print(
                f"{count}/{len(left)} {result['algorithm']} {result['task']} {result['options']}: {metrics}", flush=True
            )


def work(job: Job) -> dict[str, Any]:
    """Make one run, in a worker."""
    from training import train

    return train(*job)


def interval(values: list[float]) -> tuple[float, float]:
    """The 95% interval of the mean over seeds, by the bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (BOOTSTRAPS, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def show(out: Path) -> None:
    """Print the tables as Markdown, with the settings that the search chose."""
    found, searched = lines(out / "table.jsonl"), lines(out / "search.jsonl")
    for task, setting in SETTINGS.items():
        print(f"\n### {task}\n\n{setting.tokens:,} tokens, level {setting.level}, KL coefficient {setting.kl_coef}.\n")
        print("| algorithm | reward [95%] | KL, nats | objective | tokens to level | reached it | CPU s | settings |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        rows = []
        for name in ALGORITHMS:
            try:
                options = chosen(searched, name, task)
            except SystemExit:  # not searched yet
                continue
            runs = [r for r in found if (r["algorithm"], r["task"], r["options"]) == (name, task, options)]
            if not runs:
                continue
            rewards = [r["reward"] for r in runs]
            low, high = interval(rewards)
            reached = [r["tokens_to_level"] for r in runs if r["tokens_to_level"] is not None]
            tokens = f"{np.median(reached):,.0f}" if reached else "-"
            settings = ", ".join(f"{k}={v}" for k, v in options.items())
            rows.append(
                (
                    -float(np.mean([objective(r) for r in runs])),
                    f"| {name} | {np.mean(rewards):.3f} [{low:.3f}, {high:.3f}] | {np.mean([r['kl'] for r in runs]):.2f} "
                    f"| {np.mean([objective(r) for r in runs]):.3f} | {tokens} | "
                    f"{len(reached)} of {len(runs)} | {np.median([r['seconds'] for r in runs]):.0f} | {settings} |",
                )
            )
        for _, row in sorted(rows):
            print(row)


def main() -> None:
    """Search, make the table's runs, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "table", "print"])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--algorithm", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS))
    parser.add_argument("--task", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, help="default: 3 for the search, 5 for the table")
    parser.add_argument("--jobs", type=int, default=1, help="processes, one thread each")
    arguments = parser.parse_args()
    if arguments.what == "print":
        show(arguments.out)
    elif arguments.what == "search":
        jobs = [job for job in search_jobs(arguments.algorithm, arguments.seeds or 3) if job[1] in arguments.task]
        random.Random(0).shuffle(jobs)  # an even load, and something of everything early
        run_all(jobs, arguments.out / "search.jsonl", arguments.jobs)
    else:
        searched = lines(arguments.out / "search.jsonl")
        table = [
            (name, task, seed, chosen(searched, name, task))
            for seed in range(arguments.seeds or 5)
            for task in arguments.task
            for name in arguments.algorithm
        ]
        run_all(table, arguments.out / "table.jsonl", arguments.jobs)


if __name__ == "__main__":
    main()
