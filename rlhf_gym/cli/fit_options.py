"""The options of the commands that fit and judge reward models without a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rlhf_gym.cli.columns import add_columns

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DATA_HELP = "judgements: a run's directory, a feedback store (file or URL), or a file of preferences (JSON or Parquet)"
FORMAT_HELP = "exchange format of a file (docs/people.md; default: found by its first records)"


def add_fit_reward(commands: Commands) -> None:
    """Add the command `fit-reward`."""
    fit = commands.add_parser(
        "fit-reward", allow_abbrev=False, help="fit a reward model to judgements, without a run",
        description="Fit a reward model to judgements, judge it on prompts that were held out, and write it to a folder that "
        "`--reward` takes. A trunk of more than 20 million weights stays frozen (--set trunk_layers=...).",
        epilog="`rlhf-gym config` lists every setting of the section reward_model with its help and its default.",
    )  # fmt: skip
    fit.add_argument("data", metavar="DATA", help=DATA_HELP)
    fit.add_argument(
        "--out", metavar="RM", required=True, help="folder of the reward model; replaces one that is there"
    )
    fit.add_argument(
        "--model", metavar="NAME_OR_PATH", default="embedded",
        help="language model whose trunk it gets: embedded, a folder, a GGUF file, or a name on the hub (default: embedded)",
    )  # fmt: skip
    fit.add_argument("--format", metavar="FORMAT", help=FORMAT_HELP)
    add_columns(fit)
    fit.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="set any setting of the section reward_model, e.g. --set pooling=mean; can be given several times",
    )  # fmt: skip
    fit.add_argument(
        "--label-curve", action="store_true",
        help="also measure accuracy by number of labels, with heads on the frozen trunk, and how many more answers would raise "
        "it by a point",
    )  # fmt: skip
    fit.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the split and the order (default: 0)")
    fit.add_argument("--device", metavar="DEVICE", default="auto", help="cpu, cuda, ... (default: auto)")
    fit.add_argument("--quiet", action="store_true", help="print only the result")


def add_eval_reward(commands: Commands, reward_help: str) -> None:
    """Add the command `eval-reward`.

    Args:
        commands: the parser's commands.
        reward_help: what may be given as a reward, in words.
    """
    judge = commands.add_parser(
        "eval-reward", allow_abbrev=False, help="judge a reward model, or any reward, by judgements",
        description="Compare a reward with judgements that it was not fitted to: accuracy with its interval; of a reward model "
        "log-loss and calibration; by margin, rater and length; and the ceiling that the raters' agreement sets.",
    )  # fmt: skip
    judge.add_argument("reward", metavar="RM", help=f"a reward model's folder, or any reward: {reward_help}")
    judge.add_argument("data", metavar="DATA", help=DATA_HELP)
    judge.add_argument("--format", metavar="FORMAT", help=FORMAT_HELP)
    add_columns(judge)
    judge.add_argument("--json", metavar="FILE", help="write everything to this file, too")


def add_fit_rater(commands: Commands, reward_help: str) -> None:
    """Add the command `fit-rater`.

    Args:
        commands: the parser's commands.
        reward_help: what may be given as a reward, in words.
    """
    fit = commands.add_parser(
        "fit-rater", allow_abbrev=False, help="fit a simulated rater to the answers that people gave",
        description="Estimate the simulated rater's rationality, biases, errors, lapses, ties and skips from answers, by "
        "maximum likelihood, with 95% intervals; and say how well it predicts answers that were held out: against a coin "
        "and the default simulated rater, with its calibration. The file of --out is a rater: --rater fitted:FILE. Of a run "
        "it is also shown on its report, with the number of answers that would raise a reward model's accuracy by a point.",
    )  # fmt: skip
    fit.add_argument("data", metavar="STORE_OR_RUN", help=DATA_HELP)
    fit.add_argument(
        "--reward", metavar="REWARD",
        help=f"what the rater is taken to prefer by: {reward_help} (default: the run's gold reward; needed for other data)",
    )  # fmt: skip
    fit.add_argument("--out", metavar="FILE", help="write the rater to this JSON file; replaces one that is there")
    fit.add_argument(
        "--only", action="append", metavar="RATER",
        help="fit to the answers of this rater, or of these if given several times (default: everybody's)",
    )  # fmt: skip
    fit.add_argument("--format", metavar="FORMAT", help=FORMAT_HELP)
    add_columns(fit)
    fit.add_argument(
        "--resamples", metavar="N", type=int, default=100, help="bootstrap samples for the intervals (default: 100)"
    )
    fit.add_argument("--seed", metavar="N", type=int, default=0, help="seed of folds and bootstrap (default: 0)")
    fit.add_argument(
        "--rerun", action="store_true",
        help="of a run: do its loop again with the fitted rater in the raters' place; its report shows both side by side",
    )  # fmt: skip
    fit.add_argument("--quiet", action="store_true", help="print only the result")
