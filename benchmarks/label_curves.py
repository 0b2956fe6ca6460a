"""Labels to accuracy and to gold reward: ways to choose questions, and several rounds against one, at equal labels and tokens.

    python benchmarks/label_curves.py --out results/labels --select random disagreement k_center --labels 60 120 240 --seeds 10
    python benchmarks/label_curves.py --out results/rounds --select random --labels 240 --rounds 1 3 --seeds 5

Every cell (way, labels, rounds, seed) is a run of the whole loop in a folder of ``--out``; finished ones are not done again, so
that a killed benchmark goes on. All runs of a seed see the same prompts and the same random numbers: differences between ways
are paired. Training's ``--iterations`` are divided among the rounds, so that all cells generate about the same number of
tokens; the labels are the same by construction. Both are printed.

Accuracy is that of the last round's reward model on fresh pairs of responses of the reference to held-out prompts, ordered by
the gold reward, the same pairs for all: accuracy on the labels themselves would favour who asks easy questions. Gold is the
tuned policy's mean gold reward on held-out prompts less the reference's. Intervals are 95% t-intervals over seeds; a difference
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
from scipy.special import stdtrit

from rlhf_gym.lm.decoding import generate
from rlhf_gym.loop.config_file import build, merge, parse_override
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards.base import score
from rlhf_gym.tasks.samples import columns_of

Cell = tuple[str, int, int]
"""Way to choose, labels, rounds."""
FRESH = 2
"""Responses to each held-out prompt that the reward model is judged on."""


def run(cell: Cell, seed: int, folder: Path, iterations: int, overrides: list[str]) -> dict[str, float]:
    """Do one run, or take its result.

    Args:
        cell: what is compared.
        seed: of the run.
        folder: of all runs.
        iterations: of training, in all rounds together.
        overrides: further settings, ``section.key=value``.
    """
    select, labels, rounds = cell
    settings = merge(
        {
            "rater": {"query_type": "pair", "labels": labels, "select": select, "name": "hh_like"},
            "sampling": {"prompts": 256, "candidates": 4},
            "agent": {"iterations": max(1, iterations // rounds)},
            "evaluation": {"best_of": 0},
            "run": {"rounds": rounds, "seed": seed, "threads": 1},
        },
        *map(parse_override, overrides),
    )
    path = folder / f"{select}-{labels}-{rounds}-{seed}"
    result = path / "label_curves.json"
    if not result.exists():
        config = build(settings)
        run_loop(config, path, resume=True, progress=Progress(quiet=True))
        evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
        with (path / "metrics.csv").open(encoding="utf-8", newline="") as file:
            tokens = float(list(csv.DictReader(file))[-1]["timesteps"])
        found = {
            "accuracy": accuracy(RunContext.of(config, RunDirectory(path), Progress(quiet=True)), rounds),
            "gold": evaluation["gold_after"] - evaluation["gold_before"], "kl": evaluation["kl"], "tokens": tokens,
        }  # fmt: skip
        result.write_text(json.dumps(found) + "\n", encoding="utf-8")
    values: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return values


def accuracy(context: RunContext, rounds: int) -> float:
    """The share of fresh pairs that the last round's reward model orders as the gold reward does; equal scores count half."""
    prompts = [p for p in context.task.held_out for _ in range(FRESH)]
    responses = generate(
        context.reference, [context.prompt_ids(p) for p in prompts], context.limits, sampling=context.sampling,
        stop=context.task.stop, seed=0, batch_size=64,
    )  # fmt: skip
    texts, said = [p.text for p in prompts], [r.text for r in responses]
    model = RewardModel.load(context.run.reward_model(rounds), device=str(context.reference.device))
    by_gold, by_model = (
        np.asarray(score(reward, texts, said, columns_of(prompts)).values).reshape(-1, FRESH)
        for reward in (context.gold, model)
    )
    gold, found = by_gold[:, 0] - by_gold[:, 1], by_model[:, 0] - by_model[:, 1]
    decided = gold != 0
    return float((0.5 * (1 + np.sign(gold) * np.sign(found)))[decided].mean())


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of its 95% t-interval (infinite for one value)."""
    if len(values) < 2:
        return fmean(values), math.inf
    return fmean(values), float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / math.sqrt(len(values))


def table(results: dict[Cell, dict[int, dict[str, float]]]) -> list[str]:
    """Markdown rows: a cell's metrics, and its paired differences from the first way at the same number of labels."""
    lines = [
        "| questions by | labels | rounds | seeds | tokens | accuracy % | gold gain | KL | accuracy against first, points "
        "| gold against first |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    firsts: dict[int, Cell] = {}
    for cell, by_seed in results.items():
        select, labels, rounds = cell
        first = firsts.setdefault(labels, cell)
        cells: list[Any] = [
            select,
            labels,
            rounds,
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
    """Do all runs, and print the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--select", nargs="+", default=["random", "disagreement", "information", "k_center", "fresh"])
    parser.add_argument("--labels", type=int, nargs="+", default=[60, 120, 240])
    parser.add_argument("--rounds", type=int, nargs="+", default=[3], help="one round has no ensemble to choose by")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0")
    parser.add_argument("--iterations", type=int, default=30, help="of training, in all rounds together")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", help="further settings, section.key=value"
    )
    options = parser.parse_args()
    results: dict[Cell, dict[int, dict[str, float]]] = defaultdict(dict)
    grid = [(s, n, r) for n in options.labels for s in options.select for r in options.rounds]
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for cell in grid:
            results[cell][seed] = run(cell, seed, options.out, options.iterations, options.overrides)
            print(cell, seed, results[cell][seed], flush=True)
    lines = table(results)
    (options.out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
