"""Measures the cost of an iteration's metrics: statistics, guards against NaN and infinity, and the row of `metrics.csv`.

    python benchmarks/speed/metrics_cost.py                     # some minutes on one core
    python benchmarks/speed/metrics_cost.py --turns 25 --out metrics.json

PPO on the embedded model and the sentiment task, 64 responses an iteration, measured in two ways:

- *by the clock*: time inside the functions that compute metrics, as a share of the iteration (median over turns);
- *in pairs*: an agent as it is, and one from the same seed whose metrics are switched off; otherwise they do the same work.
  The process's CPU time of an iteration with metrics over that without, within a turn; median and quartiles.

Parts: ``minibatch`` is the ratio's statistics, the norms by group of layers, and the means kept of each minibatch;
``rollout`` the metrics of the rollout and handing all metrics to the logger; ``row`` writing `metrics.csv`, which is forced to
the disk; ``guards`` the checks for NaN and infinite numbers, which are not statistics and stay on in the pairs.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch
from stable_baselines3.common.logger import Logger

from rlhf_gym.agents import PPO
from rlhf_gym.agents.common import algorithm, minibatch, optimizer_step
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.loop.metrics_table import MetricsTable

EPISODES, MINIBATCH = 64, 16
STATISTICS = ("minibatch", "rollout", "row")
OF_MINIBATCHES: tuple[tuple[Any, str], ...] = (
    (minibatch, "ratio_metrics"), (algorithm, "quantiles"), (optimizer_step, "layer_groups"),
    (optimizer_step, "gradient_norms"), (optimizer_step, "update_norms"),
)  # fmt: skip


def lengths(prompts: list[str], responses: list[str]) -> list[float]:
    """A reward that costs nothing."""
    return [0.1 * len(r.split()) for r in responses]


class Clock:
    """Seconds inside functions, by part."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function; its wall time is added to a part."""

        def call(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - began

        return call


class Trainer:
    """An agent, an iteration at a time.

    Args:
        table: the file to write as `metrics.csv`.
        metrics: False switches its statistics off.
        episodes: responses an iteration.
    """

    def __init__(self, table: Path, *, metrics: bool, episodes: int) -> None:
        env = make_sb3_env(episodes, task="sentiment", reward=lengths, seed=0)
        self.agent: Any = PPO(
            "LMPolicy", env, language_model="embedded", batch_size=min(MINIBATCH, episodes), seed=0, device="cpu"
        )
        self.agent.set_logger(Logger(None, [MetricsTable(table)]))
        self.clock = clock = Clock()
        agent = self.agent
        self.replaced: dict[tuple[Any, str], Any] = {}
        if metrics:
            agent.log, agent.dump_logs = clock.timed(agent.log, "rollout"), clock.timed(agent.dump_logs, "row")
            agent.record = clock.timed(agent.record, "minibatch")
            for module, name in OF_MINIBATCHES:
                self.replaced[module, name] = clock.timed(getattr(module, name), "minibatch")
            for module, name in ((optimizer_step, "check_finite"), (algorithm, "check_rollout")):
                self.replaced[module, name] = clock.timed(getattr(module, name), "guards")
        else:
            agent.log = agent.dump_logs = agent.record = nothing
            self.replaced = dict.fromkeys(OF_MINIBATCHES, no_metrics) | {(minibatch, "ratio_metrics"): no_ratio}
        self.turn()  # warms up

    def turn(self) -> dict[str, Any]:
        """Run an iteration; returns its wall and CPU seconds, and those of the parts."""
        self.clock.spent.clear()
        patches = [patch.object(module, name, new) for (module, name), new in self.replaced.items()]
        for one in patches:
            one.start()
        try:
            began, cpu = time.perf_counter(), time.process_time()
            self.agent.learn(1, reset_num_timesteps=False)
            wall, used = time.perf_counter() - began, time.process_time() - cpu
        finally:
            for one in patches:
                one.stop()
        return {"wall": wall, "cpu": used, **self.clock.spent}


def nothing(*_arguments: Any, **_options: Any) -> None:
    """Replaces the methods that keep or write metrics."""


def no_metrics(*_arguments: Any) -> dict[str, Any]:
    """Replaces functions that compute metrics."""
    return {}


def no_ratio(*_arguments: Any) -> dict[str, torch.Tensor]:
    """Replaces the ratio's statistics, with the keys that the update reads."""
    one = torch.ones(())
    return dict.fromkeys(("ratio", "squared ratio", "difference", "k3", "k2"), one)


def measure(turns: int, episodes: int) -> list[dict[str, dict[str, Any]]]:
    """Measure iterations with and without metrics; they take turns, and take turns in going first."""
    with tempfile.TemporaryDirectory() as folder:
        both = {
            name: Trainer(Path(folder) / f"{name}.csv", metrics=name == "with", episodes=episodes)
            for name in ("with", "without")
        }
        names = list(both)
        return [{name: both[name].turn() for name in (names if k % 2 else names[::-1])} for k in range(turns)]


def main() -> None:
    """Print the shares; with ``--out``, write all measurements as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="iterations of each, after one that warms up")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="responses an iteration")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="write the measurements as JSON to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, Python {platform.python_version()}, {arguments.threads} threads\n")
    turns = measure(arguments.turns, arguments.episodes)
    rows = [turn["with"] for turn in turns]
    print(f"an iteration: {median(row['wall'] for row in rows):.2f} s\n")
    print("| part | ms | share of the iteration |\n| --- | --- | --- |")
    shares = {}
    for part in (*STATISTICS, "guards"):
        shares[part] = median(row[part] / row["wall"] for row in rows)
        print(f"| {part} | {1e3 * median(row[part] for row in rows):.2f} | {shares[part]:.3%} |")
    shares["all statistics"] = median(sum(row[part] for part in STATISTICS) / row["wall"] for row in rows)
    print(f"| all statistics | | {shares['all statistics']:.3%} |")
    ratios = [turn["with"]["cpu"] / turn["without"]["cpu"] for turn in turns]
    low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"\nin pairs, CPU time with metrics over without: {middle:.4f} (quartiles {low:.4f}, {high:.4f})")
    if arguments.out:
        results = {"shares": shares, "ratios": ratios, "turns": turns}
        Path(arguments.out).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
