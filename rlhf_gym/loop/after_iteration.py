"""Callbacks of a run, called after every iteration: a progress line, completions, a checkpoint, a new reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.logger import Logger

from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.completions import append, as_table, wandb_table
from rlhf_gym.agents.common.traces import traces
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.metrics_table import MetricsTable, WandbWriter
from rlhf_gym.loop.progress import Bar
from rlhf_gym.loop.reward_models import fit, fits
from rlhf_gym.loop.run_directory import write_json, write_text
from rlhf_gym.loop.train_reward import ProxyAndGold

# The line of metrics of an iteration: the column of metrics.csv, its word on the line, its format.
ON_THE_LINE = (
    ("objective/scores", "proxy", "+z.2f"), ("gold", "gold", "+z.2f"), ("objective/kl", "KL", "z.2f"),
    ("objective/entropy", "entropy", ".1f"), ("response_length", "length", ".1f"), ("loss/value_avg", "value loss", ".3f"),
    ("policy/clipfrac_avg", "clipped", ".1%"),
)  # fmt: skip
CHECKPOINT = "agent.zip"
SECONDS_FILE = "agent_seconds.json"
"""Seconds of a round's iterations by phase, for the report."""
COMPLETIONS_FILE = "completions.jsonl"


class Lines(IterationCallback):
    """Labels the row that an iteration writes; advances the bar and prints a line when the iteration is done.

    Args:
        context: the run.
        number: the round.
        table: ``metrics.csv``.
        bar: the stage's.
    """

    def __init__(self, context: RunContext, number: int, table: MetricsTable, bar: Bar) -> None:
        super().__init__()
        self._context, self._number, self._table, self._bar = context, number, table, bar

    def _on_rollout_start(self) -> None:
        self._table.where = (self._number, self.model.iteration + 1)  # type: ignore[attr-defined]

    def on_iteration_end(self, agent: Any) -> bool:
        """Show the iteration's metrics."""
        self._bar.update(agent.iteration)
        iterations = self._context.config.agent.iterations
        line = iteration_line(self._table.rows[-1], type(agent).__name__, iterations, agent.reward_share)
        self._context.progress.say(line)
        if agent.stopped is not None:
            self._context.progress.say(agent.stopped)
        return True


class RunCompletions(IterationCallback):
    """Shows and keeps some completions after the first iteration, every few, and the last: console, file, W&B.

    Args:
        context: the run.
        number: the round.
        done: iterations done already; what a killed process wrote of later ones is dropped.
        logger: gets a W&B table, if W&B is among its writers.
    """

    def __init__(self, context: RunContext, number: int, done: int, logger: Logger) -> None:
        super().__init__()
        self._context, self._number = context, number
        self._file = context.run.round(number) / COMPLETIONS_FILE
        self._wandb = [writer for writer in logger.output_formats if isinstance(writer, WandbWriter)]
        if self._file.exists():
            write_text(self._file, "".join(line + "\n" for line in self._lines_until(done)))

    def _lines_until(self, iteration: int) -> list[str]:
        kept = []
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["iteration"] <= iteration:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                continue
        return kept

    def on_iteration_end(self, agent: Any) -> bool:
        """Show and keep completions where they are due."""
        settings, iteration = self._context.config.log, agent.iteration
        last = iteration == self._context.config.agent.iterations or agent.stopped is not None
        if not settings.completions or not (iteration == 1 or iteration % settings.completions_every == 0 or last):
            return True
        found = traces(agent, settings.completions)
        append(self._file, iteration, found)
        title = f"round {self._number} iteration {iteration}: completions"
        self._context.progress.console.print(as_table(found, title))
        for writer in self._wandb:
            writer.table("completions", wandb_table(found), agent.num_timesteps)
        return True


class Checkpoints(IterationCallback):
    """Saves the agent every few iterations and after the last.

    Args:
        context: the run.
        number: the round.
        table: holds the seconds of the iterations so far, which are stored with the checkpoint.
    """

    def __init__(self, context: RunContext, number: int, table: MetricsTable) -> None:
        super().__init__()
        self._folder, self._settings, self._table = context.run.round(number), context.config.agent, table

    def on_iteration_end(self, agent: Any) -> bool:
        """Save where it is due."""
        settings = self._settings
        if agent.iteration % settings.checkpoint_every == 0 or agent.iteration == settings.iterations:
            agent.save(self._folder / CHECKPOINT)
            write_json(self._folder / SECONDS_FILE, self._table.seconds)
        return True


class Refits(IterationCallback):
    """Refits the reward model once people have given enough new answers; the agent then trains against the new one.

    A run that is resumed goes on with the newest reward model, also where that is newer than its agent's checkpoint.

    Args:
        context: the run.
        number: the round.
        reward: the reward that the agent is trained against.
    """

    def __init__(self, context: RunContext, number: int, reward: ProxyAndGold) -> None:
        super().__init__()
        self._context, self._number, self._reward = context, number, reward
        self._after = context.config.people.refit if context.people is not None else None

    def on_iteration_end(self, agent: Any) -> bool:
        """Fit if enough answers are new; after the last iteration there is nothing left to train."""
        if self._after is None or agent.iteration >= self._context.config.agent.iterations:
            return True
        run = self._context.run
        seen = max((one["judgements"] for one in fits(run.round(self._number))), default=0)
        with FeedbackStore(run.store_file, read_only=True) as store:
            new = store.count().current - seen
        if new >= self._after:
            self._context.progress.say(f"{new} new answers: the reward model is fitted anew")
            fit(self._context, self._number, iteration=agent.iteration)
            self._reward.replace(self._context.proxy(self._number))
        return True


def iteration_line(row: Mapping[str, str], title: str, iterations: int, reward_share: float | None = None) -> str:
    """Write an iteration's metrics on one line.

    Args:
        row: its row of the table.
        title: the agent's class.
        iterations: number of iterations of the round.
        reward_share: share of the iteration's time spent waiting for rewards, which the table does not hold: it has no clock.
    """
    metrics = [f"{word} {float(row[key]):{form}}" for key, word, form in ON_THE_LINE if row.get(key)]
    for key in row:  # a constraint's Lagrange multiplier, and by how much the constraint exceeds its level
        for ending in ("multiplier", "slack"):
            if key.startswith("reward/") and key.endswith(f"_{ending}") and row[key]:
                name = key.removeprefix("reward/").removeprefix("constrained_")
                metrics.append(f"{name} {float(row[key]):{'.2f' if ending == 'multiplier' else '+z.2f'}}")
    if left_out := float(row.get("reward/left_out") or 0):
        metrics.append(f"left out {left_out:.0f}, whose reward failed")
    if reward_share is not None:
        metrics.append(f"rewards {reward_share:.1%} of the time")
    number = f"{int(row['iteration']):>{len(str(iterations))}}/{iterations}"
    return f"round {row['round']} {title} {number}  {'  '.join(metrics)}"
