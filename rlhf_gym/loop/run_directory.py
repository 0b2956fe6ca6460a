"""One run = one directory: where everything is, written so that a kill at any moment leaves it readable.

======================================  ==============================================================================
``config.yaml``                         the resolved configuration
``versions.json``                       versions of everything that computes, and when the run began
``feedback.sqlite``                     queries and judgements
``metrics.csv``                         one row an iteration
``round-N/samples.jsonl``               the candidates that raters compare
``round-N/reward_model/``, ``.json``    the fitted reward model, and how good it is
``round-N/reward_models.jsonl``         a line a fit: after which iteration, how many judgements, how good
``round-N/agent.json``                  the agent's settings, those it took by itself included
``round-N/completions.jsonl``           sample completions of some iterations, token by token
``round-N/agent.zip``                   the latest checkpoint of training
``round-N/policy/``                     the tuned model, as transformers saves one
``round-N/adapter/``                    with ``model.lora``: what was learned, as peft saves it
``round-N/evaluation.json``             tuned against reference; the last round's is also at the top
``round-N/stages.json``                 which stages are done, and how long they took
``summary.txt``, ``report.html``        the end
======================================  ==============================================================================

Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.config_file import Settings, build, differences, dump, load_settings

STAGES = ("sample", "label", "fit", "train", "evaluate")
"""The stages of a round, in order."""

RESUMABLE = {
    "run.rounds", "run.threads", "agent.checkpoint_every", "log.to", "log.wandb_project", "log.wandb_mode",
    "log.completions", "log.completions_every",
    "people.host", "people.port", "people.url", "people.overlap", "people.lease", "people.quota", "people.refit",
    "people.title", "people.guidelines", "people.text",
}  # fmt: skip
"""Settings that may change when a run is resumed: none alters a metric that is already written."""

PACKAGES = ("rlhf-gym", "torch", "transformers", "tokenizers", "gymnasium", "stable-baselines3", "numpy", "sqlalchemy")


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
        """Package versions, the run's start and, once it is done, its duration."""
        return self.path / "versions.json"

    @property
    def metrics_file(self) -> Path:
        """One row an iteration."""
        return self.path / "metrics.csv"

    @property
    def store_file(self) -> Path:
        """The feedback store."""
        return self.path / "feedback.sqlite"

    @property
    def evaluation_file(self) -> Path:
        """The last round's evaluation."""
        return self.path / "evaluation.json"

    def round(self, number: int) -> Path:
        """A round's own folder, made if need be."""
        folder = self.path / f"round-{number}"
        folder.mkdir(exist_ok=True)
        return folder

    @contextmanager
    def open(self, config: Config, *, resume: bool) -> Iterator[None]:
        """Take the directory for this process, and write what begins a run if none is there.

        Args:
            config: the resolved configuration.
            resume: go on with the run that is there; without one, begin.

        Raises:
            ConfigError: the directory holds another run (or something else), or another process has it.
        """
        self.check(config, resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        with _locked(self.path / ".lock", self.path):
            self.check(config, resume=resume)  # again: another process may have been faster
            if not self.config_file.exists():
                write_json(self.versions_file, versions())
            # Last: a directory without it holds no run yet.
            write_text(self.config_file, dump(config))
            yield

    def check(self, config: Config, *, resume: bool) -> None:
        """Check that this run may go here, without touching anything.

        Args:
            config: the resolved configuration.
            resume: go on with the run that is here; only settings in :data:`RESUMABLE` may then differ from it.

        Raises:
            ConfigError: the directory holds another run, or something else.
        """
        if self.config_file.exists():
            self._check_same(config, resume)
        elif self.path.is_dir():
            others = [p.name for p in self.path.iterdir() if p.name[0] != "." and p.name != "versions.json"]
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
                f"the run in {self.path} was begun with {name} = {in_words(old)}, not {in_words(new)}{more}; a run goes on "
                f"with the settings it began with: leave the change out, or begin a new run with another --out"
            )

    def settings(self) -> Settings:
        """The settings that the run was begun with, as plain values.

        Raises:
            ConfigError: no run here.
        """
        if not self.config_file.exists():
            raise ConfigError(f"{self.path} holds no run (no config.yaml in it)")
        return load_settings(self.config_file)

    def config(self) -> Config:
        """The configuration that the run was begun with.

        Raises:
            ConfigError: no run here.
        """
        return build(self.settings())

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

    def _stages(self, round_number: int) -> dict[str, Any]:
        return read_json(self.path / f"round-{round_number}" / "stages.json") or {}

    def finished_rounds(self) -> list[int]:
        """Numbers of the rounds whose policy is there, ascending."""
        folders = (p for p in self.path.glob("round-*") if p.name[6:].isdigit())
        return sorted(int(p.name[6:]) for p in folders if "train" in self._stages(int(p.name[6:])))

    def seconds(self) -> float:
        """The duration of all finished stages together."""
        rounds = (int(p.name[6:]) for p in self.path.glob("round-*") if p.name[6:].isdigit())
        return sum(float(entry["seconds"]) for number in rounds for entry in self._stages(number).values())


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole.

    A reader sees the old text or the new one, never a part, even if this process is killed meanwhile.

    Args:
        path: the file, in a folder that exists.
        text: its new content, stored as UTF-8.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def in_words(value: object) -> str:
    """A setting's value as a configuration writes it."""
    return "null" if value is None else repr(value)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file as a whole; NaN and infinite numbers become null.

    Args:
        path: the file, in a folder that exists.
        value: anything that ``json`` can write.
    """
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file's value, None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that takes its place only once it is complete."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def versions() -> dict[str, str]:
    """Package versions and the current time."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    from rlhf_gym.version import __version__

    return {**found, "rlhf-gym": __version__, "python": sys.version.split()[0], "started_at": _now()}


@contextmanager
def _locked(path: Path, directory: Path) -> Iterator[None]:
    """Hold a lock that the operating system lets go when the process ends, however it ends."""
    with path.open("a+b") as file:
        try:
            _lock(file.fileno())
        except OSError:
            raise ConfigError(
                f"another process is working on {directory}; wait for it, or give another --out"
            ) from None
        yield


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))) else value
