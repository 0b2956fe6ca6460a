"""The commands that do one stage of the loop by itself, by the loop's own code."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_gym.cli.columns import columns_of
from rlhf_gym.cli.quiet import quiet_libraries
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import Settings, build, merge, parse_override, to_settings
from rlhf_gym.loop.run_directory import RunDirectory

if TYPE_CHECKING:
    from rlhf_gym.loop.given_data import Given, GivenData
    from rlhf_gym.tasks import Task

FLAGS = {
    "model": "model.name", "device": "model.device", "seed": "run.seed", "reward": "task.reward", "rater": "rater.name",
    "query_type": "rater.query_type", "candidates": "sampling.candidates", "loss": "agent.loss", "beta": "agent.beta",
    "learning_rate": "agent.learning_rate",
}  # fmt: skip
"""Options of these commands, and the settings that they are."""


def sft(options: argparse.Namespace) -> None:
    """`rlhf-gym sft`: supervised fine-tuning on given responses, as a run.

    Raises:
        ConfigError: a wrong setting.
    """
    _train_on_data(options, "sft", "data")


def train_preferences(options: argparse.Namespace) -> None:
    """`rlhf-gym train-preferences`: offline learning from stored preferences, as a run.

    Raises:
        ConfigError: a wrong setting.
    """
    _train_on_data(options, "preference_optimization", "preferences")


def ilql(options: argparse.Namespace) -> None:
    """`rlhf-gym ilql`: offline RL on stored responses with rewards, as a run.

    Raises:
        ConfigError: a wrong setting.
    """
    _train_on_data(options, "ilql", "trajectories")


def label(options: argparse.Namespace) -> None:
    """`rlhf-gym label`: the candidates and judgements of a run, and no more.

    Raises:
        ConfigError: a wrong setting.
    """
    loaded: Task | None = None
    if (config := _resumed(options)) is None:
        is_file = Path(options.prompts).is_file()
        task: dict[str, Any] = {"prompts": options.prompts} if is_file else {"name": options.prompts}
        if options.task is not None:
            if not is_file:
                raise ConfigError(f"PROMPTS {options.prompts!r} is no file; --task goes with a file of prompts")
            task["name"] = options.task
        given = _given(options)
        config = build(merge({"task": task}, given))
        if "prompts" not in given.get("sampling", {}):
            from rlhf_gym.loop.run_task import task_of

            loaded = task_of(config.task)
            if loaded.conversation is None:  # whose environment has as many openings as are wanted
                config = build(merge({"task": task, "sampling": {"prompts": len(loaded.prompts)}}, given))
    run_stages(options, config, ("sample", "label"), task=loaded)


def run_stages(
    options: argparse.Namespace,
    config: Config,
    stages: Sequence[str] | None = None,
    *,
    task: Task | None = None,
    given: GivenData | None = None,
) -> None:
    """Run stages of the loop in the directory ``--out``, and print its summary.

    Args:
        options: the command's.
        config: the configuration of the run.
        stages: those of each round to do; None does all.
        task: the configuration's, where it is loaded already.
        given: the rows of ``agent.data``, where they are read already.

    Raises:
        ConfigError: ``--resume`` without ``--out``, or a directory that is occupied.
    """
    if options.out is None:
        if options.resume:
            raise ConfigError("--resume needs the run's directory: --out DIR")
        name = config.task.name.rpartition(":")[2] if options.command == "run" else options.command
        options.out = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    quiet_libraries()
    from rlhf_gym.agents.common.launch import process_ranks
    from rlhf_gym.loop.progress import Progress
    from rlhf_gym.loop.rounds import run_loop

    ranks = process_ranks()
    options.out = ranks.from_main(lambda: options.out)  # a name by rank 0's clock
    if ranks.is_main and options.resume and not RunDirectory(options.out).config_file.exists():
        print(f"rlhf-gym: there is no run in {options.out} to go on with; a new one begins", file=sys.stderr)
    page = None
    if ranks.is_main and config.asks_people:
        from rlhf_gym.web.run_page import RunPage

        page = RunPage()
    progress = Progress(quiet=options.quiet)
    directory = run_loop(
        config, options.out, resume=options.resume, progress=progress, page=page, stages=stages, task=task, given=given
    )
    if ranks.is_main:
        print(("" if options.quiet else "\n") + (directory.path / "summary.txt").read_text(encoding="utf-8"), end="")
    ranks.leave()


def evaluate(options: argparse.Namespace) -> None:
    """`rlhf-gym eval`: measure a model's responses to a task's prompts.

    Raises:
        ConfigError: an option is out of bounds, or ``--out`` is there already.
    """
    if options.out is not None and Path(options.out).exists():
        raise ConfigError(f"{options.out} is there already: nothing is written over it; give another --out")
    quiet_libraries()
    from rlhf_gym.loop.model_evaluation import EvalSettings, evaluate_model
    from rlhf_gym.loop.whole_files import write_json

    found = evaluate_model(
        options.model,
        EvalSettings(
            task=options.task, prompts=options.prompts, reward=options.reward, number=options.number,
            pass_at=tuple(options.pass_at), threshold=options.threshold, against=options.against, rater=options.rater,
            limit=options.limit, max_new_tokens=options.tokens, temperature=options.temperature, seed=options.seed,
            device=options.device, on_too_long=options.on_too_long,
        ),
    )  # fmt: skip
    print(found.as_text())
    if options.out is not None:
        write_json(Path(options.out), found.as_dict())


def export(options: argparse.Namespace) -> None:
    """`rlhf-gym export`: write a run's policy as a plain transformers folder with a model card."""
    from rlhf_gym.loop.export import export_policy

    folder = export_policy(options.run, options.to, round_number=options.round)
    print(f"written: {folder} (transformers: AutoModelForCausalLM.from_pretrained({str(folder)!r}))")


def _train_on_data(options: argparse.Namespace, agent: str, argument: str) -> None:
    if not (math.isfinite(options.passes) and options.passes > 0):
        raise ConfigError(f"--passes must be a number above 0, got {options.passes}")
    data: GivenData | None = None
    if (config := _resumed(options)) is None:
        first: Settings = {
            "task": {"name": options.task or "data", "on_too_long": "truncate"},
            "reward_model": {"enabled": False},
            "agent": {
                "name": agent,
                "data": options.data,
                "data_format": options.format or "auto",
                "data_columns": columns_of(options.columns),
            },
        }
        given = _given(options)
        config = build(merge(first, given))
        from rlhf_gym.loop.read_given import read_given

        data = read_given(config.agent, argument, config.task.held_out_fraction)
        if options.quiet and data.remarks:  # else the run says it
            print(f"{data.source}: {data.remarks}", file=sys.stderr)
        if "iterations" not in given.get("agent", {}):
            sizes = _sizes(config, data.train, argument, chosen=given.get("agent", {}), passes=options.passes)
            config = build(merge(first, {"agent": sizes}, given))
    run_stages(options, config, given=data)


def _sizes(
    config: Config, rows: Sequence[Given], argument: str, *, chosen: Settings | dict[str, Any], passes: float
) -> dict[str, Any]:
    """The number of iterations that make so many passes over the data, and no more responses in one than there are."""
    single = argument != "preferences"
    responses = len(rows) if single else sum(len(row.responses) for row in rows)
    episodes = int(config.agent.settings["n_episodes"])
    sizes: dict[str, Any] = {}
    if not {"n_episodes", "n_envs"} & set(chosen) and responses < episodes:
        sizes["n_episodes"] = episodes = max(2, responses - (0 if single else responses % 2))
    return {**sizes, "iterations": max(1, math.ceil(passes * responses / episodes))}


def _given(options: argparse.Namespace) -> Settings:
    """The settings that the command line gives: flags, then ``--set``."""
    flags = ((key, getattr(options, name, None)) for name, key in FLAGS.items())
    return merge(
        *(parse_override(f"{key}={value}") for key, value in flags if value is not None),
        *map(parse_override, options.overrides),
    )


def _resumed(options: argparse.Namespace) -> Config | None:
    """The configuration of the run to go on with, with the command line's changes; None where a new run begins."""
    if not (options.resume and options.out and RunDirectory(options.out).config_file.exists()):
        return None
    return build(merge(to_settings(RunDirectory(options.out).config()), _given(options)))
