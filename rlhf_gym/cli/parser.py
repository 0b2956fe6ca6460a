"""The command line's options. Imports nothing but the configuration's fields, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from rlhf_gym.cli.analyse_command import add_analyse
from rlhf_gym.cli.bench_options import add_bench
from rlhf_gym.cli.fit_options import add_eval_reward, add_fit_rater, add_fit_reward
from rlhf_gym.cli.rate_options import add_address, add_rate
from rlhf_gym.cli.stage_options import add_eval, add_export, add_ilql, add_label, add_sft, add_train_preferences
from rlhf_gym.cli.watch_command import add_watch
from rlhf_gym.loop.config import SECTIONS
from rlhf_gym.version import __version__

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

FLAGS = {
    "--model": ("model.name", "NAME_OR_PATH"),
    "--task": ("task.name", "NAME"),
    "--prompts": ("task.prompts", "FILE"),
    "--reward": ("task.reward", "REWARD"),
    "--rater": ("rater.name", "RATER"),
    "--rounds": ("run.rounds", "N"),
    "--iterations": ("agent.iterations", "N"),
    "--kl-coef": ("agent.kl_coef", "X"),
    "--engine": ("agent.engine", "ENGINE"),
    "--ray": ("agent.ray", "ADDRESS"),
    "--ray-workers": ("agent.ray_workers", "N"),
    "--max-staleness": ("agent.max_staleness", "N"),
    "--seed": ("run.seed", "N"),
    "--device": ("model.device", "DEVICE"),
    "--chat-template": ("model.chat_template", "auto|on|off|FILE"),
    "--log": ("log.to", "NAME,..."),
}
"""Settings with a flag of their own, and the word for its value; all others are set by ``--set section.key=value``."""

REWARD_HELP = (
    "a built-in name (`rlhf-gym rewards` lists them), path/file.py:function, module:function, a reward model's folder, "
    "http(s)://..., judge:URL, a YAML file, or a mapping such as '{reward: length, unit: characters}'"
)

CHAT_TEMPLATE_HELP = (
    "the tokenizer's chat template: auto, used where it has one (default); on, it must have one; off, never used; or a file "
    "with another one"
)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="rlhf-gym", allow_abbrev=False,
        description="Reinforcement learning from human feedback, as a Gymnasium problem.",
        epilog="`rlhf-gym COMMAND --help` describes a command.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"rlhf-gym {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_config(commands)
    _add_plan(commands)
    _add_report(commands)
    add_watch(commands)
    add_analyse(commands)
    _add_sample(commands)
    _add_rewards(commands)
    _add_check_reward(commands)
    _add_serve_reward(commands)
    add_label(commands)
    add_sft(commands)
    add_fit_reward(commands)
    add_eval_reward(commands, REWARD_HELP)
    add_fit_rater(commands, REWARD_HELP)
    add_train_preferences(commands)
    add_ilql(commands)
    add_eval(commands)
    add_export(commands)
    add_rate(commands)
    add_bench(commands)
    return parser


def _add_run(commands: Commands) -> None:
    run = commands.add_parser(
        "run", allow_abbrev=False, help="run the loop: sample, ask raters, fit a reward model, train, evaluate",
        description="Run the whole loop in one directory: candidates, judgements, reward model, training, evaluation, report. "
        "A run that was interrupted or killed goes on with --resume.",
        epilog="`rlhf-gym config` prints every setting with its help and its default.",
    )  # fmt: skip
    run.add_argument("--out", metavar="DIR", help="directory of the run (default: runs/TASK-DATE-TIME)")
    run.add_argument(
        "--resume", action="store_true", help="go on with the run in --out; begin a new run there if there is none"
    )
    run.add_argument("--quiet", action="store_true", help="print only the summary, at the end")
    _add_settings(run)


def _add_config(commands: Commands) -> None:
    config = commands.add_parser(
        "config", allow_abbrev=False, help="print the configuration as YAML, every setting with its help",
        description="Print the configuration that `rlhf-gym run` would use with the same options: every setting with its help, "
        "as YAML that --config takes.",
    )  # fmt: skip
    _add_settings(config)


def _add_plan(commands: Commands) -> None:
    plan = commands.add_parser(
        "plan", allow_abbrev=False, help="say how much memory a run's training will take, before anything is loaded",
        description="Trace an iteration of the run that `rlhf-gym run` would do with the same options, on tensors without "
        "data: what holds memory, the peak of each phase, and with --memory the settings that make it fit. Only the model's "
        "configuration is read.",
    )  # fmt: skip
    plan.add_argument("--prompt-tokens", type=int, default=64, metavar="N", help="tokens of each prompt (default: 64)")
    plan.add_argument(
        "--response-tokens", type=int, metavar="N", help="tokens of each response (default: task.max_new_tokens, or 64)"
    )
    plan.add_argument(
        "--memory", metavar="SIZE",
        help="memory that there is for a process, e.g. 24GB: say what would make the run fit",
    )  # fmt: skip
    plan.add_argument(
        "--processes", type=int, default=1, metavar="N",
        help="number of processes that are to learn together, as `accelerate launch` starts them: plan each one (default: 1)",
    )  # fmt: skip
    plan.add_argument(
        "--parts", action="store_true",
        help="each process keeps a part of the weights, as with `accelerate launch --use_fsdp`; see docs/scaling.md",
    )  # fmt: skip
    _add_settings(plan)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run`, `config` and `plan` share: a file, overrides, flags."""
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags and --set override it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
        help="override any setting, e.g. --set agent.learning_rate=3e-4; can be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="few prompts and iterations: shows within a minute that everything works"
    )
    # The agents' settings stand with the agents, whose import takes seconds: the help of these is repeated here.
    helps = {
        "agent.kl_coef": "weight of the KL penalty",
        "agent.engine": "what generates the agent's responses: builtin, transformers, vllm, vllm:http://host:port, "
        "openai:http://host:port or module:Class; see docs/engines.md",
        "agent.ray": "responses are generated and scored by workers on Ray: local starts Ray on this machine, auto or an "
        "address takes a cluster; see docs/scaling.md",
        "agent.ray_workers": "with --ray: number of workers, 2 without it",
        "agent.max_staleness": "with --ray: workers generate while the agent learns, with weights up to so many iterations "
        "old; 0 without it",
    }
    helps |= {
        f"{name}.{f.name}": f.metadata["help"] for name, cls in SECTIONS.items() for f in fields(cls) if f.metadata
    }
    flags = parser.add_argument_group("settings with a flag of their own")
    for flag, (key, metavar) in FLAGS.items():
        flags.add_argument(flag, metavar=metavar, dest=key, help=f"{helps[key]} ({key})".replace("%", "%%"))


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report", allow_abbrev=False, help="write the HTML report of a run again, and print its summary",
        description="Write report.html of a run, finished or not, and print its summary on one screen.",
    )  # fmt: skip
    report.add_argument("run_dir", metavar="RUN_DIR", help="directory of the run")


def _add_sample(commands: Commands) -> None:
    sample = commands.add_parser(
        "sample", allow_abbrev=False, help="print responses of a model, or of a run's tuned policy, to a prompt",
        description="Print responses to a prompt, generated by a model or by a run's tuned policy. A chat model answers the "
        "prompt; any other model continues it.",
    )  # fmt: skip
    sample.add_argument("prompt", metavar="PROMPT", help="the prompt")
    sample.add_argument(
        "--model", metavar="NAME_OR_PATH", help="embedded, a folder or a name on the hub (default: embedded)"
    )
    sample.add_argument("--chat-template", metavar="auto|on|off|FILE", help=CHAT_TEMPLATE_HELP)
    sample.add_argument("--run", metavar="RUN_DIR", help="directory of a run, whose tuned policy responds instead")
    sample.add_argument(
        "--round",
        metavar="N",
        type=int,
        help="with --run: the round, 0 for the reference (default: the last trained one)",
    )
    sample.add_argument("-n", "--number", metavar="N", type=int, default=4, help="number of responses (default: 4)")
    sample.add_argument(
        "--tokens",
        metavar="N",
        type=int,
        help="longest response, in tokens (default: the run's task.max_new_tokens, or 32)",
    )
    sample.add_argument("--temperature", metavar="T", type=float, help="above 0 (default: the run's temperature, or 1)")
    sample.add_argument("--top-p", metavar="P", type=float, help="above 0, at most 1 (default: the run's top_p, or 1)")
    sample.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the responses (default: 0)")
    sample.add_argument(
        "--device", metavar="DEVICE", default="auto", help="cpu, cuda, ... (default: auto, a GPU if there is one)"
    )


def _add_rewards(commands: Commands) -> None:
    rewards = commands.add_parser(
        "rewards", allow_abbrev=False, help="list the built-in rewards, or describe one with its options",
        description="List the built-in rewards: what each scores, and its range. With NAME, describe one, its options and "
        "their defaults.",
    )  # fmt: skip
    rewards.add_argument("name", metavar="NAME", nargs="?", help="the reward to describe")


def _add_check_reward(commands: Commands) -> None:
    check = commands.add_parser(
        "check-reward", allow_abbrev=False, help="check a reward before training: its spread, its speed, what fools it",
        description="Score a model's responses to a task's prompts, and then responses that nobody would call good. Whatever "
        "scores better than the model's own responses is what a policy will learn to write.",
    )  # fmt: skip
    check.add_argument(
        "reward",
        metavar="REWARD",
        nargs="?",
        help=f"{REWARD_HELP}; left out: the own reward of the task that --task names",
    )
    check.add_argument("--task", metavar="NAME", help="task of the prompts (default: sentiment)")
    check.add_argument("--prompts", metavar="FILE", help="file of prompts that replaces the task's own")
    check.add_argument(
        "--model", metavar="NAME_OR_PATH", default="embedded", help="model that responds (default: embedded)"
    )
    check.add_argument("--chat-template", metavar="auto|on|off|FILE", default="auto", help=CHAT_TEMPLATE_HELP)
    check.add_argument(
        "-n", "--samples", metavar="N", type=int, default=64, help="number of responses, at least 2 (default: 64)"
    )
    check.add_argument("--seed", metavar="N", type=int, default=0, help="seed of the responses (default: 0)")
    check.add_argument(
        "--time-limit", metavar="SECONDS", type=float, default=60.0, help="longest call of the reward (default: 60)"
    )
    check.add_argument(
        "--strict", action="store_true", help="exit with code 1 if there is something to look at before training"
    )


def _add_serve_reward(commands: Commands) -> None:
    serve = commands.add_parser(
        "serve-reward", allow_abbrev=False, help="serve a reward to other machines over HTTP",
        description="Answer POST /score with a reward's scores, until Ctrl-C; GET /openapi.json describes the service. If the "
        "environment variable RLHF_GYM_REWARD_TOKEN holds a token, every request must bring it.",
    )  # fmt: skip
    serve.add_argument("reward", metavar="REWARD", help=REWARD_HELP)
    add_address(serve, port=8000)
