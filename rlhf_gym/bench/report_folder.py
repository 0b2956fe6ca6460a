"""The report of results: one HTML page that needs nothing else, Markdown, tables, and plots for a paper."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_gym.bench.colours import classes, style
from rlhf_gym.bench.exports import write_tables
from rlhf_gym.bench.leaderboard import Leaderboard
from rlhf_gym.bench.plots import all_plots, curve_plot, frontier_plot, profile_plot, score_plot, standalone
from rlhf_gym.bench.png import png
from rlhf_gym.bench.report_text import (
    EQUAL_KL,
    PAIR_HEAD,
    ROW_HEAD,
    interval,
    markdown,
    number,
    pair_cells,
    row_cells,
    standing_cells,
)
from rlhf_gym.bench.results import Result, ResultsFolder
from rlhf_gym.bench.suite import load_suite, suite_names
from rlhf_gym.credentials import is_secret, without_credentials
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.report.html import asset, page
from rlhf_gym.loop.whole_files import write_text

PACKAGE = "rlhf_gym.bench"
SAMPLED = 3
"""Prompts shown side by side for each problem."""


def read_leaderboard(folders: Sequence[Path]) -> Leaderboard:
    """The results of one or more folders of one suite.

    Args:
        folders: folders of results.

    Raises:
        ConfigError: no results, results of two suites, or one contender with two settings.
    """
    found = [ResultsFolder(folder) for folder in folders]
    suite = found[0].suite
    results: dict[str, Result] = {}
    owners: dict[tuple[Any, ...], str] = {}
    for folder in found:
        if folder.suite["hash"] != suite["hash"]:
            raise ConfigError(
                f"{folder.path} holds results of suite {folder.suite['name']!r} with hash {folder.suite['hash']}, "
                f"{found[0].path} of {suite['name']!r} with {suite['hash']}: they cannot stand in one table"
            )
        for result in folder.read():
            key = (result["problem"], result["contender"], result["seed"], result["part"])
            if owners.setdefault(key, result["run_id"]) != result["run_id"]:
                raise ConfigError(
                    f"{folder.path} has {result['contender']} on {result['problem']} with other settings or code than a folder "
                    "before it: compare the two with `rlhf-gym bench compare`"
                )
            results[result["run_id"]] = result
    return Leaderboard(suite, list(results.values()))


def write_bench_report(board: Leaderboard, folders: Sequence[Path], out: Path, *, pictures: bool = False) -> list[Path]:
    """Write ``report.html``, ``report.md``, the tables and ``plots/*.svg``.

    Args:
        board: the results.
        folders: where they come from, for the commands that are stated.
        out: the folder of the report; it is made if it is missing.
        pictures: write ``plots/*.png``, too.

    Returns:
        The files.

    Raises:
        ConfigError: pictures on a machine without a font; everything else is written then.
    """
    (out / "plots").mkdir(parents=True, exist_ok=True)
    commands = _commands(board, folders)
    write_text(out / "report.html", render_report(board, commands, folders))
    write_text(out / "report.md", markdown(board, commands))
    written = [out / "report.html", out / "report.md", *write_tables(board.results, out)]
    plots = {out / "plots" / f"{name}.svg": standalone(plot) for name, plot in all_plots(board).items()}
    for path, plot in plots.items():
        write_text(path, plot)
    written += plots
    for path, plot in plots.items() if pictures else ():
        written.append(path.with_suffix(".png"))
        written[-1].write_bytes(png(plot))
    return written


def _commands(board: Leaderboard, folders: Sequence[Path]) -> list[str]:
    """The commands that make these results and this report."""
    name, names = board.suite["name"], " ".join(shlex.quote(str(folder)) for folder in folders)
    usual = load_suite(name) if name in suite_names() else None
    agents = dict.fromkeys(_named(r) for r in board.results)
    tasks = dict.fromkeys(r["task"] for r in board.results)
    chosen = f"--seeds {len({result['seed'] for result in board.results})}"
    if usual is None or set(tasks) != set(usual.tasks):
        chosen = f"--tasks {' '.join(tasks)} {chosen}"
    if usual is None or set(agents) != set(usual.agents):
        chosen = f"--agents {' '.join(map(shlex.quote, agents))} {chosen}"
    for model, values in board.suite["models"].items():
        if usual is not None and values != usual.models.get(model):
            chosen += " --model " + shlex.quote(f"{model}={values['name']}")
    if folders[0] != Path(f"runs/bench-{name}"):
        chosen += f" --out {shlex.quote(str(folders[0]))}"
    return [
        f"rlhf-gym bench run {shlex.quote(name)} {chosen}",
        f"rlhf-gym bench report {names}",
    ]


def _named(result: Result) -> str:
    """A contender as the command line takes it."""
    return str(result["agent"] if ":" in result["agent"] else result["contender"])


def render_report(board: Leaderboard, commands: Sequence[str], folders: Sequence[Path]) -> str:
    """The report as one HTML document.

    Args:
        board: the results.
        commands: the commands that made them.
        folders: where they come from, for the runs' configurations.
    """
    css = classes(board.contenders)
    return page(
        "bench_page.html.j2",
        package=PACKAGE,
        more_style=style() + asset("bench.css", PACKAGE),
        suite=board.suite,
        facts=_facts(board),
        commands=commands,
        standings=[(css[s.contender], standing_cells(s, i == 0)) for i, s in enumerate(board.standings)],
        score_plot=score_plot(board),
        profile_plot=profile_plot(board),
        keys=[(css[contender], contender) for contender in board.contenders],
        problems=[
            {
                "name": problem,
                "head": ROW_HEAD,
                "rows": [row_cells(row) for row in board.rows(problem)],
                "curves": curve_plot(board, problem),
                "frontier": frontier_plot(board, problem),
                "samples": _samples(board, problem),
            }
            for problem in board.problems
        ],
        matrix=_matrix(board),
        pair_head=PAIR_HEAD,
        equal_kl=EQUAL_KL,
        pairs=pair_cells(board),
        failures=board.failures,
        cells=_cells(board, folders),
    )


def _facts(board: Leaderboard) -> list[tuple[str, str]]:
    suite, results = board.suite, board.results
    dates = sorted(result["date"] for result in results)
    return [
        ("suite", f"{suite['name']}, version {suite['version']}, hash {suite['hash']}"),
        ("equal for all", f"{suite['equal'].replace('_', ' ')}"),
        ("runs", f"{len(results)} in all, {len(board.failures)} failed"),
        ("seeds", f"{len({result['seed'] for result in results})}"),
        ("made", f"{dates[0][:16].replace('T', ' ')} to {dates[-1][:16].replace('T', ' ')}, UTC"),
        ("versions", ", ".join(sorted({_version(result) for result in results}))),
    ]  # fmt: skip


def _version(result: Result) -> str:
    commit = result["commit"]
    return f"rlhf-gym {result['versions']['rlhf-gym']}" + (f" ({commit})" if commit else "")


def _samples(board: Leaderboard, problem: str) -> list[dict[str, Any]]:
    """Some prompts, each with every contender's response of the first seed that all have."""
    by_prompt: dict[str, list[tuple[str, str, float | None]]] = {}
    for contender in board.contenders:
        runs = [r for r in board.runs(problem, contender).values() if r["status"] == "done"]
        for sample in runs[0]["samples"][:SAMPLED] if runs else []:
            by_prompt.setdefault(sample["prompt"], []).append((contender, sample["response"], sample["reward"]))
    return [
        {"prompt": prompt, "responses": [(name, text, number(reward, 2)) for name, text, reward in responses]}
        for prompt, responses in by_prompt.items()
    ]


def _matrix(board: Leaderboard) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """For each pair the probability that the row's run is better than the column's: shade, text, hover title."""
    order = [standing.contender for standing in board.standings]
    rows = []
    for first in order:
        cells = []
        for second in order:
            found = None if first == second else board.improvement(first, second)
            if found is None:
                cells.append(("", "", ""))
                continue
            shade = round((found.value - 0.5) * 6)
            difference = board.difference(first, second)
            title = f"{first} over {second}: {interval(found, 2)}; {difference.words}"
            cells.append((f"shade{shade}", f"{found.value:.2f}{'*' if difference.found else ''}", title))
        rows.append((first, cells))
    return rows


def _configuration(folders: Sequence[Path], result: Result) -> str:
    """The whole configuration of a run as its directory holds it, without secrets; empty where the directory is elsewhere."""
    for folder in folders:
        path = folder / "runs" / result["folder"] / "run" / "config.yaml"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            return "\n".join(
                without_credentials(line) for line in lines if not is_secret(line.strip().partition(":")[0])
            )
    return ""


def _cells(board: Leaderboard, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One cell for each contender and problem: configuration, and the command that makes one of its runs alone."""
    found = []
    for problem in board.problems:
        for contender in board.contenders:
            runs = board.runs(problem, contender)
            if not runs:
                continue
            first = next(iter(runs.values()))
            settings = ", ".join(
                f"{name}={'(not shown)' if is_secret(name) else without_credentials(str(value))}"
                for name, value in first["settings"].items()
            )
            found.append({
                "problem": problem, "contender": contender, "agent": first["agent"], "settings": settings or "defaults",
                "budget": f"{first['budget']:,} {first['equal'].replace('_', ' ')}", "seeds": ", ".join(map(str, runs)),
                "command": f"rlhf-gym bench run {shlex.quote(board.suite['name'])} --agents {shlex.quote(_named(first))} "
                f"--tasks {first['task']} --seeds {max(runs) + 1}",
                "place": f"runs/{first['folder']}/run/config.yaml", "config": _configuration(folders, first),
            })  # fmt: skip
    return found
