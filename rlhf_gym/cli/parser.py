"""The command line's options. Imports nothing but the configuration's fields: ``--help`` has to answer at once."""

from __future__ import annotations

import argparse
from dataclasses import fields

from rlhf_gym.loop.config import SECTIONS
from rlhf_gym.version import __version__

FLAGS = {
    "--model": "model.name",
    "--task": "task.name",
    "--prompts": "task.prompts",
    "--reward": "task.reward",
    "--rater": "rater.name",
    "--rounds": "run.rounds",
    "--iterations": "agent.iterations",
    "--kl-coef": "agent.kl_coef",
    "--seed": "run.seed",
    "--device": "model.device",
    "--log": "log.to",
}
"""Settings with a flag of their own; all others are set by ``--set section.key=value``."""

METAVARS = {"--model": "NAME_OR_PATH", "--task": "NAME", "--prompts": "FILE", "--reward": "REWARD", "--rater": "RATER",
            "--device": "DEVICE", "--log": "wandb,tensorboard"}  # fmt: skip


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-gym", description="Reinforcement learning from human feedback, as a Gymnasium problem.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"rlhf-gym {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_config(commands)
    _add_report(commands)
    _add_sample(commands)
    _add_rewards(commands)
    _add_check_reward(commands)
    _add_serve_reward(commands)
    _add_rate(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run", allow_abbrev=False, help="run the loop: sample, ask raters, fit a reward model, PPO, evaluate",
        description="Run the whole loop in one directory: candidates, judgements, reward model, PPO, evaluation, report. "
        "Killed at any moment, it goes on with --resume.",
        epilog="Every setting, with its help and its default: rlhf-gym config",
    )  # fmt: skip
    run.add_argument("--out", metavar="DIR", help="the run's directory (default: runs/TASK-DATE-TIME)")
    run.add_argument("--resume", action="store_true", help="go on with the run in --out, or begin it if there is none")
    run.add_argument("--quiet", action="store_true", help="print the summary only")
    _add_settings(run)


def _add_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    config = commands.add_parser(
        "config", allow_abbrev=False, help="print the configuration as YAML, every setting with its help",
        description="Print the configuration that `rlhf-gym run` with the same options would use, every setting with its "
        "help.",
    )  # fmt: skip
    _add_settings(config)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` and `config` share: a file, overrides, flags."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags and --set win over it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
        help="any setting, e.g. --set agent.learning_rate=3e-4; may be given again and again",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="everything small: shows in a minute that it all works")
    # Settings of agents stand with the agents, whose import takes seconds: their help is repeated here.
    helps = {"agent.kl_coef": "weight of the KL penalty"}
    helps |= {
        f"{name}.{f.name}": f.metadata["help"]
        for name, cls in SECTIONS.items()
        for f in fields(cls)  # type: ignore[arg-type]
        if f.metadata
    }
    for flag, key in FLAGS.items():
        parser.add_argument(
            flag, metavar=METAVARS.get(flag, "N"), dest=key, help=f"{helps[key]} ({key})".replace("%", "%%")
        )


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    report = commands.add_parser(
        "report", allow_abbrev=False, help="write a run's HTML report anew, and print its summary",
        description="Write report.html of a run, finished or not, and print its one-screen summary.",
    )  # fmt: skip
    report.add_argument("run_dir", metavar="RUN_DIR", help="the run's directory")


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sample = commands.add_parser(
        "sample", allow_abbrev=False, help="let a model, or a run's tuned policy, go on with a prompt",
        description="Write continuations of a prompt, with a model or with a run's tuned policy.",
    )  # fmt: skip
    sample.add_argument("prompt", metavar="PROMPT", help="what to go on with")
    sample.add_argument("--model", metavar="NAME_OR_PATH", default="embedded", help="default: the embedded model")
    sample.add_argument("--run", metavar="RUN_DIR", help="use this run's tuned policy")
    sample.add_argument(
        "--round", metavar="N", type=int, help="of this round (0: the run's reference; default: the last)"
    )
    sample.add_argument("-n", "--number", metavar="N", type=int, default=4, help="continuations (default: 4)")
    sample.add_argument(
        "--tokens", metavar="N", type=int, help="longest continuation (default: the run's limit, or 32)"
    )
    sample.add_argument("--temperature", metavar="T", type=float, help="default: the run's, or 1")
    sample.add_argument("--top-p", metavar="P", type=float, help="default: the run's, or 1")
    sample.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    sample.add_argument("--device", metavar="DEVICE", default="auto", help="cpu, cuda, ... (default: auto)")


def _add_rewards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rewards = commands.add_parser(
        "rewards", allow_abbrev=False, help="list the built-in rewards, or describe one with its options",
        description="List the built-in rewards: what each gives, and in which range. With a NAME, its options and their "
        "defaults, too.",
    )  # fmt: skip
    rewards.add_argument("name", metavar="NAME", nargs="?", help="describe this one")


REWARD_HELP = (
    "built-in name (see `rlhf-gym rewards`), path/file.py:function, module:function, a reward model's folder, http(s)://..., "
    "judge:URL, YAML file, or a mapping such as '{reward: length, unit: characters}'"
)


def _add_check_reward(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check-reward", allow_abbrev=False, help="try a reward out before training: spread, speed, what fools it",
        description="Score a model's responses to a task's prompts, and then responses that nobody would call good: what beats "
        "honest ones is what a policy will learn to write.",
    )  # fmt: skip
    check.add_argument(
        "reward",
        metavar="REWARD",
        help=REWARD_HELP,
    )
    check.add_argument("--task", metavar="NAME", default="sentiment", help="whose prompts (default: sentiment)")
    check.add_argument("--prompts", metavar="FILE", help="file of prompts instead")
    check.add_argument("--model", metavar="NAME_OR_PATH", default="embedded", help="who answers (default: embedded)")
    check.add_argument("-n", "--samples", metavar="N", type=int, default=64, help="responses (default: 64)")
    check.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    check.add_argument(
        "--time-limit",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="most seconds for one call of the reward (default: 60)",
    )
    check.add_argument("--strict", action="store_true", help="exit with 1 where something should be looked at")


def _add_serve_reward(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve-reward", allow_abbrev=False, help="serve a reward over HTTP to other machines",
        description="Answer POST /score with a reward's scores; GET /openapi.json describes it. A token is asked for where the "
        "environment variable RLHF_GYM_REWARD_TOKEN holds one.",
    )  # fmt: skip
    serve.add_argument(
        "reward",
        metavar="REWARD",
        help=REWARD_HELP,
    )
    serve.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default: this machine only")
    serve.add_argument("--port", metavar="N", type=int, default=8000, help="0 takes a free one (default: 8000)")


def _add_rate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    rate = commands.add_parser(
        "rate", allow_abbrev=False, help="let people answer queries in a browser",
        description="Serve the rating page of a run or of a feedback store, and print links that invite to it. A run with "
        "`--rater web` serves its own page; this one is for everything else.",
    )  # fmt: skip
    rate.add_argument("--serve", metavar="RUN_OR_STORE", help="a run's directory, a store's file, or a database's URL")
    rate.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="default: this machine only")
    rate.add_argument("--port", metavar="N", type=int, default=8722, help="0 takes a free one (default: 8722)")
    rate.add_argument("--url", metavar="URL", default="", help="public address, where a TLS proxy stands in front")
    rate.add_argument("--title", metavar="TEXT", default="Which response is better?", help="stands on every page")
    rate.add_argument("--guidelines", metavar="FILE", help="Markdown, instead of the standard ones")
    rate.add_argument(
        "--text", choices=("plain", "markdown"), default="plain", help="how responses are shown (default: plain)"
    )
    rate.add_argument(
        "--attributes", metavar="A,B,...", default="overall", help="what rating queries ask about (default: overall)"
    )
    rate.add_argument("--overlap", metavar="N", type=int, default=1, help="people who answer each query (default: 1)")
    rate.add_argument(
        "--lease", metavar="SECONDS", type=float, default=900, help="a question is kept for one rater so long"
    )
    rate.add_argument(
        "--check-questions",
        metavar="FILE",
        help="JSON Lines of queries whose answer is known, for --practice and --check-share",
    )
    rate.add_argument(
        "--check-share", metavar="P", type=float, default=0.0, help="share of questions with a known answer"
    )
    rate.add_argument(
        "--repeat-share", metavar="P", type=float, default=0.0, help="share of questions asked a second time"
    )
    rate.add_argument(
        "--practice", metavar="N", type=int, default=0, help="practice questions before the first real one"
    )
    rate.add_argument("--seed", metavar="N", type=int, default=0, help="of orders and shares (default: 0)")
    actions = rate.add_subparsers(dest="action", metavar="ACTION")
    invite = actions.add_parser("invite", allow_abbrev=False, help="print new invitation links")
    invite.add_argument("--store", metavar="RUN_OR_STORE", required=True, help="whose page")
    invite.add_argument("--admin", action="store_true", help="for an administrator")
    invite.add_argument("--number", metavar="N", type=int, default=1, help="so many links (default: 1)")
    invite.add_argument("--uses", metavar="N", type=int, default=1, help="people one link lets in (default: 1)")
    invite.add_argument("--days", metavar="N", type=int, default=30, help="until it expires (default: 30)")
    invite.add_argument("--label", metavar="TEXT", default="", help="a note for you, e.g. whom it is for")
    invite.add_argument("--url", metavar="URL", default="", help="the page's public address")
    invite.add_argument(
        "--port", metavar="N", type=int, default=8722, help="the page's port, without --url (default: 8722)"
    )
    forget = actions.add_parser("forget", allow_abbrev=False, help="remove what ties a rater's answers to a person")
    forget.add_argument("rater", metavar="RATER", help="the made-up name, e.g. web/calm-otter-41")
    forget.add_argument("--store", metavar="RUN_OR_STORE", required=True, help="in which store")
    export = actions.add_parser(
        "export", allow_abbrev=False, help="write the answers to a file, in a format of your choice",
        description="Write a store's answers to FILE: .jsonl, .json (one array), either with .gz, or .parquet. What a format "
        "has no place for is left out and counted.",
    )  # fmt: skip
    _add_exchange(export, "write")
    export.add_argument("--all", action="store_true", help="answers that were corrected later, too (native only)")
    take = actions.add_parser(
        "import", allow_abbrev=False, help="add the answers of a file to a store",
        description="Read comparisons from FILE (.jsonl, .json, either with .gz, or .parquet) into a store; where there is "
        "none, it is made. A file that is imported twice is imported once.",
    )  # fmt: skip
    _add_exchange(take, "read")
    take.add_argument("--rater", metavar="NAME", default="import", help="signs what names nobody (default: import)")


def _add_exchange(action: argparse.ArgumentParser, verb: str) -> None:
    action.add_argument("file", metavar="FILE", help=f"what to {verb}")
    action.add_argument("--store", metavar="RUN_OR_STORE", required=True, help="whose answers")
    action.add_argument(
        "--format", metavar="NAME", default="native",
        help="native (everything; the default), trl-explicit, trl-implicit, trl-conversational, trl-unpaired, hh, alpacafarm, "
        "openai-summarize, label-studio, argilla; docs/people.md says what each keeps",
    )  # fmt: skip
    action.add_argument(
        "--round", metavar="N", type=int, help="of one round only" if verb == "write" else "of these (default: 0)"
    )
