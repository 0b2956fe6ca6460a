"""Puts the report together: metrics and charts in the template."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_gym.credentials import is_secret, without_credentials
from rlhf_gym.loop.report.charts import (
    calibration_chart,
    frontier_chart,
    gap_chart,
    label_curve_chart,
    learning_curve,
    loss_chart,
    win_rate_chart,
)
from rlhf_gym.loop.report.fit_chart import fit_chart
from rlhf_gym.loop.report.formatting import MISSING
from rlhf_gym.loop.report.frontier import frontier
from rlhf_gym.loop.report.heat_maps import heat_maps
from rlhf_gym.loop.report.html import page
from rlhf_gym.loop.report.run_data import METRICS, RunData, read_run
from rlhf_gym.loop.report.run_state import RunState
from rlhf_gym.loop.report.scaling_laws import fits, has_scipy, unfitted
from rlhf_gym.loop.report.simulation import comparison
from rlhf_gym.loop.report.tables import (
    curve_table,
    headline,
    pair_rows,
    text_health,
    time_shares,
    verdict,
    worker_table,
)
from rlhf_gym.loop.report.trust import ceiling, doubts, win_rates


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's directory, finished or not, from what is in it.

    It is written to a temporary file and renamed, so that a reader never sees half of it. The temporary file has a name of its
    own each time: `rlhf-gym report` may write at the same time as the run itself.

    Args:
        run_dir: the run's directory.

    Returns:
        The path of the report.

    Raises:
        OSError: the directory does not exist or cannot be written.
    """
    html = render(read_run(run_dir))
    target = run_dir / "report.html"
    handle, temporary = tempfile.mkstemp(dir=run_dir, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(html)
        # mkstemp's files are closed to everybody else; a report is there to be shown.
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def render(run: RunData, state: RunState | None = None, *, version: str = "") -> str:
    """Make the report as one HTML document.

    Args:
        run: the run's data.
        state: whether a process works on the run: the page then shows it, and renews itself from the server it came from.
            None makes the report of a file, which loads nothing.
        version: changes with every change of the page; the page asks its server for it.
    """
    found = frontier(run)
    laws = fits(found) if found and has_scipy() else []
    rates = win_rates(run)
    return page(
        "page.html.j2",
        live=state is not None,
        state=state,
        version=version,
        run=run,
        name=run.run_dir.resolve().name,
        facts=_facts(run),
        tiles=headline(run),
        verdict=verdict(run, found),
        curves=[
            (metric, learning_curve(run, metric))
            for metric in METRICS
            if metric.drawn and any(value is not None for value in run.series(metric.key))
        ],
        terms=[(metric, learning_curve(run, metric)) for metric in run.terms],
        times=time_shares(run),
        work=[(metric, learning_curve(run, metric)) for metric in run.work],
        workers=worker_table(run),
        curve_table=curve_table(run),
        frontier=found,
        frontier_chart=frontier_chart(found) if found else None,
        gap_chart=gap_chart(found) if found and found.standardised else None,
        reward_models=[
            (reward_model, calibration_chart(reward_model.rows("bins")), loss_chart(reward_model))
            for reward_model in run.reward_models
        ],
        fitted_chart=None
        if run.fitted_rater is None
        else calibration_chart([asdict(row) for row in run.fitted_rater.calibration], "fitted rater"),
        simulation=comparison(run),
        label_curve_chart=label_curve_chart(run.label_curve.get("points") or []),
        win_rate_chart=win_rate_chart(rates) if rates else None,
        second_judge=run.evaluated("judge_win_rate") is not None,
        doubts=doubts(run),
        laws=laws,
        fit_chart=fit_chart([(found, laws)]) if found and laws else None,
        unfitted=unfitted(found, laws) if found and found.standardised and has_scipy() else [],
        ceiling=ceiling(run),
        health=text_health(run),
        pairs=pair_rows(run),
        heat_maps=heat_maps(run.completions),
        config=list(_flat(run.config)),
        versions=list(_flat(run.versions)),
        commands=_commands(run),
    )


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The facts in the header."""
    found = [
        ("date", f"{run.started.day} {run.started:%B %Y, %H:%M}" if run.started else None),
        ("model", run.setting("model.name")),
        ("task", run.setting("task.name")),
        ("reward", run.setting("task.reward")),
        ("rater", run.setting("rater.name")),
        ("agent", run.setting("agent.name")),
        ("seed", run.setting("run.seed")),
    ]
    return [(name, without_credentials(str(value))) for name, value in found if value not in (None, "")]


def _flat(mapping: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten a nested mapping to dotted keys, and leave out secrets: the report is made to be passed on."""
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        elif is_secret(str(key)) and value:
            yield name, "(not shown)"
        else:
            yield name, MISSING if value is None else without_credentials(str(value))


def _commands(run: RunData) -> list[tuple[str, str]]:
    """The command lines that go on with this run and that make it again."""
    folder = run.run_dir.resolve()
    # A path under the working directory as one would type it; elsewhere only the name, which says less of the machine.
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else Path(folder.name)
    config, out, again = (shlex.quote(str(path)) for path in (shown / "config.yaml", shown, f"{shown}-again"))
    return [
        ("Make it again", f"rlhf-gym run --config {config} --out {again}"),
        ("Go on where it stopped", f"rlhf-gym run --config {config} --out {out} --resume"),
    ]
