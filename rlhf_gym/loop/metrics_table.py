"""The writers of an iteration's metrics: ``metrics.csv``, Weights & Biases, TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback.queries import content_id
from rlhf_gym.loop.config import Config, LogConfig
from rlhf_gym.loop.config_file import to_settings
from rlhf_gym.loop.iteration_times import TIMES_FILE, IterationTimes
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.whole_files import read_json, write_text

POSITION = ("round", "iteration", "timesteps")
FIRST_COLUMNS = (*POSITION, "objective/scores", "gold", "objective/kl")
RENAMED = {"reward/gold": "gold", "reward/proxy": "proxy"}


class MetricsTable(KVWriter):
    """The table of metrics, a row for each iteration. It holds no times, so that the same seed writes the same table.

    Times go to ``times.jsonl`` beside it.

    Args:
        path: the file; the rows in it are kept.

    Attributes:
        rows: all rows so far, as they are in the file.
        where: round and iteration of the next row.
        seconds: seconds of the iterations so far, by phase; not in the file.

    Raises:
        ConfigError: the file is not a table that a run wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._times = IterationTimes(path.with_name(TIMES_FILE))
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
            if not all(row.get(column, "").isdecimal() for row in self.rows for column in POSITION):
                raise ConfigError(
                    f"{path} is not the table that the run wrote (every row has whole numbers in the columns "
                    f"{', '.join(POSITION)}; columns are separated by commas): restore it from a copy"
                )

    def keep_until(self, round_number: int, iteration: int) -> None:
        """Drop the rows after an iteration: a run that goes on from its checkpoint writes them again.

        Args:
            round_number: round of the last row to keep, from 1.
            iteration: its iteration within the round, from 1; 0 keeps none of the round.
        """
        if self.path.exists():
            last = (round_number, iteration)
            self.rows = [row for row in self.rows if (int(row["round"]), int(row["iteration"])) <= last]
            self._write_all()
        self._times.keep_until((round_number, iteration))

    def timesteps(self) -> int:
        """Tokens generated so far in the whole run."""
        return int(self.rows[-1]["timesteps"]) if self.rows else 0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Append one row; if it has a new column, the whole file is written again.

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
        self._times.add(self.where, key_values)
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
    """Format a float with up to nine significant digits (0.1, not 0.10000000149011612), a whole number with all its digits.

    >>> format_number(0.1), format_number(3), format_number(1 / 3)
    ('0.1', '3', '0.333333333')
    """
    if isinstance(value, str):
        return value
    return str(int(value)) if isinstance(value, int | np.integer) else f"{float(value):.9g}"


class WandbWriter(KVWriter):
    """Sends metrics to Weights & Biases: one W&B run for one run directory, also after a resume.

    Args:
        run: the run's directory.
        config: the configuration, shown with the metrics.
    """

    def __init__(self, run: RunDirectory, config: Config) -> None:
        import wandb

        begun = (read_json(run.versions_file) or {}).get("started_at", "")
        # Offline by default: nothing leaves the machine, and no account or key is needed.
        with _wandb_errors():
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
        """Send what is left, and end the W&B run."""
        self._run.finish()


def check_loggers(config: LogConfig) -> None:
    """Check before any work starts that the further loggers can be used.

    Raises:
        ConfigError: a package is not installed, or W&B is to be online and has no key.
    """
    for name in config.to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"--log {name} needs the package {name!r}: pip install 'rlhf-gym[log]'")
    if "wandb" in config.to and config.wandb_mode == "online":
        import wandb

        with _wandb_errors():
            logged_in = wandb.login()  # asks for the key on a terminal, raises an error elsewhere
        if not logged_in:  # the user chose to go without, or did not answer
            raise ConfigError(
                "Weights & Biases is to be online and has no key. Give log.wandb_mode=offline, or see to your login "
                "(`wandb login`, WANDB_API_KEY)"
            )


@contextmanager
def _wandb_errors() -> Iterator[None]:
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise ConfigError(
            f"Weights & Biases cannot be used: {error}. Give log.wandb_mode=offline, or see to your login and network "
            "(`wandb login`, WANDB_API_KEY)"
        ) from error


def make_logger(run: RunDirectory, config: Config, table: MetricsTable) -> Logger:
    """Make the logger that agents write to: the table, and the loggers that ``log.to`` names.

    Args:
        run: the run's directory; TensorBoard's files go into its ``tensorboard/``.
        config: the configuration, whose section ``log`` is used.
        table: the table of metrics.
    """
    writers: list[KVWriter] = [table]
    if "tensorboard" in config.log.to:
        writers.append(TensorBoardOutputFormat(str(run.path / "tensorboard")))
    if "wandb" in config.log.to:
        writers.append(WandbWriter(run, config))
    return Logger(folder=str(run.path), output_formats=writers)
