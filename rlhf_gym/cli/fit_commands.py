"""The commands that fit and judge reward models without a run."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from rlhf_gym.cli.columns import columns_of
from rlhf_gym.cli.quiet import quiet_libraries
from rlhf_gym.errors import ConfigError


def fit_reward(options: argparse.Namespace) -> None:
    """`rlhf-gym fit-reward`: fit a reward model to judgements, and print what it is worth.

    Raises:
        ConfigError: an unknown setting, or one out of bounds.
    """
    from rlhf_gym.loop.config import RewardModelConfig
    from rlhf_gym.loop.config_file import build, merge, parse_override

    if options.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {options.seed}")
    given = [f"reward_model.{text.removeprefix('reward_model.')}" for text in options.overrides]
    of_runs = [f.name for f in fields(RewardModelConfig) if f.metadata]
    for name in (text.partition("=")[0].removeprefix("reward_model.") for text in given):
        if name in of_runs:
            raise ConfigError(
                f"--set {name}: fit-reward fits one reward model; {', '.join(of_runs)} are settings of `rlhf-gym run`. "
                "Several folders make an ensemble as a reward (docs/rewards.md)"
            )
    settings = build(merge(*map(parse_override, given))).reward_model.settings
    quiet_libraries()
    from rlhf_gym.loop.fit_reward import fit_reward
    from rlhf_gym.loop.progress import Progress
    from rlhf_gym.reward_model.fit_config import RATING_LOSSES

    fitted = fit_reward(
        options.data, options.out, model=options.model, format=options.format, columns=columns_of(options.columns),
        settings=settings, seed=options.seed, device=options.device, curve=options.label_curve,
        progress=Progress(quiet=options.quiet),
    )  # fmt: skip
    result = fitted.result
    if fitted.remarks and options.quiet:  # else it is said before the fit
        print(f"{options.data}: {fitted.remarks}", file=sys.stderr)
    what = "ratings" if settings["loss"] in RATING_LOSSES else "comparisons"
    print(f"fitted on {result.n_train} {what}, kept epoch {result.best_epoch} of {len(result.epochs)}; held out:")
    print(fitted.evaluation.as_text())
    if fitted.curve is not None:
        print(fitted.curve.as_text())
    if fitted.doubt:
        print(fitted.doubt, file=sys.stderr)
    print(f"written: {fitted.folder} (a reward: --reward {fitted.folder})")


def eval_reward(options: argparse.Namespace) -> None:
    """`rlhf-gym eval-reward`: compare a reward with judgements."""
    quiet_libraries()
    from rlhf_gym.loop.preference_data import READ_COLUMNS, read_data
    from rlhf_gym.loop.reward_evaluation import evaluate_reward
    from rlhf_gym.loop.whole_files import write_json
    from rlhf_gym.reward_model import RewardModel
    from rlhf_gym.rewards.spec import load_reward

    reward = load_reward(options.reward)
    keep = READ_COLUMNS if isinstance(reward, RewardModel) else None  # other rewards may read any column
    data = read_data(options.data, options.format, columns_of(options.columns), keep=keep)
    evaluation = evaluate_reward(reward, data)
    if remarks := data.remarks():
        print(f"{data.source}: {remarks}", file=sys.stderr)
    print(evaluation.as_text())
    if options.json:
        write_json(Path(options.json), evaluation.as_dict())


def fit_rater(options: argparse.Namespace) -> None:
    """`rlhf-gym fit-rater`: fit a simulated rater to answers, and print what it predicts.

    Raises:
        ConfigError: a negative seed, or too few bootstrap samples.
    """
    if options.seed < 0 or options.resamples < 2:
        raise ConfigError(
            f"--seed must be at least 0 and --resamples at least 2, got {options.seed} and {options.resamples}"
        )
    quiet_libraries()
    from rlhf_gym.loop.fit_rater import fit_rater, show_in_report
    from rlhf_gym.loop.fitted_run import run_with_fitted
    from rlhf_gym.loop.progress import Progress
    from rlhf_gym.loop.report.run_data import read_run
    from rlhf_gym.loop.report.simulation import comparison

    fitted = fit_rater(
        options.data, reward=options.reward, format=options.format, columns=columns_of(options.columns), raters=options.only,
        resamples=options.resamples, seed=options.seed, progress=Progress(quiet=options.quiet),
    )  # fmt: skip
    print(fitted.as_text())
    if options.rerun:
        run_with_fitted(options.data, fitted, Progress(quiet=options.quiet))
    if (
        shown := show_in_report(options.data, fitted, seed=options.seed, progress=Progress(quiet=options.quiet))
    ) is not None:
        curve, report = shown
        if curve is not None:
            print(curve.as_text())
        if (beside := comparison(read_run(report.parent))) is not None:
            print(beside.as_text())
        print(f"written: {report} (section Simulation and people)")
    if options.out:
        fitted.save(options.out)
        print(f"written: {options.out} (a rater: --rater fitted:{options.out})")
