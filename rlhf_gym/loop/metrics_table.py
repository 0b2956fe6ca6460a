"""Where an iteration's metrics go: `metrics.csv`, and further writers of stable-baselines3's logger."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback.queries import content_id
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import to_settings
from rlhf_gym.loop.run_directory import RunDirectory, read_json, write_text

FIRST_COLUMNS = ("round", "iteration", "timesteps", "objective/scores", "gold", "objective/kl")
RENAMED = {"reward/gold": "gold", "reward/proxy": "proxy"}


class MetricsTable(KVWriter):
    """The table of metrics, one row an iteration. No wall-clock metrics: the same seed writes the same table.

    Args:
        path: the file; its rows are kept.

    Attributes:
        rows: all rows so far, as they are in the file.
        where: round and iteration of the row to come.
        seconds: duration of the iterations so far, by phase; not in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = list(FIRST_COLUMNS)
        self.rows: list[dict[str, str]] = []
        self.where = (1, 1)
        self.seconds: dict[str, float] = {}
        if path.exists():
            # A kill may have cut the last line short: a row counts only with its line end.
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
            reader = csv.DictReader(io.StringIO(whole + "\n"))
            self.columns = list(reader.fieldnames or FIRST_COLUMNS)
            self.rows = [{k: v or "" for k, v in row.items() if k} for row in reader]

    def keep_until(self, round_number: int, iteration: int) -> None:
        """Drop the rows after an iteration: a run that goes on from its checkpoint writes them again.

        Args:
            round_number: round of the last row to keep, from 1.
            iteration: its iteration within the round, from 1; 0 keeps none of the round.
        """
        kept = [row for row in self.rows if (int(row["round"]), int(row["iteration"])) <= (round_number, iteration)]
        if len(kept) < len(self.rows) or self.path.exists():
            self.rows = kept
            self._write_all()

    def timesteps(self) -> int:
        """Tokens generated so far in the whole run."""
        return int(self.rows[-1]["timesteps"]) if self.rows else 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row; a new column makes it rewrite the whole file.

        Args:
            key_values: the metrics by name.
            key_excluded: for each metric, the output formats that leave it out (stable-baselines3's); not used here.
            step: timesteps (tokens) so far.
        """
        metrics = {RENAMED.get(k, k): v for k, v in key_values.items() if not k.startswith("time/")}
        for key, value in key_values.items():
            if key.startswith("time/") and key.endswith("_seconds"):
                phase = key[len("time/") : -len("_seconds")]
                self.seconds[phase] = self.seconds.get(phase, 0.0) + float(value)
        row = {"round": self.where[0], "iteration": self.where[1], "timesteps": step, **metrics}
        self.rows.append({k: format_number(v) for k, v in row.items()})
        new = [k for k in row if k not in self.columns]
        self.columns += new
        if new or len(self.rows) == 1:
            self._write_all()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(self.rows[-1])
            file.flush()
            os.fsync(file.fileno())

    def _write_all(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def close(self) -> None:
        """Do nothing: the file is not kept open."""


def format_number(value: Any) -> str:
    """Format a number with up to nine significant digits: 0.1, not 0.10000000149011612.

    >>> format_number(0.1), format_number(3), format_number(1 / 3)
    ('0.1', '3', '0.333333333')
    """
    return f"{float(value):.9g}" if not isinstance(value, str) else value


class WandbWriter(KVWriter):
    """Hands metrics to Weights & Biases; one W&B run for one run directory, also after a resume.

    Args:
        run: the run directory.
        config: the configuration, shown with the metrics.
    """

    def __init__(self, run: RunDirectory, config: Config) -> None:
        import wandb

        begun = read_json(run.versions_file)["started_at"]
        # Offline by default: nothing leaves the machine, and no account or key is needed.
        self._run = wandb.init(
            project=config.log.wandb_project,
            mode=config.log.wandb_mode,
            dir=str(run.path),
            name=run.path.name,
            id=content_id("wandb", str(run.path.resolve()), begun)[:16],
            resume="allow",
            config=to_settings(config),
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Send one iteration's metrics.

        Args:
            key_values: the metrics by name.
            key_excluded: for each metric, the output formats that leave it out (stable-baselines3's); not used here.
            step: timesteps (tokens) so far.
        """
        self._run.log({RENAMED.get(k, k): v for k, v in key_values.items()}, step=step)

    def table(self, name: str, table: Any, step: int) -> None:
        """Send a ``wandb.Table``.

        Args:
            name: the table's name in W&B.
            table: a ``wandb.Table``.
            step: timesteps (tokens) so far.
        """
        self._run.log({name: table}, step=step)

    def close(self) -> None:
        """Flush, and end the W&B run."""
        self._run.finish()


def check_loggers(names: Sequence[str]) -> None:
    """Check before any work starts that the packages of the further loggers are installed.

    Raises:
        ConfigError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--log {name} needs the package {name!r}: pip install 'rlhf-gym[log]'")


def make_logger(run: RunDirectory, config: Config, table: MetricsTable) -> Logger:
    """The logger that agents write to: the table, and the loggers that ``log.to`` names.

    Args:
        run: the run's directory; TensorBoard's files go into its ``tensorboard/``.
        config: the configuration, of which ``log`` is used.
        table: the table of metrics.
    """
    writers: list[KVWriter] = [table]
    if "tensorboard" in config.log.to:
        writers.append(TensorBoardOutputFormat(str(run.path / "tensorboard")))
    if "wandb" in config.log.to:
        writers.append(WandbWriter(run, config))
    return Logger(folder=str(run.path), output_formats=writers)
