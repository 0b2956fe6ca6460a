"""Reads a run directory into plain values.

Nothing here fails on a run that stopped early: a file that is not there yet is None or empty, and a file that cannot
be read (a write cut short by a kill, say) is named in `RunData.problems`, which the page shows.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Metric:
    """One quantity of `metrics.csv`.

    Attributes:
        key: its name in the report.
        title: its name in a heading.
        unit: its unit.
        columns: the column names it may stand under, the first that holds a number wins.
        from_zero: True if its axis starts at zero (for metrics that cannot be negative).
        drawn: True for a chart; False for a column of the table of numbers only.
    """

    key: str
    title: str
    unit: str
    columns: tuple[str, ...]
    from_zero: bool = False
    drawn: bool = True


# The one table of column names: a logger that renames a column is answered here and nowhere else.
METRICS = (
    Metric("proxy", "Proxy reward", "reward model's score, mean per response", ("objective/scores", "scores", "proxy")),
    Metric("gold", "Gold reward", "gold score, mean per response", ("gold", "objective/gold", "gold_score")),
    Metric("kl", "KL to the reference", "nats per response", ("objective/kl", "kl"), True),
    Metric("entropy", "Entropy", "nats per response", ("objective/entropy", "entropy", "policy/entropy_avg")),
    Metric("length", "Response length", "tokens per response", ("response_length", "objective/response_length")),
    Metric("eos", "Ended by itself", "share of responses", ("eos_rate", "objective/eos_rate"), True),
    Metric("value_loss", "Value loss", "squared error", ("loss/value_avg", "loss/value", "train/value_loss"), True),
    Metric("clip", "Clip fraction", "share of tokens", ("policy/clipfrac_avg", "train/clip_fraction"), True),
    Metric("approx_kl", "KL of one update", "nats per token", ("policy/approxkl_avg", "train/approx_kl"), drawn=False),
    Metric("kl_coef", "KL coefficient", "reward per nat", ("objective/kl_coef", "kl_coef", "train/kl_coef"), True),
)


TERM = "reward/"
"""The prefix of the columns of a reward's terms."""


@dataclass(frozen=True)
class Iteration:
    """One iteration: its round, its number within the run (from 1), tokens so far, and its metrics."""

    round: int
    index: int
    tokens: int | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class RewardModelRound:
    """A round's (last) reward model from `round-N/reward_model.json`, and all its fits from `reward_models.jsonl`."""

    round: int
    metrics: Mapping[str, Any]
    fits: Sequence[Mapping[str, Any]] = ()

    def get(self, key: str) -> float | None:
        """A metric of the fit; None if it is missing, NaN or infinite."""
        return finite(self.metrics.get(key))

    def rows(self, key: str) -> list[Mapping[str, Any]]:
        """A list of mappings ("bins", "epochs"), empty where it is missing."""
        found = self.metrics.get(key)
        return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


@dataclass(frozen=True)
class RunData:
    """Everything the report shows, read from one run directory."""

    run_dir: Path
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    iterations: tuple[Iteration, ...]
    reward_models: tuple[RewardModelRound, ...]
    evaluation: Mapping[str, Any]
    labels: int | None
    started: datetime | None
    wall_seconds: float | None
    problems: tuple[str, ...] = field(default=())
    completions: Mapping[str, list[Mapping[str, Any]]] = field(
        default_factory=dict
    )  # by what their iteration is called
    seconds: Mapping[str, float] = field(default_factory=dict)  # of the iterations of all rounds, by phase

    def series(self, key: str) -> list[float | None]:
        """A metric by iteration; None where an iteration lacks it."""
        return [iteration.values.get(key) for iteration in self.iterations]

    @property
    def terms(self) -> list[Metric]:
        """The reward's terms, and its failures if there were some, as metrics to draw."""
        names = dict.fromkeys(key for iteration in self.iterations for key in iteration.values if key.startswith(TERM))
        found = []
        for key in names:
            name = key.removeprefix(TERM)
            counted = name == "left_out" or name.split("_")[0] == "skipped"
            if counted and not any(self.series(key)):
                continue
            unit = "episodes an iteration" if counted else "mean per response"
            found.append(Metric(key, name, unit, (key,), from_zero=counted or name.endswith("_multiplier")))
        return found

    def figure(self, key: str) -> float | None:
        """A metric of the evaluation; None if it is missing, NaN or infinite."""
        return finite(self.evaluation.get(key))

    @property
    def pairs(self) -> list[Mapping[str, Any]]:
        """The evaluation's prompts with their responses before and after."""
        found = self.evaluation.get("pairs")
        return [pair for pair in found if isinstance(pair, Mapping)] if isinstance(found, list) else []

    def setting(self, *paths: str) -> str | float | None:
        """The first of these dotted configuration keys that holds a plain value."""
        for path in paths:
            value: Any = self.config
            for key in path.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, str | int | float):
                return value
        return None


def finite(value: Any) -> float | None:
    """The value as a float, or None where it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        as_float = float(value)
    except (ValueError, OverflowError):
        return None
    return as_float if math.isfinite(as_float) else None


def read_run(run_dir: Path) -> RunData:
    """Reads whatever there is of a run.

    Args:
        run_dir: a run directory, finished or not.
    """
    problems: list[str] = []

    def read(name: str, parse: Callable[[str], T], empty: T) -> T:
        path = run_dir / name
        if not path.is_file():
            return empty
        try:
            parsed = parse(path.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError, csv.Error, yaml.YAMLError, RecursionError) as error:
            problems.append(f"{name} could not be read: {error}")
            return empty
        if not isinstance(parsed, type(empty)):
            problems.append(f"{name} holds {type(parsed).__name__}, expected {type(empty).__name__}")
            return empty
        return parsed

    nothing: dict[str, Any] = {}
    no_rows: list[Mapping[str, Any]] = []
    evaluation = read("evaluation.json", json.loads, nothing)
    versions = read("versions.json", json.loads, nothing)
    rounds = []
    seconds: dict[str, float] = {}
    for folder in run_dir.glob("round-*"):
        match = re.fullmatch(r"round-(\d+)", folder.name)
        spent = read(f"{folder.name}/agent_seconds.json", json.loads, nothing) if match else nothing
        for phase, value in spent.items():
            seconds[str(phase)] = seconds.get(str(phase), 0.0) + (finite(value) or 0.0)
        metrics = read(f"{folder.name}/reward_model.json", json.loads, nothing) if match else nothing
        if match and metrics:
            fits = read(f"{folder.name}/reward_models.jsonl", _json_lines, no_rows)
            rounds.append(RewardModelRound(int(match[1]), metrics, fits))
    reward_models = tuple(sorted(rounds, key=lambda reward_model: reward_model.round))
    return RunData(
        run_dir=run_dir,
        config=read("config.yaml", yaml.safe_load, nothing),
        versions=versions,
        iterations=read("metrics.csv", _iterations, ()),
        reward_models=reward_models,
        evaluation=evaluation,
        labels=_labels(run_dir / "feedback.sqlite", reward_models),
        started=_started(run_dir, versions),
        wall_seconds=_wall_seconds(evaluation, versions),
        problems=tuple(problems),
        completions=_first_and_last(run_dir),
        seconds=seconds,
    )


def _json_lines(text: str) -> list[Mapping[str, Any]]:
    return [row for row in map(json.loads, text.splitlines()) if isinstance(row, Mapping)]


def _iterations(text: str) -> tuple[Iteration, ...]:
    """Rows of metrics.csv; where a resumed run wrote an iteration again, the later row counts."""
    rows: dict[tuple[int, int], dict[str, str | None]] = {}
    for position, row in enumerate(csv.DictReader(io.StringIO(text.replace("\0", ""), newline=""))):
        number = finite(row.get("iteration"))
        rows[int(finite(row.get("round")) or 1), position if number is None else int(number)] = row
    found = []
    for index, ((round_number, _), row) in enumerate(sorted(rows.items()), start=1):
        tokens = finite(row.get("timesteps"))
        values = {}
        for metric in METRICS:
            numbers = (finite(row.get(column)) for column in metric.columns)
            first = next((value for value in numbers if value is not None), None)
            if first is not None:
                values[metric.key] = first
        terms = {column: finite(cell) for column, cell in row.items() if column and column.startswith(TERM)}
        values |= {column: value for column, value in terms.items() if value is not None}
        found.append(Iteration(round_number, index, None if tokens is None else int(tokens), values))
    return tuple(found)


def _first_and_last(run_dir: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The sample completions of the run's first and last iterations that have some, by what these are called."""
    found: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for file in run_dir.glob("round-*/completions.jsonl"):
        number = re.fullmatch(r"round-(\d+)", file.parent.name)
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if number else ():
            try:
                trace = json.loads(line)
                key = int(number[1] if number else 0), int(trace["iteration"])
            except (ValueError, KeyError, TypeError):  # cut short by a kill
                continue
            found.setdefault(key, []).append(trace)
    ends = sorted({min(found), max(found)}) if found else []
    return {f"round {number}, iteration {iteration}": found[number, iteration] for number, iteration in ends}


def _labels(store: Path, reward_models: tuple[RewardModelRound, ...]) -> int | None:
    """Judgements in the feedback store; without one, the preferences that the last reward model was fitted on."""
    if store.is_file():
        try:
            connection = sqlite3.connect(f"{store.resolve().as_uri()}?mode=ro", uri=True, timeout=2)
            try:
                return int(connection.execute("SELECT count(*) FROM judgements").fetchone()[0])
            finally:
                connection.close()
        except sqlite3.Error:
            pass  # an older or busy store: the count below is close enough for a tile
    if reward_models:
        parts = [reward_models[-1].get("n_train"), reward_models[-1].get("n_validation")]
        return int(sum(part for part in parts if part is not None)) or None
    return None


def _started(run_dir: Path, versions: Mapping[str, Any]) -> datetime | None:
    for key in ("started_at", "started", "date", "created_at"):
        value = versions.get(key)
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value)
            except ValueError:
                continue
    config = run_dir / "config.yaml"
    return datetime.fromtimestamp(config.stat().st_mtime) if config.is_file() else None


def _wall_seconds(*sources: Mapping[str, Any]) -> float | None:
    for source in sources:
        for key in ("wall_seconds", "seconds", "wall_time"):
            seconds = finite(source.get(key))
            if seconds is not None:
                return seconds
    return None
