"""`rlhf-gym bench`: runs suites, reports on results, compares them. Heavy modules are imported where they are needed."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

from rlhf_gym.bench.suite import BASELINES, load_suite, load_tuned, suite_names, with_models
from rlhf_gym.cli.quiet import quiet_libraries
from rlhf_gym.errors import ConfigError


def bench(options: argparse.Namespace) -> int | None:
    """`rlhf-gym bench ACTION`."""
    return ACTIONS[options.action](options)


def _list(options: argparse.Namespace) -> None:
    from rlhf_gym.bench.contender_catalogue import known_contenders

    for name in suite_names():
        suite = load_suite(name)
        measured = "" if suite.measured else " Loads and plans; it has not been measured as a whole."
        print(f"{name} (version {suite.version}, hash {suite.hash}): {suite.about}{measured}")
        budgets = ", ".join(f"{amount:,}" for amount in suite.budgets.values())
        print(
            f"  {len(suite.problems)} problems, {suite.seeds} seeds; equal {suite.equal.replace('_', ' ')}: {budgets}"
        )
        print(f"  tasks: {', '.join(suite.tasks)}")
        print(f"  contenders: {', '.join(suite.agents)}")
    print(f"\nalways in: {', '.join(BASELINES)}")
    print(f"further contenders: {', '.join(known_contenders())}, or path/file.py:Class of your own (docs/bench.md)")


def _run(options: argparse.Namespace) -> int:
    _need_scipy()
    suite = with_models(load_suite(options.suite), options.model)
    options.out = options.out or f"runs/bench-{suite.name}"
    quiet_libraries()
    from rlhf_gym.bench.cells import Selection
    from rlhf_gym.bench.runner import run_suite
    from rlhf_gym.cli.bench_progress import BenchProgress

    executor = None
    if options.ray is not None:
        from rlhf_gym.bench.ray_runner import RayRuns

        executor = RayRuns(options.ray, options.ray_cpus, options.ray_gpus)
    tuned = load_tuned(options.tuned) if options.tuned else None
    selection = Selection.of(suite, agents=options.agents, tasks=options.tasks, seeds=options.seeds, tuned=tuned)
    with BenchProgress(list(selection.cells()), quiet=options.quiet) as progress:
        folder = run_suite(
            selection, options.out, progress, jobs=options.jobs, executor=executor, retry_failed=options.retry_failed
        )
    _write_report([folder.path], folder.path / "report")
    return 0


def _tune(options: argparse.Namespace) -> None:
    need("optuna", "`rlhf-gym bench tune` searches with Optuna")
    suite = with_models(load_suite(options.suite), options.model)
    options.out = options.out or f"runs/tune-{suite.name}"
    quiet_libraries()
    from rlhf_gym.bench.cells import Selection
    from rlhf_gym.bench.tuning import tune, without_search
    from rlhf_gym.cli.bench_progress import BenchProgress, settings_words

    selection = Selection.of(suite, agents=options.agents, tasks=options.tasks)
    with BenchProgress([], quiet=options.quiet) as progress:
        best = tune(selection, options.out, progress, trials=options.trials, seeds=options.seeds, jobs=options.jobs)
    for name, settings in best.items():
        print(f"{name}: {settings_words(settings)}")
    if left_out := without_search(selection):
        print(f"not tuned, for the suite has no `search` for them: {', '.join(left_out)}")
    print(f"written: {Path(options.out) / 'tuned.yaml'}; every trial: {Path(options.out) / 'trials.jsonl'}")


def _report(options: argparse.Namespace) -> None:
    _need_scipy()
    folders = [Path(folder) for folder in options.folders]
    if options.png:
        need("resvg_py", "--png takes its pictures from resvg-py")
    _write_report(folders, Path(options.out) if options.out else folders[0] / "report", pictures=options.png)


def _write_report(folders: list[Path], out: Path, *, pictures: bool = False) -> None:
    from rlhf_gym.bench.report_folder import read_leaderboard, write_bench_report
    from rlhf_gym.bench.report_text import leaderboard_text

    leaderboard = read_leaderboard(folders)
    print(leaderboard_text(leaderboard))
    write_bench_report(leaderboard, folders, out, pictures=pictures)
    print(f"report written: {out / 'report.html'}")


def _compare(options: argparse.Namespace) -> None:
    _need_scipy()
    from rlhf_gym.bench.compare import compare_sides

    print(compare_sides(options.first, options.second), end="")


def bench_hint(options: argparse.Namespace) -> str:
    """The words after an interrupted `bench run`."""
    return " Every finished run is kept: the same command goes on." if options.action in ("run", "tune") else ""


def _need_scipy() -> None:
    need("scipy", "`rlhf-gym bench` takes its statistics from scipy")


def need(module: str, why: str) -> None:
    """Refuse to go on without a library of the extra ``bench``.

    Args:
        module: its name in Python.
        why: what takes it for what, the beginning of the message.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{why}: pip install 'rlhf-gym[bench]'")


ACTIONS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "run": _run, "report": _report, "compare": _compare, "tune": _tune,
    "list": _list,
}  # fmt: skip
"""The actions by name."""
