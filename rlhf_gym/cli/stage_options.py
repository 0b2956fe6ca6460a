"""The options of the commands that do one stage of the loop by itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rlhf_gym.cli.columns import add_columns

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

LOSSES = ("dpo", "ipo", "kto", "orpo", "simpo")
DATA_HELP = "a run's directory, a feedback store (file or URL), or a file that `rlhf-gym rate import` reads"
MODEL_HELP = "embedded (default), a folder, folder:file.gguf, or a name on the hub"
RESUMED = "A command that was interrupted or killed goes on with --resume."


def add_sft(commands: Commands) -> None:
    """Add the command `sft`."""
    sft = commands.add_parser(
        "sft", allow_abbrev=False, help="fine-tune a model on given responses (supervised)",
        description="Fine-tune a model on responses: those of a file with the columns prompt and completion (or response, "
        "target, answer, output), or the preferred, accepted and corrected ones of judgements. Prompts that are held out "
        f"measure it. {RESUMED}",
        epilog="`rlhf-gym config --set agent.name=sft` prints every setting with its help and its default.",
    )  # fmt: skip
    _add_training(sft, f"responses to learn: a file of examples, or judgements: {DATA_HELP}")


def add_train_preferences(commands: Commands) -> None:
    """Add the command `train-preferences`."""
    train = commands.add_parser(
        "train-preferences", allow_abbrev=False, help="train a model on stored preferences: dpo, ipo, kto, orpo, simpo",
        description="Train a model on stored preferences, without generating: dpo, ipo, kto (also of single responses with "
        f"thumbs), orpo, simpo. Prompts that are held out measure it. {RESUMED}",
        epilog="`rlhf-gym config --set agent.name=preference_optimization` prints every setting with its help and its default.",
    )  # fmt: skip
    _add_training(train, f"preferences: {DATA_HELP}")
    train.add_argument("--loss", choices=LOSSES, help="the loss (default: dpo)")
    train.add_argument(
        "--beta", metavar="X", type=float,
        help="dpo, ipo, kto: strength of the pull to the reference; orpo: weight of the odds; simpo: scale of the margin "
        "(default: 0.1, and 2 for simpo)",
    )  # fmt: skip


def add_ilql(commands: Commands) -> None:
    """Add the command `ilql`."""
    train = commands.add_parser(
        "ilql", allow_abbrev=False, help="train a model on stored responses and their rewards (offline RL: ILQL)",
        description="Train a model on stored responses of any quality and their rewards, without generating (ILQL; Snell et "
        "al. 2022): those of a file with the columns prompt, completion (or response, target, answer, output) and reward (or "
        "score: a number, or a list of one for each token), or of judgements: the mean rating of each response, else its "
        f"share of comparisons won. Prompts that are held out measure it. {RESUMED}",
        epilog="`rlhf-gym config --set agent.name=ilql` prints every setting with its help and its default.",
    )  # fmt: skip
    _add_training(train, f"responses with rewards: a file of examples, or judgements: {DATA_HELP}")
    train.add_argument(
        "--beta",
        metavar="X",
        type=float,
        help="weight of the learned values against the data's own habits (default: 4)",
    )


def add_label(commands: Commands) -> None:
    """Add the command `label`."""
    label = commands.add_parser(
        "label", allow_abbrev=False, help="have a model respond to prompts and a rater judge the responses, and no more",
        description="Generate candidates for prompts and put them to a rater: the first two stages of a run, in a run's "
        "directory. `fit-reward`, `train-preferences` and `rate export` read it, and `rlhf-gym run --out DIR --resume` goes on "
        f"with the whole loop. Of a file's prompts a share (task.held_out_fraction) stays held out. {RESUMED}",
        epilog="`rlhf-gym config` prints every setting with its help and its default.",
    )  # fmt: skip
    label.add_argument(
        "prompts", metavar="PROMPTS", help="file of prompts (.txt, .jsonl, .json, .csv, .parquet), or a task"
    )
    _add_run_options(label)
    label.add_argument("--rater", metavar="RATER", help="who judges, as of `rlhf-gym run` (default: simulated)")
    label.add_argument("--query-type", metavar="TYPE", help="ranking (default), pair, best, rating, thumbs or edit")
    label.add_argument("--candidates", metavar="K", type=int, help="responses to each prompt (default: 4)")
    label.add_argument("--task", metavar="NAME", help="task of a file's prompts, for its limits and its reward")
    label.add_argument(
        "--reward", metavar="REWARD", help="what simulated raters prefer by (default: the task's reward)"
    )


def add_eval(commands: Commands) -> None:
    """Add the command `eval`."""
    judge = commands.add_parser(
        "eval", allow_abbrev=False, help="evaluate a run's policy or any model on a task: reward, pass@k, win rate",
        description="Have a model respond to a task's held-out prompts, and measure the responses: mean reward, pass@k, win "
        "rate against another model by the reward or by a rater; each with a 95% interval.",
    )  # fmt: skip
    judge.add_argument(
        "model", metavar="RUN_OR_MODEL", help="a run's directory (its last policy), or a model: " + MODEL_HELP
    )
    judge.add_argument(
        "--task", metavar="NAME", help="the task (default: the run's, or its data's prompts; sentiment for a model)"
    )
    judge.add_argument(
        "--prompts", metavar="FILE", help="file of prompts to respond to, all of them, instead of the task's"
    )
    judge.add_argument("--reward", metavar="REWARD", help="what measures responses (default: the task's reward)")
    judge.add_argument("-n", "--number", metavar="N", type=int, default=1, help="responses to each prompt (default: 1)")
    judge.add_argument(
        "--pass-at", metavar="K", type=int, nargs="+", default=[],
        help="also print pass@k for these k: the probability that one of k responses passes, estimated from all -n",
    )  # fmt: skip
    judge.add_argument(
        "--threshold", metavar="X", type=float, default=1.0, help="reward from which on a response passes (default: 1)"
    )
    judge.add_argument("--against", metavar="RUN_OR_MODEL", help="also print the win rate against this one")
    judge.add_argument("--rater", metavar="RATER", help="who compares the two (default: the reward)")
    judge.add_argument("--limit", metavar="N", type=int, default=200, help="prompts, at most (default: 200)")
    judge.add_argument("--tokens", metavar="N", type=int, help="longest response, in tokens (default: the task's)")
    judge.add_argument(
        "--on-too-long", choices=("refuse", "skip", "truncate"),
        help="what is done with prompts that exceed the model's context (default: as the run does; refuse for a model)",
    )  # fmt: skip
    judge.add_argument("--temperature", metavar="T", type=float, help="above 0 (default: the run's temperature, or 1)")
    judge.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the responses (default: 0)")
    judge.add_argument("--device", metavar="DEVICE", default="auto", help="cpu, cuda, ... (default: auto)")
    judge.add_argument(
        "--out", metavar="FILE", help="write metrics and responses to this JSON file, which must not exist"
    )


def add_export(commands: Commands) -> None:
    """Add the command `export`."""
    export = commands.add_parser(
        "export", allow_abbrev=False, help="write a run's policy as a plain transformers folder with a model card",
        description="Write a run's tuned policy to a folder that transformers loads, with a model card (README.md) filled in "
        "from the run: base model, task, algorithm and its settings, feedback, evaluation.",
    )  # fmt: skip
    export.add_argument("run", metavar="RUN", help="the run's directory")
    export.add_argument("--to", metavar="FOLDER", required=True, help="folder to write; it must not exist, or be empty")
    export.add_argument("--round", metavar="N", type=int, help="the round (default: the last trained one)")


def _add_training(parser: argparse.ArgumentParser, data: str) -> None:
    parser.add_argument("data", metavar="DATA", help=data)
    _add_run_options(parser)
    parser.add_argument(
        "--format", metavar="NAME", help="format of the file (docs/people.md; default: found by its columns)"
    )
    add_columns(parser)
    parser.add_argument(
        "--task", metavar="NAME", help="evaluate on this task's prompts (default: on DATA's that are held out)"
    )
    parser.add_argument(
        "--reward", metavar="REWARD", help="measure responses by this reward, too (default: none, or the task's)"
    )
    parser.add_argument("--passes", metavar="N", type=float, default=1.0, help="passes over the data (default: 1)")
    parser.add_argument("--learning-rate", metavar="X", type=float, help="learning rate (default: the agent's)")


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="directory of the run (default: runs/COMMAND-DATE-TIME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help=MODEL_HELP)
    parser.add_argument("--seed", metavar="N", type=int, help="seed of everything random (default: 0)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, ... (default: auto)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
        help="set any setting of `rlhf-gym run`, e.g. --set agent.batch_size=8; can be given several times",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="print only the summary, at the end")
