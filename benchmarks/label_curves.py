"""Labels to accuracy and to gold reward: ways to choose questions, schedules, and several rounds against one.

    python benchmarks/label_curves.py --out results/labels --select random disagreement k_center --labels 240 --seeds 10
    python benchmarks/label_curves.py --out results/rounds --select random --labels 240 --rounds 1 3 --seeds 5

Every cell (way, schedule, labels, rounds, seed) is a run of the whole loop in a folder of ``--out``; finished ones are not done
again, so that a killed benchmark goes on. Every round of a run is a point: the labels so far, its reward model, its policy. All
runs of a seed see the same prompts and the same random numbers: differences between ways are paired. Training's
``--iterations`` are divided among the rounds, so that all cells generate about the same number of tokens.

Accuracy is that of a round's reward model on fresh pairs of responses of the reference to held-out prompts, ordered by the gold
reward, the same pairs for all: accuracy on the labels themselves would favour who asks easy questions. Gold is the mean gold
reward of the tuned policy on held-out prompts less the reference's. Intervals are 95% t-intervals over seeds; a difference
whose interval holds 0 is called none.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from rlhf_gym.lm.decoding import generate
from rlhf_gym.loop.config_file import build, merge, parse_override
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.questions import labels_of_rounds
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards.base import Reward, score
from rlhf_gym.tasks.samples import columns_of

Cell = tuple[str, str, int, int]
"""Way to choose, schedule, labels, rounds."""
Point = tuple[str, str, int, str]
"""Way to choose, schedule, labels so far, which round of how many."""
FRESH = 2
"""Responses to each held-out prompt that the reward models are judged on."""


def run(cell: Cell, seed: int, folder: Path, iterations: int, overrides: list[str]) -> list[dict[str, float]]:
    """Do one run, or take its result.

    Args:
        cell: what is compared.
        seed: of the run.
        folder: of all runs.
        iterations: of training, in all rounds together.
        overrides: further settings, ``section.key=value``.

    Returns:
        A point for each round.
    """
    select, schedule, labels, rounds = cell
    settings = merge(
        {
            "rater": {
                "query_type": "pair",
                "labels": labels,
                "select": select,
                "schedule": schedule,
                "name": "hh_like",
            },
            "sampling": {"prompts": 256, "candidates": 4},
            "agent": {"iterations": max(1, iterations // rounds)},
            "evaluation": {"best_of": 0},
            "run": {"rounds": rounds, "seed": seed, "threads": 1},
        },
        *map(parse_override, overrides),
    )
    path = folder / f"{select}-{schedule}-{labels}-{rounds}-{seed}"
    result = path / "label_curves.json"
    if not result.exists():
        config = build(settings)
        run_loop(config, path, resume=True, progress=Progress(quiet=True))
        with (path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            tokens = {int(float(row["round"])): float(row["timesteps"]) for row in csv.DictReader(file)}
        context = RunContext.of(config, RunDirectory(path), Progress(quiet=True))
        asked = np.cumsum(labels_of_rounds(labels, rounds, config.rater.schedule)).tolist()
        found = []
        for number, accuracy in enumerate(accuracies(context, rounds), start=1):
            evaluation = json.loads((context.run.round(number) / "evaluation.json").read_text(encoding="utf-8"))
            found.append({
                "labels": asked[number - 1], "accuracy": accuracy,
                "gold": evaluation["gold_after"] - evaluation["gold_before"], "kl": evaluation["kl"], "tokens": tokens[number],
            })  # fmt: skip
        result.write_text(json.dumps(found) + "\n", encoding="utf-8")
    values: list[dict[str, float]] = json.loads(result.read_text(encoding="utf-8"))
    return values


def accuracies(context: RunContext, rounds: int) -> list[float]:
    """Of each round's reward model the share of fresh pairs that it orders as the gold reward does; equal scores count half.

    Args:
        context: the finished run.
        rounds: how many it has.
    """
    prompts = [p for p in context.task.held_out for _ in range(FRESH)]
    responses = generate(
        context.reference, [context.prompt_ids(p) for p in prompts], context.limits, sampling=context.sampling,
        stop=context.task.stop, seed=0, batch_size=64,
    )  # fmt: skip
    texts, said = [p.text for p in prompts], [r.text for r in responses]

    def differences(reward: Reward) -> NDArray[np.float64]:
        values = np.asarray(score(reward, texts, said, columns_of(prompts)).values).reshape(-1, FRESH)
        return np.asarray(values[:, 0] - values[:, 1])

    gold, found = differences(context.gold), []
    for number in range(1, rounds + 1):
        model = RewardModel.load(context.run.reward_model(number), device=str(context.reference.device))
        right = 0.5 * (1 + np.sign(gold) * np.sign(differences(model)))
        found.append(float(right[gold != 0].mean()))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95% t-interval (infinite for one value)."""
    if len(values) < 2:
        return fmean(values), math.inf
    return fmean(values), float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))


def table(results: dict[Point, dict[int, dict[str, float]]]) -> list[str]:
    """Markdown rows: a point's metrics, and its paired differences from the first way at the same number of labels."""
    lines = [
        "| questions by | schedule | labels | round | seeds | tokens | accuracy % | gold gain | KL "
        "| accuracy against first, points | gold against first |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    firsts: dict[int, Point] = {}
    for cell, by_seed in sorted(results.items(), key=lambda item: item[0][2]):  # stable: the first way stays first
        select, schedule, labels, place = cell
        first = firsts.setdefault(labels, cell)
        cells: list[Any] = [
            select,
            schedule,
            labels,
            place,
            len(by_seed),
            f"{fmean(r['tokens'] for r in by_seed.values()):,.0f}",
        ]
        for key, scale, form in (("accuracy", 100, ".1f"), ("gold", 1, "+.2f"), ("kl", 1, ".1f")):
            mean, half = interval([scale * r[key] for r in by_seed.values()])
            cells.append(f"{mean:{form}} ± {half:.2g}")
        for key, scale, form in (("accuracy", 100, "+.1f"), ("gold", 1, "+.2f")):
            if first == cell:
                cells.append("")
                continue
            shared = sorted(set(by_seed) & set(results[first]))
            mean, half = interval([scale * (by_seed[s][key] - results[first][s][key]) for s in shared])
            cells.append(f"{mean:{form}} ± {half:.2g}" + (" (none)" if abs(mean) <= half else ""))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def main() -> None:
    """Do all runs; the table is written after each seed, and printed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--select", nargs="+", default=["random", "disagreement", "information", "k_center", "fresh"])
    parser.add_argument("--schedule", nargs="+", default=["constant"])
    parser.add_argument("--labels", type=int, nargs="+", default=[240], help="in all rounds together")
    parser.add_argument("--rounds", type=int, nargs="+", default=[3], help="one round has no ensemble to choose by")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0")
    parser.add_argument("--iterations", type=int, default=30, help="of training, in all rounds together")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", help="further settings, section.key=value"
    )
    options = parser.parse_args()
    results: dict[Point, dict[int, dict[str, float]]] = defaultdict(dict)
    grid = [
        (w, s, n, r) for n in options.labels for w in options.select for s in options.schedule for r in options.rounds
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for cell in grid:
            select, schedule, _, rounds = cell
            points = run(cell, seed, options.out, options.iterations, options.overrides)
            for number, point in enumerate(points, start=1):
                results[select, schedule, int(point["labels"]), f"{number} of {rounds}"][seed] = point
            print(cell, seed, points[-1], flush=True)
        (options.out / "table.md").write_text("\n".join(table(results)) + "\n", encoding="utf-8")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
