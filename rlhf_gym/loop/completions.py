"""Sample completions of a run: on the console, in the round's folder for the report, in Weights & Biases."""

from __future__ import annotations

import json

from stable_baselines3.common.logger import Logger

from rlhf_gym.agents import TokenAlgorithm
from rlhf_gym.agents.common.completions import append, as_table, wandb_table
from rlhf_gym.agents.common.traces import traces
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.metrics_table import WandbWriter
from rlhf_gym.loop.run_directory import write_text

FILE = "completions.jsonl"


class SampleCompletions:
    """Looks at some completions after the first iteration, every few, and the last.

    Args:
        context: the run.
        number: the round.
        done: iterations done already; what was written of later ones by a process that was killed goes.
        logger: where W&B's table goes, if W&B is among its writers.
    """

    def __init__(self, context: RunContext, number: int, done: int, logger: Logger) -> None:
        settings = context.config.log
        self._count, self._every = settings.completions, settings.completions_every
        self._progress, self._number = context.progress, number
        self._file = context.run.round(number) / FILE
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

    def after(self, agent: TokenAlgorithm, *, last: bool) -> None:
        """An iteration is done."""
        iteration = agent.iteration
        if not self._count or not (iteration == 1 or iteration % self._every == 0 or last):
            return
        found = traces(agent, self._count)
        append(self._file, iteration, found)
        self._progress.console.print(as_table(found, f"round {self._number} iteration {iteration}: completions"))
        for writer in self._wandb:
            writer.table("completions", wandb_table(found), agent.num_timesteps)
