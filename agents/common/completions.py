"""Sample completions while an agent learns: on the console, in a file, in Weights & Biases."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.traces import Trace, as_columns, traces
from rlhf_gym.errors import ConfigError
from rlhf_gym.text import visible

LONGEST = 400  # characters of a prompt or response; the console shows what its width allows
PROMPT_END = 24  # characters of a prompt on the console


class Completions(IterationCallback):
    """A callback that shows some completions every few iterations, and after the last one.

    Args:
        every: completions are shown after every this many iterations, and after the first.
        count: number of completions to show (see :func:`~rlhf_gym.agents.common.traces.traces`).
        console: the console for a table of them; True is standard output, False prints nothing.
        file: a file that gets a line of JSON per completion, with all its tokens.
        wandb: log a ``wandb.Table`` named ``completions`` to the current W&B run.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self,
        every: int = 10,
        count: int = 4,
        *,
        console: Console | bool = True,
        file: str | os.PathLike[str] | None = None,
        wandb: bool = False,
    ) -> None:
        super().__init__()
        if every < 1 or count < 1:
            raise ConfigError(f"every and count must be at least 1, got {every} and {count}")
        self.every, self.count, self.wandb = every, count, wandb
        self.console = (Console() if console is True else console) or None
        self.file = None if file is None else Path(file)
        self._shown = 0

    def on_iteration_end(self, agent: Any) -> bool:
        """Show completions after the first iteration, and every few."""
        if agent.iteration == 1 or agent.iteration % self.every == 0:
            self._show(agent.iteration)
        return True

    def _on_training_end(self) -> None:
        agent: Any = self.model
        if agent.iteration:
            self._show(agent.iteration)

    def _show(self, iteration: int) -> None:
        if iteration == self._shown:
            return
        self._shown = iteration
        agent: Any = self.model
        found = traces(agent, self.count)
        if self.console:
            self.console.print(as_table(found, f"iteration {iteration}"))
        if self.file:
            append(self.file, iteration, found)
        if self.wandb:
            import wandb

            if wandb.run is None:
                raise ConfigError("Completions(wandb=True) needs a W&B run: call wandb.init() first")
            wandb.log({"completions": wandb_table(found)}, commit=False)


def as_table(found: Sequence[Trace], title: str) -> Table:
    """A table of traces for the console, one line each; markup and control characters in them are shown as text.

    Args:
        found: the traces.
        title: title of the table.
    """
    table = Table(
        title=title, title_justify="left", title_style="", box=None, expand=True, padding=(0, 1), header_style="dim"
    )
    for name in ("", "score", "KL", "tokens"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    table.add_column("prompt, response", overflow="ellipsis", no_wrap=True, ratio=1)
    for trace in found:
        length = f"{len(trace.tokens)}{'' if trace.ended else '+'}"
        prompt, response = (visible(text, LONGEST).replace("\n", "↵") for text in (trace.prompt, trace.response))
        end = prompt if len(prompt) <= PROMPT_END else "…" + prompt[-PROMPT_END:]  # the response goes on from there
        words = Text.assemble((end, "dim"), " | ", response.lstrip())
        table.add_row(trace.why, f"{trace.score:+z.2f}", "" if trace.kl is None else f"{trace.kl:z.2f}", length, words)
    return table


def append(file: Path, iteration: int, found: Sequence[Trace]) -> None:
    """Add traces to a file of JSON lines, each with its iteration.

    Args:
        file: the file; it is created if it is missing.
        iteration: the iteration of the traces.
        found: the traces.
    """
    lines = [json.dumps({"iteration": iteration, **asdict(trace)}) + "\n" for trace in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="ascii") as out:  # one write: a kill leaves whole lines, or one that is cut
        out.write("".join(lines))


def wandb_table(found: Sequence[Trace]) -> Any:
    """Traces as a ``wandb.Table``."""
    import wandb

    names, rows = as_columns(found)
    safe = [[visible(v) if isinstance(v, str) else v for v in row] for row in rows]
    return wandb.Table(columns=names, data=safe)
