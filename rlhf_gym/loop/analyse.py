"""Over-optimisation of finished runs: gold and proxy against KL, fitted, as text and as values for JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.report.fit_chart import fit_chart
from rlhf_gym.loop.report.frontier import Frontier, frontier
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.report.scaling_laws import Estimate, Fit, fits, mean_over_runs, unfitted
from rlhf_gym.loop.report.trust import doubts
from rlhf_gym.loop.run_directory import RunDirectory


@dataclass(frozen=True)
class RunAnalysis:
    """What one run says.

    Attributes:
        name: the run's directory, as given.
        frontier: its points.
        fits: the fits that they allow.
        doubts: what speaks against its win rate.
    """

    name: str
    frontier: Frontier
    fits: list[Fit]
    doubts: list[str]


def analyse(runs: Sequence[Path | str]) -> list[RunAnalysis]:
    """Fit gold and proxy against the root of the KL for each run.

    Args:
        runs: directories of evaluated runs with a gold reward.

    Raises:
        ConfigError: a directory that holds no run, or a run without an evaluation; SciPy is not installed.
    """
    found = []
    for run in runs:
        if not RunDirectory(run).config_file.is_file():
            raise ConfigError(f"there is no run in {run}")
        data = read_run(Path(run))
        points = frontier(data)
        if points is None or not points.standardised:
            raise ConfigError(
                f"{run}: nothing to fit; gains over the reference need an evaluated run with a gold reward (at least 8 "
                "held-out prompts, and KL in metrics.csv)"
            )
        found.append(RunAnalysis(str(run), points, fits(points), doubts(data)))
    return found


def pooled(analyses: Sequence[RunAnalysis]) -> dict[tuple[str, str], tuple[Estimate, Estimate, int]]:
    """The means of alpha and beta over runs, with t-intervals, and the number of runs, by reward and form."""
    values: dict[tuple[str, str], list[Fit]] = defaultdict(list)
    for analysis in analyses:
        for one in analysis.fits:
            values[one.reward, one.form].append(one)
    return {
        key: (mean_over_runs([f.alpha.value for f in of]), mean_over_runs([f.beta.value for f in of]), len(of))
        for key, of in values.items()
        if len(of) > 1
    }


def as_text(analyses: Sequence[RunAnalysis]) -> str:
    """The fits as a table of plain text, and the means over runs where there are several."""
    lines = [
        "gains over the reference, in SD of its scores, against d = sqrt(KL); RL: d (alpha - beta log d), "
        "best-of-n: d (alpha - beta d)"
    ]
    for analysis in analyses:
        lines += ["", analysis.name]
        for one in analysis.fits:
            lines.append(f"  {_row(one.reward, one.form, one.alpha, one.beta)}   {one.n:>3} points   {one.peak}")
        lines += [f"  {missing}" for missing in unfitted(analysis.frontier, analysis.fits)]
        lines += [f"  ! {doubt}" for doubt in analysis.doubts]
    means = pooled(analyses)
    if means:
        lines += ["", "mean over runs (t-intervals between runs)"]
        lines += [f"  {_row(*key, alpha, beta)}   {n:>3} runs" for key, (alpha, beta, n) in means.items()]
    return "\n".join(lines)


def plot(analyses: Sequence[RunAnalysis]) -> Markup:
    """The points of all runs with their fits, as SVG.

    Raises:
        ConfigError: no run has a fit.
    """
    drawn = fit_chart([(one.frontier, one.fits) for one in analyses])
    if drawn is None:
        raise ConfigError("there is nothing to plot: no run has a fit")
    return drawn


def as_json(analyses: Sequence[RunAnalysis]) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "runs": [{"run": a.name, "fits": [one.as_json() for one in a.fits], "doubts": a.doubts} for a in analyses],
        "means": [
            {"reward": reward, "form": form, "alpha": asdict(alpha), "beta": asdict(beta), "runs": n}
            for (reward, form), (alpha, beta, n) in pooled(analyses).items()
        ],
    }


def _row(reward: str, form: str, alpha: Estimate, beta: Estimate) -> str:
    return f"{reward:<6}{form:<10} alpha {_interval(alpha)}   beta {_interval(beta)}"


def _interval(one: Estimate) -> str:
    return f"{one.value:+7.3f} [{one.low:+.3f}, {one.high:+.3f}]"
