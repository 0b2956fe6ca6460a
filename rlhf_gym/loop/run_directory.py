"""A run's directory: where each file is, what may change when a run goes on, and the lock against a second process.

======================================  ==============================================================================
``config.yaml``                         the resolved configuration
``versions.json``                       versions of Python and of the packages, start and duration of the run
``feedback.sqlite``                     queries and judgements
``feedback.sqlite-links.json``          with people: the links that the page printed, for you alone
``too_long.json``                       prompts and responses that were too long, where there are any: how many, what was done
``metrics.csv``                         a row for each iteration
``times.jsonl``                         seconds of each iteration by phase, and its tokens per second
``stopped.json``                        why the last process that worked on the run failed or was interrupted, if it was
``round-N/samples.jsonl``               the candidates that raters compare
``round-N/reward_model/``, ``.json``    the reward model, and its accuracy and calibration
``round-N/reward_model_2/``, ...        with ``reward_model.members``: the others of the ensemble
``round-N/reward_models.jsonl``         a line for each fit: after which iteration, number of judgements, accuracy
``round-N/agent.json``                  the agent's class and all its settings
``round-N/completions.jsonl``           sample completions of some iterations, token by token
``round-N/agent.zip``                   the latest checkpoint of training
``round-N/training.json``               how training ended: why, if early; the iteration whose policy the round ends with
``round-N/validation.jsonl``            with ``evaluation.every``: the evaluations during training
``round-N/fresh_labels.sqlite``         with ``evaluation.fresh_labels``: the rater's answers, which measure and teach nothing
``round-N/best.zip``                    likewise: the checkpoint of the best one
``round-N/divergence-ITERATION.zip``    where training diverged: the batch that did it
``round-N/agent_seconds.json``          seconds of the iterations up to that checkpoint, by phase
``round-N/reward_state.json``           with rewards that learn: their states after training
``round-N/held_out.json``               of an agent that learns given responses: what it says of those that were held out
``round-N/policy/``                     the tuned model, as transformers saves one
``round-N/adapter/``                    with ``model.lora``: the adapter, as peft saves it
``round-N/evaluation.json``             tuned model against reference; the last round's is also at the top
``round-N/stages.json``                 the stages that are finished, and their durations
``summary.txt``, ``report.html``        the results on one screen, and on one page
======================================  ==============================================================================

A kill at any moment leaves every file readable. Nothing heavy is imported here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_gym.credentials import without_credentials
from rlhf_gym.errors import ConfigError, RlhfGymError, first_line
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import Settings, build, differences, dump, load_settings
from rlhf_gym.loop.config_values import to_yaml
from rlhf_gym.loop.whole_files import read_json, write_json, write_text
from rlhf_gym.store_places import STORE_FILE
from rlhf_gym.version import __version__

STAGES = ("sample", "label", "fit", "train", "evaluate")
"""The stages of a round, in order."""
FEEDBACK_STAGES = ("sample", "label", "fit")
"""Stages that a run without a reward model leaves out."""

RESUMABLE = {
    "run.rounds", "run.threads", "agent.checkpoint_every", "log.to", "log.wandb_project", "log.wandb_mode",
    "log.completions", "log.completions_every",
    "people.host", "people.port", "people.url", "people.overlap", "people.lease", "people.quota", "people.refit",
    "agent.ray", "agent.ray_workers", "agent.ray_cpus", "agent.ray_gpus",
    "people.title", "people.guidelines", "people.text",
}  # fmt: skip
"""Settings that may change when a run goes on: none alters a metric that is already written."""

PACKAGES = ("torch", "transformers", "tokenizers", "gymnasium", "stable-baselines3", "numpy", "sqlalchemy")


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory; :meth:`open` makes it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def config_file(self) -> Path:
        """The resolved configuration; a directory with it holds a run."""
        return self.path / "config.yaml"

    @property
    def versions_file(self) -> Path:
        """Versions of the packages, the run's start and, once it has ended, its duration."""
        return self.path / "versions.json"

    @property
    def too_long_file(self) -> Path:
        """The counts of texts that were too long for the model; missing where none was."""
        return self.path / "too_long.json"

    @property
    def metrics_file(self) -> Path:
        """The table of metrics: a row for each iteration."""
        return self.path / "metrics.csv"

    @property
    def stopped_file(self) -> Path:
        """Why the last process that worked on the run ended before its time; missing where none did."""
        return self.path / "stopped.json"

    @property
    def lock_file(self) -> Path:
        """The lock that a process holds as long as it works on the run."""
        return self.path / ".lock"

    @property
    def store_file(self) -> Path:
        """The feedback store."""
        return self.path / STORE_FILE

    @property
    def evaluation_file(self) -> Path:
        """The last round's evaluation."""
        return self.path / "evaluation.json"

    def round(self, number: int) -> Path:
        """The folder of a round; it is made if it is missing."""
        folder = self.path / f"round-{number}"
        folder.mkdir(exist_ok=True)
        return folder

    def policy(self, number: int) -> Path:
        """The folder of the model that a round has tuned."""
        return self.round(number) / "policy"

    def adapter(self, number: int) -> Path:
        """The folder of a round's LoRA adapter."""
        return self.round(number) / "adapter"

    def reward_model(self, number: int) -> Path:
        """The folder of a round's reward model."""
        return self.round(number) / "reward_model"

    @contextmanager
    def open(self, config: Config, *, resume: bool) -> Iterator[None]:
        """Lock the directory for this process while the block runs, and begin a run in it if there is none.

        Args:
            config: the resolved configuration.
            resume: go on with the run that is there; begin one if there is none.

        Raises:
            ConfigError: the directory holds another run or something else, or another process works on it.
        """
        self.check(config, resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.lock_file, self.path):
            self.check(config, resume=resume)  # again: another process may have been faster
            self.stopped_file.unlink(missing_ok=True)
            if not self.config_file.exists():
                write_json(self.versions_file, versions())
            # Last: a directory without it holds no run yet.
            write_text(self.config_file, dump(config))
            try:
                yield
            except (Exception, KeyboardInterrupt) as error:
                with suppress(OSError):  # the error itself may be a full disk
                    write_json(self.stopped_file, {"at": _now(), "why": _why(error)})
                raise

    def check(self, config: Config, *, resume: bool) -> None:
        """Check that this run may go here, without touching anything.

        Args:
            config: the resolved configuration.
            resume: go on with the run that is there; only settings in :data:`RESUMABLE` may differ from its own.

        Raises:
            ConfigError: the directory holds another run or something else.
        """
        if self.config_file.exists():
            self._check_same(config, resume)
        elif self.path.is_dir():
            # A store without a run: answers that were imported before the run begins with them.
            ours = ("versions.json", STORE_FILE)  # beside the store lie its journal and the links to its page
            others = [p.name for p in self.path.iterdir() if p.name[0] != "." and not p.name.startswith(ours)]
            if others:
                raise ConfigError(
                    f"{self.path} is not a run directory and not empty (it holds {others[0]!r}); give another --out"
                )
        elif self.path.exists():
            raise ConfigError(f"--out {self.path} is a file; give a directory")

    def _check_same(self, config: Config, resume: bool) -> None:
        if not resume:
            raise ConfigError(
                f"{self.path} already holds a run: give --resume to go on with it, or another --out to begin anew"
            )
        changed = {k: v for k, v in differences(self.config(), config).items() if k not in RESUMABLE}
        if changed:
            name, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise ConfigError(
                f"the run in {self.path} was begun with {name} = {to_yaml(old)}, not {to_yaml(new)}{more}; a run goes on with "
                "the settings it began with: leave the change out, or begin a new run with another --out"
            )

    def settings(self) -> Settings:
        """The settings that the run was begun with, as plain values.

        Raises:
            ConfigError: there is no run in the directory.
        """
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} holds no run (no config.yaml in it)")
        return load_settings(self.config_file)

    def config(self) -> Config:
        """The configuration that the run was begun with.

        Raises:
            ConfigError: there is no run in the directory, or its configuration is not valid.
        """
        settings = self.settings()
        try:
            return build(settings)
        except ConfigError as error:
            raise ConfigError(f"{self.config_file}: {error}") from None

    def done(self, round_number: int, stage: str) -> bool:
        """True once a stage of a round is finished.

        Args:
            round_number: the round, from 1.
            stage: one of :data:`STAGES`.
        """
        return stage in self._stages(round_number)

    def mark_done(self, round_number: int, stage: str, seconds: float) -> None:
        """Record that a stage is finished.

        Args:
            round_number: the round, from 1.
            stage: one of :data:`STAGES`.
            seconds: its duration in this process.
        """
        entry = {"finished_at": _now(), "seconds": round(seconds, 3)}
        write_json(self.round(round_number) / "stages.json", {**self._stages(round_number), stage: entry})

    def finished_rounds(self) -> list[int]:
        """Numbers of the rounds whose policy is trained, ascending."""
        return [number for number in self._rounds() if self.done(number, "train")]

    def seconds(self) -> float:
        """The duration of all finished stages together, in seconds."""
        return sum(float(entry["seconds"]) for number in self._rounds() for entry in self._stages(number).values())

    def _stages(self, round_number: int) -> dict[str, Any]:
        return read_json(self.path / f"round-{round_number}" / "stages.json") or {}

    def _rounds(self) -> list[int]:
        """Numbers of the rounds that have a folder, ascending."""
        return sorted(int(p.name[6:]) for p in self.path.glob("round-*") if p.name[6:].isdigit())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages, and the current time as ``started_at``."""
    found = {"rlhf-gym": __version__, "python": sys.version.split()[0], "started_at": _now()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def locked(path: Path, directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that the operating system releases when the process ends, however it ends.

    Args:
        path: the lock's file.
        directory: what is locked, for the message.
        wait: wait for a process that holds it, instead of refusing.

    Raises:
        ConfigError: another process holds it, or the file system has no locks.
    """
    with path.open("a+b") as file:
        looks = 3  # whoever only looks whether it is held (`is_locked`) holds it for an instant
        try:
            while not _lock(file.fileno()):
                looks -= 1
                if not wait and not looks:
                    raise ConfigError(f"another process is working on {directory}; wait for it, or give another --out")
                time.sleep(0.1)
        except OSError as error:  # some network file systems have no locks
            raise ConfigError(
                f"the file system does not let {path} be locked ({error.strerror or error}); give an --out on a local disk"
            ) from error
        yield


def is_locked(path: Path) -> bool | None:
    """True while a process holds the lock; None where the file system cannot say. Nothing is written.

    Args:
        path: the lock's file; without one, nobody holds it.
    """
    try:
        with path.open("rb") as file:
            return not _lock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _why(error: BaseException) -> str:
    """What ended a run, in one line, without passwords in addresses: others read it."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    first = without_credentials(first_line(error))
    return first if first and isinstance(error, RlhfGymError) else f"{type(error).__name__}: {first}".rstrip(": ")


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock a file; False where another process holds it. A shared lock is only kept from whoever wants it alone."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
