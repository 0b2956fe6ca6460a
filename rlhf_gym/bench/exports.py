"""Results as tables for other programs: CSV and Parquet, one row a run, and the learning curves (schema: docs/bench.md)."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.bench.measure_names import METRICS
from rlhf_gym.bench.results import Result
from rlhf_gym.loop.whole_files import write_text

COLUMNS = (
    "run_id", "suite", "suite_version", "suite_hash", "problem", "task", "contender", "agent", "settings", "seed", "status",
    "error", "equal", "budget", "tokens", "optimizer_steps", "wall_seconds", "cpu_seconds", "attempts", *METRICS, "date",
    "commit", "rlhf_gym_version", "machine",
)  # fmt: skip
NUMBERS = {"suite_version", "seed", "budget", "tokens", "optimizer_steps", "attempts", "n_prompts"}
REALS = {"wall_seconds", "cpu_seconds", *METRICS} - NUMBERS
CURVE_COLUMNS = ("run_id", "tokens", "reward", "kl")


def table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of the table of runs."""
    rows = []
    for result in results:
        row = {**result, **result["metrics"], "settings": json.dumps(result["settings"], sort_keys=True)}
        row["rlhf_gym_version"] = result["versions"]["rlhf-gym"]
        rows.append({name: row.get(name) for name in COLUMNS})
    return rows


def curve_table(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The rows of the table of learning curves."""
    return [
        dict(zip(CURVE_COLUMNS, (result["run_id"], *point), strict=True))
        for result in results
        for point in result["curve"]
    ]


def write_tables(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write ``results.csv`` and ``curves.csv``, and both as Parquet where pyarrow is installed.

    Args:
        results: the results.
        folder: gets the files.

    Returns:
        The files.
    """
    tables = {"results": (COLUMNS, table(results)), "curves": (CURVE_COLUMNS, curve_table(results))}
    written = []
    for name, (columns, rows) in tables.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / f"{name}.csv", text.getvalue())
        written.append(folder / f"{name}.csv")
        if importlib.util.find_spec("pyarrow") is not None:
            written.append(_write_parquet(columns, rows, folder / f"{name}.parquet"))
    return written


def _write_parquet(columns: Sequence[str], rows: Sequence[dict[str, Any]], path: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    def kind(name: str) -> Any:
        if name in NUMBERS or (name == "tokens" and columns is CURVE_COLUMNS):
            return pyarrow.int64()
        return pyarrow.float64() if name in REALS or name in ("reward", "kl") else pyarrow.string()

    schema = pyarrow.schema([(name, kind(name)) for name in columns])
    part = path.with_name(f".{path.name}.part")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), part)
    part.replace(path)
    return path
