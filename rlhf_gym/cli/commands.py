"""The commands by name. Heavy modules are imported inside the functions that need them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from rlhf_gym.cli.analyse_command import analyse
from rlhf_gym.cli.bench_commands import bench, bench_hint
from rlhf_gym.cli.fit_commands import eval_reward, fit_rater, fit_reward
from rlhf_gym.cli.parser import FLAGS
from rlhf_gym.cli.plan_command import print_plan
from rlhf_gym.cli.quiet import quiet_libraries
from rlhf_gym.cli.rate_commands import rate
from rlhf_gym.cli.reward_commands import check_reward, rewards, serve_reward
from rlhf_gym.cli.stage_commands import evaluate, export, ilql, label, run_stages, sft, train_preferences
from rlhf_gym.cli.watch_command import watch
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import (
    Settings,
    agent_of,
    build,
    dump,
    load_settings,
    merge,
    parse_override,
    quick,
    to_settings,
)
from rlhf_gym.loop.run_directory import RunDirectory


def run(options: argparse.Namespace) -> None:
    """`rlhf-gym run`: run the loop, and print its summary.

    Raises:
        ConfigError: a wrong setting, or ``--resume`` without ``--out``.
    """
    run_stages(options, resolve(options))


def resume_hint(options: argparse.Namespace) -> str:
    """The command that goes on with an interrupted run; empty for other commands, and if there is no run to go on with."""
    if options.command == "bench":
        return bench_hint(options)
    given = {"sft": "data", "train-preferences": "data", "ilql": "data", "label": "prompts"}.get(options.command)
    if (given is None and options.command != "run") or options.out is None:
        return ""
    try:
        there = RunDirectory(options.out).config_file.exists()
    except OSError:  # a name that is too long, a folder that may not be read
        return ""
    what = f"{options.command} {shlex.quote(getattr(options, given))}" if given else "run"
    return f" Go on with: rlhf-gym {what} --out {shlex.quote(options.out)} --resume" if there else ""


def config(options: argparse.Namespace) -> None:
    """`rlhf-gym config`: print the resolved configuration."""
    print(dump(resolve(options), with_help=True), end="")


def plan(options: argparse.Namespace) -> int:
    """`rlhf-gym plan`: the memory that a run takes; see :func:`~rlhf_gym.cli.plan_command.print_plan`."""
    quiet_libraries()
    return print_plan(resolve(options), options)


def resolve(options: argparse.Namespace) -> Config:
    """Merge a command line's configuration: the file (or a resumed run's own), then ``--quick``, flags, ``--set``.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of bounds, or settings that contradict one another.
    """
    layers: list[Settings] = []
    out = getattr(options, "out", None)
    if options.config:
        layers.append(load_settings(options.config))
    elif getattr(options, "resume", False) and out and RunDirectory(out).config_file.exists():
        layers.append(to_settings(RunDirectory(out).config()))
    given = ((key, getattr(options, key)) for key, _ in FLAGS.values())
    later = [parse_override(f"{key}={value}") for key, value in given if value is not None]
    later += [parse_override(text) for text in options.overrides]
    if options.quick:
        layers.append(quick(agent_of(merge(*layers, *later))))
    return build(merge(*layers, *later))


def report(options: argparse.Namespace) -> None:
    """`rlhf-gym report`: write a run's report, and print its summary."""
    from rlhf_gym.loop.report import write_report
    from rlhf_gym.loop.summary import summary

    text = summary(options.run_dir)  # first: it refuses a folder that holds no run
    path = write_report(Path(options.run_dir))
    print(text, end="")
    print(f"report written: {path}")


def sample(options: argparse.Namespace) -> None:
    """`rlhf-gym sample`: print responses to a prompt.

    Raises:
        ConfigError: an option is out of bounds or does not fit another one, or the run has no such round.
    """
    if options.number < 1:
        raise ConfigError(f"--number must be at least 1, got {options.number}")
    if options.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {options.seed}")
    if options.tokens is not None and options.tokens < 1:
        raise ConfigError(f"--tokens must be at least 1, got {options.tokens}")
    if options.round is not None and options.run is None:
        raise ConfigError("--round goes with --run RUN_DIR")
    if options.model is not None and options.run is not None:
        raise ConfigError("--model and --run both name a model: leave one of them out")
    settings = RunDirectory(options.run).config() if options.run else build({})
    folder = _policy_folder(options) if options.run else None
    quiet_libraries()
    from rlhf_gym.lm.decoding import generate
    from rlhf_gym.lm.language_model import LanguageModel
    from rlhf_gym.lm.sampling import Limits, Sampling
    from rlhf_gym.text import visible

    trusted = settings.model.trust_remote_code
    if folder is not None:
        model = LanguageModel.load(
            folder, device=options.device, dtype=settings.model.dtype, trust_remote_code=trusted,
            chat_template=options.chat_template or "auto",  # the run's own is in the folder
        )  # fmt: skip
    else:
        model = LanguageModel.load(
            options.model or settings.model.name, device=options.device, dtype=settings.model.dtype,
            revision=settings.model.revision, trust_remote_code=trusted, allow_pickle=settings.model.allow_pickle,
            chat_template=options.chat_template or settings.model.chat_template,
        )  # fmt: skip
    tokens = options.tokens if options.tokens is not None else settings.task.max_new_tokens or 32
    sampling = Sampling(
        settings.sampling.temperature if options.temperature is None else options.temperature,
        settings.sampling.top_k,
        settings.sampling.top_p if options.top_p is None else options.top_p,
    )
    tokenizer = model.tokenizer
    limits = Limits.of(tokenizer, min(settings.task.min_new_tokens or 0, tokens), tokens)
    prompt = tokenizer.encode_prompt(options.prompt)
    stop = settings.task.stop or ()
    # A chat model answers; any other goes on where the prompt ends.
    lead = "" if getattr(tokenizer, "is_chat", False) else options.prompt
    for response in generate(model, [prompt] * options.number, limits, sampling=sampling, seed=options.seed, stop=stop):
        print(lead + visible(response.text))


def _policy_folder(options: argparse.Namespace) -> str | None:
    """The folder of the policy that ``sample --run`` means; None for the reference."""
    run_directory = RunDirectory(options.run)
    rounds = run_directory.finished_rounds()
    if options.round == 0:
        return None
    if not rounds:
        raise ConfigError(f"no round of {options.run} is trained yet; --round 0 samples from its reference")
    number = rounds[-1] if options.round is None else options.round
    if number not in rounds:
        raise ConfigError(
            f"{options.run} has no trained round {number}; expected one of 0, {', '.join(map(str, rounds))}"
        )
    return str(run_directory.policy(number))


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "run": run, "config": config, "plan": plan, "report": report, "watch": watch, "analyse": analyse, "sample": sample,
    "rewards": rewards,
    "check-reward": check_reward, "serve-reward": serve_reward, "label": label, "sft": sft, "fit-reward": fit_reward,
    "fit-rater": fit_rater,
    "eval-reward": eval_reward, "train-preferences": train_preferences, "ilql": ilql, "eval": evaluate, "export": export,
    "rate": rate, "bench": bench,
}  # fmt: skip
"""The commands by name; a command's result is the exit code, None for 0."""
