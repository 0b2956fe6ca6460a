"""Measures one iteration of our PPO, GRPO and RLOO, of TRL's trainers, of stable-baselines3's own PPO, and of a bare loop.

    python benchmarks/speed/ppo.py --trl FOLDER                          # the whole table, an hour on a busy machine
    python benchmarks/speed/ppo.py --trl FOLDER --length 24 --passes 1 --repeats 3 --clock cpu
    python benchmarks/speed/ppo.py --only "ours" "bare loop"

64 episodes an iteration, minibatches of 16, on the CPU, in float32 but where the name says bf16; see `contenders.py`,
`trl_ppo.py` and `trl_groups.py`. Each contender runs in a process of its own, so that its peak memory is its own; they take
turns, an iteration each, after one that warms up. Ratios are medians over the turns of the ratio within a turn.

Columns: seconds an iteration (median), by wall clock or by the process's CPU time (``--clock cpu``, for machines that have
other work to do); the shares of it that went into generation, the reference, learning and the rest; response tokens a
second; peak memory, imports included; floating-point operations of the model's matrices a second over those of a large
matrix product measured in the same run; and the time over our PPO's (TRL's GRPO over our GRPO's, its RLOO over our RLOO's;
with ``--only``, over the first contender's where ours is not among them). Stock SB3 would take minutes, so it runs fewer
episodes an iteration, and its seconds are scaled to 64. A phase that a contender does not report counts as rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

NAMES = ["ours", "ours, separate value network", "TRL PPO", "bare loop", "stock SB3",
         "our GRPO", "our GRPO, whole groups", "TRL GRPO", "our RLOO", "TRL RLOO",
         "ours, bf16", "TRL PPO, bf16", "our GRPO, bf16", "TRL GRPO, bf16"]  # fmt: skip
SAME_ALGORITHM = {
    "our GRPO, whole groups": "our GRPO", "TRL GRPO": "our GRPO", "TRL RLOO": "our RLOO", "TRL PPO, bf16": "ours, bf16",
    "TRL GRPO, bf16": "our GRPO, bf16",
}  # fmt: skip
PHASES = ["generation", "reference", "learning"]


class Worker:
    """A contender in a process of its own, which runs an iteration on demand."""

    def __init__(self, name: str, length: int, passes: int, episodes: int, threads: int, trl: str | None) -> None:
        self.name, self.episodes = name, episodes
        given = [name, str(length), str(passes), str(episodes), str(threads)]
        here = Path(__file__)
        path = os.pathsep.join([*([trl] if trl else []), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        # A pipe of its own for results: libraries print to standard output.
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, str(here), "--worker", str(writer), *given],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[writer], env=environment, text=True,
        )  # fmt: skip
        os.close(writer)
        self.results = os.fdopen(reader)

    def turn(self) -> dict[str, Any]:
        """Run an iteration and return its measurements, scaled to 64 episodes.

        Raises:
            SystemExit: the process ended.
        """
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: there is no line
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        line = self.results.readline()
        if not line:
            raise SystemExit(f"{self.name}: its process ended with status {self.process.wait()}; see its message above")
        measured: dict[str, Any] = json.loads(line)
        for clock in ("wall", "cpu"):
            measured[clock] *= 64 / self.episodes
        measured["phases"] = {k: v * 64 / self.episodes for k, v in measured["phases"].items()}
        return measured

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.results.close()


def work(pipe: int, name: str, length: int, passes: int, episodes: int, threads: int) -> None:
    """Run an iteration for each line of standard input, and write a line of measurements: the process of a worker."""
    if name not in NAMES:
        raise SystemExit(f"unknown contender {name!r}; expected one of {', '.join(map(repr, NAMES))}")
    import contenders
    import torch

    torch.set_num_threads(threads)
    out = os.fdopen(pipe, "w")
    began = [time.perf_counter(), time.process_time()]

    def next_turn() -> bool:
        if not sys.stdin.readline():
            return False
        began[:] = [time.perf_counter(), time.process_time()]
        return True

    def report(phases: dict[str, float]) -> bool:
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        out.write(json.dumps({"wall": wall, "cpu": cpu, "phases": phases, "peak_mib": peak}) + "\n")
        out.flush()
        return next_turn()

    if not next_turn():
        return
    if name.startswith("TRL PPO"):
        import trl_ppo

        trl_ppo.run(length, passes, report, bf16="bf16" in name)
        return
    if name.startswith("TRL"):
        import trl_groups

        trl_groups.run(name, length, passes, report)
        return
    for phases in contenders.CONTENDERS[name](length, passes, episodes):
        if not report(phases):
            return


def matmul_flops(threads: int, clock: str, repeats: int = 5) -> float:
    """Floating-point operations a second of a 1024 x 1024 x 1024 product in float32, the best of ``repeats``.

    Args:
        threads: torch's.
        clock: ``"wall"`` or ``"cpu"``.
        repeats: measurements of four products each.
    """
    import torch

    torch.set_num_threads(threads)
    now = time.process_time if clock == "cpu" else time.perf_counter
    a, b = torch.randn(2, 1024, 1024)
    a @ b
    best = float("inf")
    for _ in range(repeats):
        began = now()
        for _ in range(4):
            a @ b
        # The CPU time of n threads adds up, but they work at the same time.
        best = min(best, (now() - began) / 4 / (threads if clock == "cpu" else 1))
    return 2 * 1024**3 / best


def measure(
    names: list[str], length: int, passes: int, arguments: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """Measure each contender's iterations; the contenders take turns."""
    workers: list[Worker] = []
    try:
        for name in names:
            episodes = arguments.stock_episodes if name == "stock SB3" else 64
            workers.append(Worker(name, length, passes, episodes, arguments.threads, arguments.trl))
        for worker in workers:  # they are all loading by now
            worker.turn()  # the first iteration warms up
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(arguments.repeats):
            for worker in workers:
                turns[worker.name].append(worker.turn())
    finally:
        for worker in workers:
            worker.close()
    return turns


def summary(turns: list[dict[str, Any]], base: list[dict[str, Any]], clock: str) -> dict[str, float]:
    """Medians of a contender's turns; ``ratio`` is its time over the base's within a turn."""
    walls = [turn["wall"] for turn in turns]
    shares = {
        phase: median(turn["phases"].get(phase, 0.0) / wall for turn, wall in zip(turns, walls, strict=True))
        for phase in PHASES
    }
    return {
        "seconds": median(turn[clock] for turn in turns),
        "ratio": median(turn[clock] / other[clock] for turn, other in zip(turns, base, strict=True)),
        "peak_mib": max(turn["peak_mib"] for turn in turns),
        **shares,
        "rest": max(0.0, 1 - sum(shares.values())),
    }


def main() -> None:
    """Print the table; with ``--out``, write it as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, nargs="+", default=[24, 48, 96], help="response tokens")
    parser.add_argument("--prompt", type=int, default=16, help="prompt tokens, at most 256 with the response's")
    parser.add_argument("--passes", type=int, nargs="+", default=[1, 4], help="learning passes an iteration")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="contenders")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stock-episodes", type=int, default=4, help="episodes an iteration of stock SB3")
    parser.add_argument(
        "--trl", help="a folder that holds a TRL with a PPO trainer; TRL's other trainers are taken from it, too"
    )
    parser.add_argument("--out", help="write the measurements as JSON to this file")
    arguments = parser.parse_args()
    os.environ["SPEED_PROMPT"] = str(arguments.prompt)  # before contenders is imported, here and in the workers
    from contenders import EPISODES, flop

    peak = matmul_flops(arguments.threads, arguments.clock)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {arguments.threads} threads, {arguments.clock} time"
    )
    print(f"matrix product: {peak / 1e9:.1f} GFLOP/s")
    head = ["length", "passes", "who", "seconds", "generation", "reference", "learning", "rest", "tokens/s", "MiB",
            "of matmul", "times ours"]  # fmt: skip
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    rows: list[dict[str, Any]] = []
    for length in arguments.length:
        for passes in arguments.passes:
            turns = measure(arguments.only, length, passes, arguments)
            needed = EPISODES * flop(length, passes)
            for name in arguments.only:
                base = SAME_ALGORITHM.get(name, name if name in SAME_ALGORITHM.values() else "ours")
                row = summary(turns[name], turns[base if base in turns else arguments.only[0]], arguments.clock)
                row["tokens_per_second"] = EPISODES * length / row["seconds"]
                row["of_matmul"] = needed / row["seconds"] / peak
                cells = [str(length), str(passes), name, f"{row['seconds']:.2f}"]
                cells += [f"{100 * row[part]:.0f}%" for part in (*PHASES, "rest")]
                cells += [f"{row['tokens_per_second']:.0f}", f"{row['peak_mib']:.0f}", f"{100 * row['of_matmul']:.0f}%"]
                print("| " + " | ".join([*cells, f"{row['ratio']:.2f}"]) + " |", flush=True)
                rows.append({"length": length, "passes": passes, "who": name, **row, "turns": turns[name]})
    if arguments.out:
        results = {"matmul_flops": peak, "clock": arguments.clock, "threads": arguments.threads, "rows": rows}
        Path(arguments.out).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] == "--worker":
        work(int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
    else:
        main()
