"""A run's callbacks after every iteration: progress line, sample completions, checkpoint, refit of the reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from rlhf_gym.loop.train_reward import ProxyAndGold
from rlhf_gym.loop.whole_files import write_json, write_text

# What an iteration's line shows: the column of metrics.csv, its word on the line, its format.
ON_THE_LINE = (
    ("objective/scores", "proxy", "+z.2f"), ("gold", "gold", "+z.2f"), ("validation/gold", "validation gold", "+z.2f"),
    ("objective/kl", "KL", "z.2f"),
    ("objective/entropy", "entropy", ".1f"), ("response_length", "length", ".1f"), ("loss/value_avg", "value loss", ".3f"),
    ("policy/clipfrac_avg", "clipped", ".1%"),
)  # fmt: skip
# Likewise of agents that learn given responses: nothing is scored, and nothing is drawn that a KL could be measured on.
LEARNED = (
    ("train/loss", "loss", ".3f"), ("rewards/accuracies", "prefers chosen", ".1%"), ("response_length", "length", ".1f"),
    ("validation/gold", "validation gold", "+z.2f"),
)  # fmt: skip
CHECKPOINT = "agent.zip"
SECONDS_FILE = "agent_seconds.json"
"""Seconds of a round's iterations up to its checkpoint, by phase, for the report."""
COMPLETIONS_FILE = "completions.jsonl"


class ProgressLines(IterationCallback):
    """Tells the table which iteration its next row is of; afterwards advances the bar and prints a line.

    Args:
        context: the run.
        number: the round.
        table: ``metrics.csv``.
        bar: the stage's bar.
    """

    def __init__(self, context: RunContext, number: int, table: MetricsTable, bar: Bar) -> None:
        super().__init__()
        self._context, self._number, self._table, self._bar = context, number, table, bar

    def _on_rollout_start(self) -> None:
        self._table.where = (self._number, self.model.iteration + 1)  # type: ignore[attr-defined]

    def on_iteration_end(self, agent: Any) -> bool:
        """Print the iteration's metrics, and why training has stopped where it has."""
        self._bar.update(agent.iteration)
        settings = self._context.config.agent
        iterations = settings.iterations if settings.tokens is None else None
        columns = ON_THE_LINE if self._context.given is None else LEARNED
        line = iteration_line(
            self._table.rows[-1], type(agent).__name__, iterations, agent.reward_share, columns=columns
        )
        self._context.progress.say(line)
        if agent.stopped is not None:
            self._context.progress.say(agent.stopped)
        return True


class RunCompletions(IterationCallback):
    """Prints and stores sample completions of the first iteration, of every few, and of the last; sends them to W&B, too.

    Args:
        context: the run.
        number: the round.
        done: iterations done already; completions that a killed process has stored of later ones are dropped.
        logger: the run's logger; its W&B writer, if it has one, gets a table.
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
        """Print and store completions if they are due."""
        if self._context.given is not None:
            return True  # nothing is generated
        settings, iteration = self._context.config.log, agent.iteration
        done = self._context.config.agent.is_done(iteration, agent.num_timesteps)
        last = done or agent.stopped is not None
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
    """Saves the agent every few iterations, after the last, and once training has stopped by itself.

    The checkpoint says that it has stopped: a run that is killed after that trains no further.

    Args:
        context: the run.
        number: the round.
        table: holds the seconds of the iterations so far, which are stored with the checkpoint.
    """

    def __init__(self, context: RunContext, number: int, table: MetricsTable) -> None:
        super().__init__()
        self._folder, self._settings, self._table = context.run.round(number), context.config.agent, table

    def on_iteration_end(self, agent: Any) -> bool:
        """Save a checkpoint if it is due."""
        last = self._settings.is_done(agent.iteration, agent.num_timesteps) or agent.stopped is not None
        if last or agent.iteration % self._settings.checkpoint_every == 0:
            agent.save(self._folder / CHECKPOINT)
            write_json(self._folder / SECONDS_FILE, self._table.seconds)
        return True


class Refits(IterationCallback):
    """Refits the reward model whenever people have given enough new answers; the agent is then trained against the new one.

    A run that goes on after a kill takes the newest reward model, even if that is newer than the agent's checkpoint.

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
        """Fit if there are enough new answers; not after the last iteration, when nothing is left to train."""
        if self._after is None or self._context.config.agent.is_done(agent.iteration, agent.num_timesteps):
            return True
        run = self._context.run
        seen = max((one["last"] for one in fits(run.round(self._number))), default=0)
        with FeedbackStore(run.store_file, read_only=True) as store:
            new = len(store.answers(to_learn=True, after=seen))
        if new >= self._after:
            self._context.progress.say(f"{new} new answers: fitting the reward model again")
            fit(self._context, self._number, iteration=agent.iteration)
            self._reward.replace(self._context.proxy(self._number))
        return True


def iteration_line(
    row: Mapping[str, str],
    title: str,
    iterations: int | None,
    reward_share: float | None = None,
    *,
    columns: Sequence[tuple[str, str, str]] = ON_THE_LINE,
) -> str:
    """Write an iteration's metrics on one line.

    Args:
        row: the iteration's row of the table.
        title: the agent's class.
        iterations: number of iterations in the round; None where it is not known.
        reward_share: share of the iteration's time spent waiting for rewards (the table holds no times); None leaves it out.
        columns: columns of the table, their words on the line, and formats.
    """
    metrics = [f"{word} {float(row[key]):{form}}" for key, word, form in columns if row.get(key)]
    for key in row:  # a constraint's Lagrange multiplier, and by how much the constraint exceeds its level
        for ending in ("multiplier", "slack"):
            if key.startswith("reward/") and key.endswith(f"_{ending}") and row[key]:
                name = key.removeprefix("reward/").removeprefix("constrained_")
                metrics.append(f"{name} {float(row[key]):{'.2f' if ending == 'multiplier' else '+z.2f'}}")
    if left_out := float(row.get("reward/left_out") or 0):
        metrics.append(f"{left_out:.0f} left out: reward failed")
    if reward_share is not None:
        metrics.append(f"rewards {reward_share:.1%} of the time")
    number = row["iteration"] if iterations is None else f"{int(row['iteration']):>{len(str(iterations))}}/{iterations}"
    return f"round {row['round']} {title} {number}  {'  '.join(metrics)}"
