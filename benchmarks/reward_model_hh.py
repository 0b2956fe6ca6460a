"""Reward models on people's choices: accuracy on dialogues that were held out, over several splits by first turn.

    python benchmarks/reward_model_hh.py harmless-base/test.jsonl.gz --model folder:SmolLM2-135M-Instruct.gguf --splits 10
    python benchmarks/reward_model_hh.py harmless-base/test.jsonl.gz --model embedded --splits 10

The data are Anthropic's hh-rlhf (MIT licence). A frozen trunk computes its features once for all splits. Part of the training
dialogues chooses the epoch; the test dialogues play no part in the fit.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.config_file import build, merge, parse_override
from rlhf_gym.loop.preference_data import read_data
from rlhf_gym.loop.reward_evaluation import judge
from rlhf_gym.reward_model import Features, FitConfig, RewardModel, fit, split_by_prompt
from rlhf_gym.reward_model.batches import texts_of
from rlhf_gym.reward_model.evaluation import raw_scores

TEST_SHARE = 0.2


def main() -> None:
    """Fit on every split, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="file of preferences")
    parser.add_argument(
        "--model", default="embedded", help="embedded, a folder, folder:file.gguf, or a name on the hub"
    )
    parser.add_argument("--splits", type=int, default=10, help="number of splits (default: 10)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="settings of the fit"
    )
    options = parser.parse_args()
    given = [parse_override(f"reward_model.{text}") for text in options.overrides]
    settings = build(merge(*given)).reward_model.settings
    preferences = read_data(options.data).preferences()
    ways = FitConfig(**settings).ways(LanguageModel.load(options.model))

    def fresh(config: FitConfig) -> RewardModel:
        language_model = LanguageModel.load(options.model)
        return RewardModel(language_model, readout=config.readout(language_model))

    frozen = None
    if ways[-1].trunk_layers == 0:
        features = Features(fresh(ways[-1]), precision=ways[-1].precision, tokens_per_batch=ways[-1].tokens_per_batch)
        began = time.perf_counter()
        texts = texts_of(preferences)
        features.rows(texts, lambda done, total: print(f"\rfeatures {done} of {total}", end="", flush=True))
        seconds, cut = time.perf_counter() - began, features.n_cut(texts)
        print(f"\rfeatures of {len(texts)} texts in {seconds:.0f} s ({cut} exceed the context)")
        frozen = features
    rows = []
    for split in range(options.splits):
        rest, test = split_by_prompt(preferences, TEST_SHARE, 1000 + split)
        began = time.perf_counter()
        tried = []
        for config in ways:  # as `fit-reward` does, held-out training dialogues choose among them
            read = frozen if config.trunk_layers == 0 else None
            model = fresh(config) if read is None else read.model
            tried.append((model, read, fit(model, rest, replace(config, seed=split), features=read)))
        model, read, result = min(tried, key=lambda one: one[2].kept_loss)
        texts = texts_of(test)
        scores = dict(zip(texts, raw_scores(model, texts, read).tolist(), strict=True))
        found = judge(test, scores, calibrated=True)
        rows.append((found.fit.accuracy, found.fit.loss, found.fit.ece, found.fit.ece_floor, found.shorter_wins))
        print(
            f"split {split}: accuracy {found.fit.accuracy:.1%} on {found.fit.n_validation}, epoch {result.best_epoch} of "
            f"{len(result.epochs)}{', frozen trunk' * (read is not None)}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1 if len(rows) > 1 else 0)
    print("| model | accuracy | sd over splits | log-loss | ECE | its floor | shorter wins |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {options.model} | {mean[0]:.1%} | {spread[0]:.1%} | {mean[1]:.3f} | {mean[2]:.3f} | {mean[3]:.3f} | {mean[4]:.1%} |"
    )


if __name__ == "__main__":
    main()
