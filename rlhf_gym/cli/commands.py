"""The commands. Heavy modules are imported inside the functions that need them."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from rlhf_gym.cli.parser import FLAGS
from rlhf_gym.cli.quiet import quiet_libraries
from rlhf_gym.cli.rate_commands import rate
from rlhf_gym.cli.reward_commands import check_reward, rewards, serve_reward
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

__all__ = ["check_reward", "config", "rate", "report", "rewards", "run", "sample", "serve_reward"]


def run(options: argparse.Namespace) -> None:
    """`rlhf-gym run`: run the loop, and print its summary."""
    config = resolve(options)
    out = out_directory(options, config)
    quiet_libraries()
    from rlhf_gym.loop.progress import Progress
    from rlhf_gym.loop.rounds import run_loop

    if options.resume and not RunDirectory(out).config_file.exists():
        print(f"rlhf-gym: there is no run in {out} to go on with; a new one begins", file=sys.stderr)
    page = None
    if config.asks_people:
        from rlhf_gym.web.run_page import RunPage

        page = RunPage()
    directory = run_loop(config, out, resume=options.resume, progress=Progress(quiet=options.quiet), page=page)
    print(("" if options.quiet else "\n") + (directory.path / "summary.txt").read_text(encoding="utf-8"), end="")


def config(options: argparse.Namespace) -> None:
    """`rlhf-gym config`: print the resolved configuration."""
    print(dump(resolve(options), with_help=True), end="")


def report(options: argparse.Namespace) -> None:
    """`rlhf-gym report`: write a run's report, and print its summary."""
    from rlhf_gym.loop.report import write_report
    from rlhf_gym.loop.summary import summary

    text = summary(options.run_dir)  # first: it says it where this is no run
    path = write_report(Path(options.run_dir))
    print(text, end="")
    print(f"report written: {path}")


def sample(options: argparse.Namespace) -> None:
    """`rlhf-gym sample`: print responses to a prompt.

    Raises:
        ConfigError: an option out of bounds, or the run has no such round.
    """
    if options.number < 1:
        raise ConfigError(f"--number must be at least 1, got {options.number}")
    if options.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {options.seed}")
    if options.round is not None and options.run is None:
        raise ConfigError("--round goes with --run RUN_DIR")
    config = RunDirectory(options.run).config() if options.run else build({})
    name = _policy_folder(options, config) if options.run else options.model
    quiet_libraries()
    from rlhf_gym.lm.decoding import generate
    from rlhf_gym.lm.language_model import LanguageModel
    from rlhf_gym.lm.sampling import Limits, Sampling
    from rlhf_gym.text import visible

    model = LanguageModel.load(name, device=options.device, trust_remote_code=config.model.trust_remote_code)
    tokens = options.tokens if options.tokens is not None else config.task.max_new_tokens or 32
    if tokens < 1:
        raise ConfigError(f"--tokens must be at least 1, got {tokens}")
    settings = config.sampling
    sampling = Sampling(
        settings.temperature if options.temperature is None else options.temperature,
        settings.top_k,
        settings.top_p if options.top_p is None else options.top_p,
    )
    tokenizer = model.tokenizer
    limits = Limits(tokenizer.eos_id, (tokenizer.pad_id,), config.task.min_new_tokens or 0, tokens)
    prompt = tokenizer.encode_prompt(options.prompt)
    stop = config.task.stop or ()
    # A chat model answers; any other goes on where the prompt ends.
    lead = "" if getattr(tokenizer, "is_chat", False) else options.prompt
    for written in generate(model, [prompt] * options.number, limits, sampling=sampling, seed=options.seed, stop=stop):
        print(lead + visible(written.text))


def _policy_folder(options: argparse.Namespace, config: Config) -> str:
    """The tuned policy that `sample --run` means."""
    run_directory = RunDirectory(options.run)
    rounds = run_directory.finished_rounds()
    if options.round == 0:
        return config.model.name
    if not rounds:
        raise ConfigError(f"no round of {options.run} is trained yet; --round 0 samples from its reference")
    number = rounds[-1] if options.round is None else options.round
    if number not in rounds:
        raise ConfigError(
            f"{options.run} has no trained round {number}; expected one of 0, {', '.join(map(str, rounds))}"
        )
    return str(run_directory.round(number) / "policy")


def resolve(options: argparse.Namespace) -> Config:
    """Merge a command line's configuration: the file (or a resumed run's own), then ``--quick``, flags, ``--set``.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of bounds.
    """
    layers: list[Settings] = []
    out = getattr(options, "out", None)
    if options.config:
        layers.append(load_settings(options.config))
    elif getattr(options, "resume", False) and out and RunDirectory(out).config_file.exists():
        layers.append(to_settings(RunDirectory(out).config()))
    given = ((key, getattr(options, key)) for key in FLAGS.values())
    later = [parse_override(f"{key}={value}") for key, value in given if value is not None]
    later += [parse_override(text) for text in options.overrides]
    if options.quick:
        layers.append(quick(agent_of(merge(*layers, *later))))
    return build(merge(*layers, *later))


def out_directory(options: argparse.Namespace, config: Config) -> str:
    """``--out``, or a new directory named after task and time.

    Args:
        options: the parsed command line; a new directory is also set as its ``out``.
        config: the resolved configuration, which names the task.

    Raises:
        ConfigError: ``--resume`` without ``--out``.
    """
    if options.out is None:
        if options.resume:
            raise ConfigError("--resume needs the run's directory: --out DIR")
        options.out = f"runs/{config.task.name.rpartition(':')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    return str(options.out)


def resume_hint(options: argparse.Namespace) -> str:
    """How to go on with an interrupted run; empty for other commands."""
    if options.command != "run":
        return ""
    if options.out is None:
        out_directory(options, resolve(options))
    return f" Go on with: rlhf-gym run --out {shlex.quote(options.out)} --resume"
