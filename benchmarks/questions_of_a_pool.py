"""Labels to accuracy by the ways to choose questions, on a pool of comparisons that are answered already.

    python benchmarks/questions_of_a_pool.py hh_harmless_half.jsonl.gz --seeds 10

Each seed holds a quarter of the prompts out to judge, and begins with the same random comparisons for all ways. Then, step
after step, each way chooses from the rest of the pool by the code of ``rater.select``: the ensemble's heads on the frozen
trunk's features are fitted to the answers so far. Accuracy is that of the ensemble's mean. Differences from ``random``, in
brackets, are paired by seed. The 95% t-intervals over seeds are over overlapping splits of one data set: rather too narrow, and
they say nothing of other data sets.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from label_curves import interval
from numpy.typing import NDArray

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.preference_data import READ_COLUMNS, read_data
from rlhf_gym.loop.questions import BY_ENSEMBLE, highest, k_center
from rlhf_gym.loop.select_queries import HEADS
from rlhf_gym.reward_model import Features, FitConfig, RewardModel
from rlhf_gym.reward_model.batches import first_turn, texts_of
from rlhf_gym.reward_model.head_ensemble import fit_heads, pair_probabilities

Array = NDArray[np.float64]
WAYS = ("random", *BY_ENSEMBLE, "k_center")


def curves(
    chosen: torch.Tensor, rejected: torch.Tensor, parts: NDArray[np.int64], sizes: list[int], seed: int
) -> Array:
    """Accuracy ``[ways, sizes]`` of one seed.

    Args:
        chosen: ``[N, D]``, features of the chosen responses.
        rejected: ``[N, D]``, of the rejected.
        parts: ``[N]``, the number of each comparison's prompt.
        sizes: numbers of labels, ascending.
        seed: of the split and of what is random.
    """
    rng = np.random.default_rng(seed)
    held = np.isin(parts, rng.permutation(parts.max() + 1)[: (parts.max() + 1) // 4])
    pool, test = rng.permutation(np.flatnonzero(~held)), np.flatnonzero(held)
    difference, middle = chosen - rejected, ((chosen + rejected) / 2).double().numpy()
    found = np.zeros((len(WAYS), len(sizes)))
    for row, way in enumerate(WAYS):
        own, asked = np.random.default_rng((seed, 1)), list(pool[: sizes[0]])
        heads = torch.zeros(HEADS, chosen.shape[1], dtype=torch.float64)
        for column, size in enumerate(sizes):
            rest = np.setdiff1d(pool, asked)
            if more := size - len(asked):
                if way == "random":
                    places = [int(i) for i in own.choice(len(rest), more, replace=False)]
                elif way == "k_center":
                    places = k_center(middle[rest], more, middle[asked], own)
                else:
                    scores = torch.stack([chosen[rest].double() @ heads.T, rejected[rest].double() @ heads.T], -1)
                    values = BY_ENSEMBLE[way](pair_probabilities(scores.permute(1, 0, 2).numpy()))
                    places = highest(values, more, own)
                asked += list(rest[places])
            heads = fit_heads(difference[asked], torch.zeros(size, dtype=torch.bool), HEADS, seed=seed)
            found[row, column] = float((difference[test].double() @ heads.mean(dim=0) > 0).double().mean())
    return found


def main() -> None:
    """Read the pool's features once, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="comparisons: a run, a store, or a file that the importer reads")
    parser.add_argument("--model", default="embedded", help="language model whose trunk is read")
    parser.add_argument("--labels", type=int, nargs="+", default=[50, 100, 200, 400, 600], help="ascending")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--figure", help="also draw the curves to this file (.png, .svg)")
    options = parser.parse_args()
    preferences = [p for p in read_data(options.data, keep=READ_COLUMNS).preferences() if not p.tie]
    trunk = LanguageModel.load(options.model)
    config = FitConfig(trunk_layers=0)
    features = Features(RewardModel(trunk, readout=config.readout(trunk)))
    texts = texts_of(preferences)
    rows = features.rows(texts)
    place, (_, std) = dict(zip(texts, rows, strict=True)), features.spread(rows)
    chosen, rejected = (
        features[[place[text] for text in side]].cpu() / std.cpu()
        for side in ([(p.prompt, p.chosen) for p in preferences], [(p.prompt, p.rejected) for p in preferences])
    )
    _, parts = np.unique([first_turn(p.prompt) for p in preferences], return_inverse=True)
    found = np.stack([curves(chosen, rejected, parts, options.labels, seed) for seed in range(options.seeds)])
    print(f"| accuracy % at labels | {' | '.join(map(str, options.labels))} |")
    print("| --- |" + " ---: |" * len(options.labels))
    for row, way in enumerate(WAYS):
        cells = []
        for column in range(len(options.labels)):
            mean, half = interval((100 * found[:, row, column]).tolist())
            cell = f"{mean:.1f} ± {half:.1f}"
            if row and column:
                gain, error = interval((100 * (found[:, row, column] - found[:, 0, column])).tolist())
                cell += f" ({gain:+.1f} ± {error:.1f})"
            cells.append(cell)
        print(f"| {way} | {' | '.join(cells)} |")
    if options.figure:
        draw(100 * found, options.labels, options.figure)


def draw(found: Array, sizes: list[int], file: str) -> None:
    """Draw mean differences from ``random`` with their 95% intervals, a panel for each way.

    Args:
        found: ``[seeds, ways, sizes]``, accuracy in percent.
        sizes: numbers of labels.
        file: where to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), layout="constrained")
    axes = figure.subplots(1, len(WAYS) - 1, sharey=True)
    for row, (axis, way) in enumerate(zip(axes, WAYS[1:], strict=True), start=1):
        gains = [interval((found[:, row, column] - found[:, 0, column]).tolist()) for column in range(len(sizes))]
        axis.axhline(0, color="0.6", linewidth=1)
        axis.errorbar(sizes, [mean for mean, _ in gains], [half for _, half in gains], marker="o", capsize=3)
        axis.set_title(way)
        axis.set_xscale("log")
        axis.set_xticks(sizes, labels=[str(size) for size in sizes], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("labels")
    axes[0].set_ylabel("points of accuracy over random")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
