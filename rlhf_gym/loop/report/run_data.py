"""Reads a run's directory into plain values.

A run that stopped early is no error: a file that is not there yet gives None or an empty value, and a file that cannot be
read is named in `RunData.problems`, which the page shows.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.iteration_times import TIMES_FILE, read_times
from rlhf_gym.raters.fitted import FITTED_PREFIX, FittedRater
from rlhf_gym.store_places import STORE_FILE

T = TypeVar("T")

FITTED_FILE, LABEL_CURVE_FILE = "fitted_rater.json", "label_curve.json"
"""The simulated rater that `rlhf-gym fit-rater` fitted to the run's answers, and accuracy by their number."""
FITTED_RUNS = "fitted_runs"
"""The folder of a run's loops with fitted raters."""


@dataclass(frozen=True)
class Metric:
    """One metric of `metrics.csv`.

    Attributes:
        key: its name in the report.
        title: its name in a heading.
        unit: its unit.
        column: its column in `metrics.csv`.
        from_zero: True if its axis starts at zero (for metrics that cannot be negative).
        sparse: True if most iterations lack it, so that its points are joined over them.
        drawn: True for a chart; False for a column of the table of numbers only.
    """

    key: str
    title: str
    unit: str
    column: str
    from_zero: bool = False
    drawn: bool = True
    sparse: bool = False


METRICS = (
    Metric("proxy", "Proxy reward", "mean per response", "objective/scores"),
    Metric("gold", "Gold reward", "mean per response", "gold"),
    Metric(
        "validation_proxy", "Proxy reward, validation prompts", "mean per response", "validation/proxy", sparse=True
    ),
    Metric("validation_gold", "Gold reward, validation prompts", "mean per response", "validation/gold", sparse=True),
    Metric("kl", "KL to the reference", "nats per response", "objective/kl", from_zero=True),
    Metric("entropy", "Entropy", "nats per response", "objective/entropy"),
    Metric("length", "Response length", "tokens per response", "response_length"),
    Metric("eos", "Ended with EOS", "share of responses", "eos_rate", from_zero=True),
    Metric("value_loss", "Value loss", "squared error", "loss/value_avg", from_zero=True),
    Metric("clip", "Clip fraction", "share of tokens", "policy/clipfrac_avg", from_zero=True),
    Metric("approx_kl", "KL of one update", "nats per token", "policy/approxkl_avg", drawn=False),
    Metric("kl_coef", "KL coefficient", "reward per nat", "objective/kl_coef", from_zero=True),
    Metric(
        "tokens_per_second",
        "Speed",
        "response tokens a second, whole iteration",
        "time/tokens_per_second",
        from_zero=True,
    ),
)
"""The metrics that the report shows."""

WORK = ("ray/", "engine/")
"""The prefixes of columns about whoever generates the responses: workers, an engine behind HTTP."""
_WORKER = re.compile(r"(?P<group>[^/]+)/worker_(?P<number>\d+)_(?P<name>.+)")

TERM = "reward/"
"""The prefix of the columns of a reward's terms."""


@dataclass(frozen=True)
class Iteration:
    """One iteration: its round, its number within the run (from 1), the tokens generated so far, and its metrics by key."""

    round: int
    index: int
    tokens: int | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class RewardModelRound:
    """The reward model of a round (the last fit, `reward_model.json`), and all fits of that round (`reward_models.jsonl`)."""

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
    """Everything that the report shows of a run.

    Attributes:
        run_dir: the run's directory.
        config: the configuration by section and key.
        versions: versions of packages, start and duration.
        iterations: all iterations, in order.
        reward_models: the rounds' reward models, in order.
        evaluation: the last round's evaluation.
        labels: number of judgements.
        started: when the run began.
        wall_seconds: the duration of all stages together, once the run has ended.
        problems: a sentence for each file that could not be read.
        completions: sample completions of the first and of the last iteration that has some, by the iteration's title.
        seconds: seconds of the iterations of all rounds, by phase.
        too_long: a line for each kind of texts that were too long for the model.
        endings: a sentence for each round whose training ended early, or whose policy is not that of its last iteration.
        stopped: why the last process that worked on the run failed or was interrupted; empty where none did.
        finished_stages: the finished stages of each round, by its number.
        fitted_rater: the simulated rater that was fitted to the run's answers, or that gave them; None without one.
        label_curve: accuracy by number of labels; empty where it was not measured.
        fitted_run: the run's loop with the fitted rater; None where it was not run.
    """

    run_dir: Path
    config: Mapping[str, Any]
    versions: Mapping[str, Any]
    iterations: tuple[Iteration, ...]
    reward_models: tuple[RewardModelRound, ...]
    evaluation: Mapping[str, Any]
    labels: int | None
    started: datetime | None
    wall_seconds: float | None
    problems: tuple[str, ...]
    completions: Mapping[str, list[Mapping[str, Any]]]
    seconds: Mapping[str, float]
    too_long: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    fitted_rater: FittedRater | None = None
    label_curve: Mapping[str, Any] = field(default_factory=dict)
    fitted_run: RunData | None = None
    stopped: str = ""
    finished_stages: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def series(self, key: str) -> list[float | None]:
        """A metric by iteration; None where an iteration lacks it."""
        return [iteration.values.get(key) for iteration in self.iterations]

    @property
    def work(self) -> list[Metric]:
        """The metrics of whoever generates the responses, as metrics to draw; those of single workers are in `workers`."""
        names = dict.fromkeys(key for iteration in self.iterations for key in iteration.values if key.startswith(WORK))
        return [
            Metric(name, name, "share" if name.endswith("_share") else "", name, from_zero=True)
            for name in names
            if _WORKER.fullmatch(name) is None
        ]

    @property
    def workers(self) -> dict[int, dict[str, list[float]]]:
        """The metrics of each worker: by its number and the metric's name, the values of the iterations that have one."""
        found: dict[int, dict[str, list[float]]] = {}
        for iteration in self.iterations:
            for key, value in iteration.values.items():
                if match := _WORKER.fullmatch(key):
                    of_worker = found.setdefault(int(match["number"]), {})
                    of_worker.setdefault(match["name"], []).append(value)
        return dict(sorted(found.items()))

    @property
    def terms(self) -> list[Metric]:
        """The reward's terms as metrics to draw, and the numbers of its failures if there were some."""
        names = dict.fromkeys(key for iteration in self.iterations for key in iteration.values if key.startswith(TERM))
        found = []
        for key in names:
            name = key.removeprefix(TERM)
            counted = name == "left_out" or name.split("_")[0] == "skipped"
            if counted and not any(self.series(key)):
                continue
            unit = "episodes an iteration" if counted else "mean per response"
            found.append(Metric(key, name, unit, key, from_zero=counted or name.endswith("_multiplier")))
        return found

    def evaluated(self, key: str) -> float | None:
        """A metric of the evaluation; None if it is missing, NaN or infinite."""
        return finite(self.evaluation.get(key))

    @property
    def talks(self) -> bool:
        """True where responses are conversations."""
        return "turns_before" in self.evaluation

    @property
    def pairs(self) -> list[Mapping[str, Any]]:
        """The evaluation's prompts with their responses before and after."""
        found = self.evaluation.get("pairs")
        return [pair for pair in found if isinstance(pair, Mapping)] if isinstance(found, list) else []

    @property
    def kl(self) -> float | None:
        """The evaluation's KL, nats per response: the exact one per token, or that of the tokens drawn without it."""
        exact = self.evaluated("kl_exact")
        return self.evaluated("kl") if exact is None else exact

    @property
    def best_of_n(self) -> list[Mapping[str, Any]]:
        """The evaluation's best-of-n, by n."""
        found = self.evaluation.get("best_of_n")
        return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []

    def setting(self, path: str) -> str | float | None:
        """A setting by section and key, such as ``task.name``; None if it is missing or not a plain value."""
        section, _, key = path.partition(".")
        values = self.config.get(section)
        value = values.get(key) if isinstance(values, Mapping) else None
        return value if isinstance(value, str | int | float) else None


def finite(value: Any) -> float | None:
    """Convert a value to a float; None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        as_float = float(value)
    except (ValueError, OverflowError):
        return None
    return as_float if math.isfinite(as_float) else None


def read_run(run_dir: Path) -> RunData:
    """Read whatever there is of a run.

    Args:
        run_dir: the run's directory, finished or not.
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
    endings: dict[int, str] = {}
    numbers = set()
    for folder in run_dir.glob("round-*"):
        match = re.fullmatch(r"round-(\d+)", folder.name)
        if match:
            numbers.add(int(match[1]))
        spent = read(f"{folder.name}/agent_seconds.json", json.loads, nothing) if match else nothing
        for phase, value in spent.items():
            seconds[str(phase)] = seconds.get(str(phase), 0.0) + (finite(value) or 0.0)
        if match and (sentence := ending(int(match[1]), read(f"{folder.name}/training.json", json.loads, nothing))):
            endings[int(match[1])] = sentence
        metrics = read(f"{folder.name}/reward_model.json", json.loads, nothing) if match else nothing
        if match and metrics:
            fits = read(f"{folder.name}/reward_models.jsonl", _json_lines, no_rows)
            rounds.append(RewardModelRound(int(match[1]), metrics, fits))
    config, fitted_rater = read("config.yaml", yaml.safe_load, nothing), None
    try:
        fitted_rater = _fitted_rater(run_dir, config)
    except ConfigError as error:
        problems.append(str(error))
    reward_models = tuple(sorted(rounds, key=lambda reward_model: reward_model.round))
    return RunData(
        run_dir=run_dir,
        config=config,
        versions=versions,
        iterations=_with_times(read("metrics.csv", _iterations, ()), read(TIMES_FILE, read_times, [])),
        reward_models=reward_models,
        evaluation=evaluation,
        labels=_labels(run_dir / STORE_FILE, reward_models),
        started=_started(versions),
        wall_seconds=finite(versions.get("wall_seconds")),
        problems=tuple(problems),
        completions=_first_and_last(run_dir),
        seconds=seconds,
        too_long=tuple(
            str(row.get("in_words")) for row in read("too_long.json", json.loads, no_rows) if isinstance(row, Mapping)
        ),
        endings=tuple(endings[number] for number in sorted(endings)),
        fitted_rater=fitted_rater,
        label_curve=read(LABEL_CURVE_FILE, json.loads, nothing),
        fitted_run=None if fitted_rater is None else _fitted_run(fitted_run_of(run_dir, fitted_rater)),
        stopped=str(read("stopped.json", json.loads, nothing).get("why") or ""),
        finished_stages={
            number: tuple(read(f"round-{number}/stages.json", json.loads, nothing)) for number in sorted(numbers)
        },
    )


def fitted_run_of(run_dir: Path, fitted: FittedRater) -> Path:
    """The directory of a run's loop with a fitted rater.

    Args:
        run_dir: the run's directory.
        fitted: the rater.
    """
    return run_dir / FITTED_RUNS / fitted.id


def _fitted_run(folder: Path) -> RunData | None:
    return read_run(folder) if (folder / "config.yaml").is_file() else None


def _fitted_rater(run_dir: Path, config: Mapping[str, Any]) -> FittedRater | None:
    """The rater that was fitted to a run's answers; or the fitted one that gave them, if its file is still there."""
    if (own := run_dir / FITTED_FILE).is_file():
        return FittedRater.load(own)
    rater = config.get("rater")
    name = str(rater.get("name")) if isinstance(rater, Mapping) else ""
    file = Path(name.removeprefix(FITTED_PREFIX))
    return FittedRater.load(file) if name.startswith(FITTED_PREFIX) and file.is_file() else None


def ending(number: int, training: Mapping[str, Any]) -> str:
    """Say how a round's training ended, where it did not simply come to its last iteration; else empty.

    Args:
        number: the round.
        training: the round's ``training.json``.
    """
    parts = []
    if training.get("stopped"):
        parts.append(f"Training of round {number} ended early: {training['stopped']}.")
    best = training.get("best")
    if isinstance(best, Mapping) and training.get("final") == "best":
        metric = training.get("metric")
        parts.append(
            f"Round {number} ends with the policy of iteration {training.get('policy_of')} of {training.get('iterations')}, "
            f"the best by validation/{metric} ({finite(best.get(metric)) or 0.0:.4g})."
        )
    return " ".join(parts)


def _json_lines(text: str) -> list[Mapping[str, Any]]:
    """The rows of a file that is appended to: one counts only with its line end, which comes last."""
    whole, _, _ = text.rpartition("\n")
    return [row for row in map(json.loads, whole.splitlines()) if isinstance(row, Mapping)]


def _iterations(text: str) -> tuple[Iteration, ...]:
    """The rows of metrics.csv; a kill may have cut the last line short, so a row counts only with its line end."""
    whole, end, _ = text.replace("\0", "").rpartition("\n")
    found = []
    for index, row in enumerate(csv.DictReader(io.StringIO(whole + end, newline="")), start=1):
        round_number, tokens = finite(row.get("round")) or 1, finite(row.get("timesteps"))
        cells = {metric.key: finite(row.get(metric.column)) for metric in METRICS}
        cells |= {column: finite(cell) for column, cell in row.items() if column and column.startswith((TERM, *WORK))}
        values = {key: value for key, value in cells.items() if value is not None}
        found.append(Iteration(int(round_number), index, None if tokens is None else int(tokens), values))
    return tuple(found)


def _with_times(iterations: tuple[Iteration, ...], times: list[dict[str, Any]]) -> tuple[Iteration, ...]:
    """The iterations, with the speed of those whose times are known."""
    speeds = {(row["round"], row["iteration"]): finite(row.get("tokens_per_second")) for row in times}
    counts: dict[int, int] = {}
    found = []
    for one in iterations:
        counts[one.round] = counts.get(one.round, 0) + 1
        speed = speeds.get((one.round, counts[one.round]))
        found.append(one if speed is None else replace(one, values={**one.values, "tokens_per_second": speed}))
    return tuple(found)


def _first_and_last(run_dir: Path) -> dict[str, list[Mapping[str, Any]]]:
    """The sample completions of the first and of the last iteration that has some, by the iteration's title."""
    found: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for file in run_dir.glob("round-*/completions.jsonl"):
        number = re.fullmatch(r"round-(\d+)", file.parent.name)
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:  # replaced or removed since it was listed
            continue
        for line in text.splitlines() if number else ():
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
            # Without a write-ahead log, nobody has it open. To read it otherwise, SQLite would make files beside it.
            idle = not store.with_name(f"{store.name}-wal").exists()
            address = f"{store.resolve().as_uri()}?mode=ro{'&immutable=1' if idle else ''}"
            connection = sqlite3.connect(address, uri=True, timeout=2)
            try:
                return int(connection.execute("SELECT count(*) FROM judgements").fetchone()[0])
            finally:
                connection.close()
        except sqlite3.Error:
            pass  # a store that cannot be read: the count below is close to it
    if reward_models:
        parts = [reward_models[-1].get("n_train"), reward_models[-1].get("n_validation")]
        return int(sum(part for part in parts if part is not None)) or None
    return None


def _started(versions: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(versions.get("started_at")))
    except ValueError:
        return None
