"""Agents of a run as contenders: the ordinary loop, to a budget, resumed from its own checkpoint."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from pathlib import Path
from typing import Any

from safetensors.torch import load

from rlhf_gym.bench.cells import Cell
from rlhf_gym.bench.contender import CurvePoint, Trained
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import Settings, build, merge
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.sections import keys

OWN_EVALUATION = 16
"""Prompts of the loop's own evaluation in each run: a benchmark measures all contenders itself, and alike."""


def run_config(cell: Cell, model: dict[str, Any], agent: str | None) -> Config:
    """The configuration of a cell's run.

    Settings of the suite and of the task hold for all contenders that have them; a contender's own must exist.

    Args:
        cell: the cell.
        model: the section ``model``.
        agent: the agent; None for a contender that is none, whose run has no training stage.

    Raises:
        ConfigError: a setting that does not exist or does not fit.
    """
    options = {
        "task": cell.task_name, "options": dict(cell.task_options), "part": cell.part,
        "validation_prompts": cell.validation_prompts, "test_prompts": cell.test_prompts,
    }  # fmt: skip
    base: Settings = {
        "task": {"name": "rlhf_gym.bench.split_task:split_task", "options": options},
        "model": {"device": "auto", **model},
        "reward_model": {"enabled": False},
        "evaluation": {"prompts": OWN_EVALUATION, "best_of": 0},
        "log": {"completions": 0},
        "run": {"seed": cell.seed, "threads": 1},
    }
    shared = {section: dict(values) for section, values in cell.run.items()}
    own = shared.pop("agent", {})
    section: dict[str, Any] = {"name": agent or "ppo"}
    if agent is not None:
        known = keys("agent", agent)
        section |= {name: value for name, value in own.items() if name in known} | dict(cell.settings)
        if "iterations" in section or "tokens" in section:
            raise ConfigError(
                f"{cell.contender}: a suite's budget says how long it trains; leave iterations and tokens out"
            )
    config = build(merge(base, shared, {"agent": section}))
    if agent is None:
        return config
    length = {"tokens": cell.budget}
    if cell.equal == "optimizer_steps":
        length = {"iterations": math.ceil(cell.budget / steps_per_iteration(config))}
    return build(merge(base, shared, {"agent": {**section, **length}}))


def steps_per_iteration(config: Config) -> int:
    """The optimizer steps of an iteration, as far as the settings say: minibatches times passes."""
    settings = config.agent.settings
    episodes = int(settings["n_episodes"])
    return int(settings.get("n_epochs") or 1) * math.ceil(episodes / (settings.get("batch_size") or episodes))


def trained_by_loop(run: RunDirectory, context: RunContext) -> Trained:
    """What a finished run has made of its budget.

    Args:
        run: its directory.
        context: its objects.
    """
    rows = list(csv.DictReader(io.StringIO(run.metrics_file.read_text(encoding="utf-8"))))
    curve = [
        CurvePoint(
            int(row["timesteps"]), float(row["gold"] or row["objective/scores"]), _number(row.get("objective/kl"))
        )
        for row in rows
        if row["gold"] or row["objective/scores"]
    ]
    tokens = int(rows[-1]["timesteps"]) if rows else 0
    return Trained(
        policy=context.policy(1),
        tokens=tokens,
        optimizer_steps=optimizer_steps(run.round(1) / "agent.zip"),
        curve=curve,
    )


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def optimizer_steps(checkpoint: Path) -> int:
    """The steps that a checkpoint's optimizer has counted; 0 for one that counts none.

    The optimizer's own count goes on through kills and resumes. TRPO's natural gradient steps are not among them.
    """
    with zipfile.ZipFile(checkpoint) as packed:
        tensors = load(packed.read("optimizer.safetensors"))
    return max((int(value) for name, value in tensors.items() if name.rpartition(".")[2].endswith("step")), default=0)
