"""The options of `rlhf-gym bench` and its commands. Imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SUITE_HELP = "a suite of `rlhf-gym bench list`, or a YAML file"
AGENTS_HELP = (
    "contenders: names of the suite, agents, baselines, outside trainers, or my.py:Class of your own; the baselines are "
    "always in (default: all of the suite)"
)
SIDE_HELP = "a folder of results, or DIR:CONTENDER for one contender of it"


def add_bench(commands: Commands) -> None:
    """Add the command `bench`."""
    bench = commands.add_parser(
        "bench", allow_abbrev=False, help="compare algorithms on a suite of tasks: run, report, compare, tune",
        description="Compare algorithms by tasks by seeds, under one protocol (docs/bench.md).",
    )  # fmt: skip
    actions = bench.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_run(actions)
    _add_report(actions)
    _add_compare(actions)
    _add_tune(actions)
    actions.add_parser(
        "list", allow_abbrev=False, help="list suites, agents, baselines and outside trainers",
        description="List the suites that come with the package, and every contender that has a name.",
    )  # fmt: skip


def _add_run(actions: Commands) -> None:
    run = actions.add_parser(
        "run", allow_abbrev=False, help="make the runs of a suite that have no result yet",
        description="Make the runs of a suite, each in a process with a time limit; failures are kept. Interrupted or "
        "killed, the same command goes on where it stopped.",
    )  # fmt: skip
    add_selection(run)
    run.add_argument(
        "--seeds", metavar="N", type=int, help="runs of each contender on each task (default: the suite's)"
    )
    run.add_argument(
        "--tuned", metavar="FILE", help="contenders with settings that replace the suite's, as `bench tune` writes them"
    )
    run.add_argument("--out", metavar="DIR", help="folder of the results (default: runs/bench-SUITE)")
    run.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at once, one thread each (default: 1)")
    run.add_argument(
        "--retry-failed", action="store_true",
        help="make runs again that failed or took too long (those that diverged stay); the old lines are kept, too",
    )  # fmt: skip
    run.add_argument(
        "--ray", metavar="ADDRESS",
        help="make the runs on Ray: the address of a cluster, auto, or local for Ray on this machine (default: processes)",
    )  # fmt: skip
    run.add_argument(
        "--ray-cpus", metavar="N", type=float, default=1.0, help="with --ray: CPUs of each run (default: 1)"
    )
    run.add_argument(
        "--ray-gpus",
        metavar="N",
        type=float,
        default=0.0,
        help="with --ray: GPUs of each run, or a part of one (default: 0)",
    )
    run.add_argument("--quiet", action="store_true", help="print only the leaderboard, at the end")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the suite and the choice of contenders and tasks."""
    parser.add_argument("suite", metavar="SUITE", help=SUITE_HELP)
    parser.add_argument("--agents", metavar="NAME", nargs="+", help=AGENTS_HELP)
    parser.add_argument("--tasks", metavar="NAME", nargs="+", help="tasks of the suite (default: all)")
    parser.add_argument(
        "--model", metavar="NAME=PLACE", action="append", default=[],
        help="take a model of the suite from elsewhere: a hub id, a folder, or folder:file.gguf (repeatable; the suite's hash "
        "changes with it)",
    )  # fmt: skip


def _add_tune(actions: Commands) -> None:
    tune = actions.add_parser(
        "tune", allow_abbrev=False, help="search the contenders' settings on validation prompts",
        description="Search the settings that a suite lists under `search`, with Optuna: the same number of trials for every "
        "contender, pruned, on validation prompts and with seeds that are never reported. Every trial is kept; `bench run "
        "--tuned DIR/tuned.yaml` takes what was found.",
    )  # fmt: skip
    add_selection(tune)
    tune.add_argument("--trials", metavar="N", type=int, default=16, help="trials of each contender (default: 16)")
    tune.add_argument("--seeds", metavar="N", type=int, default=2, help="runs of a trial on each task (default: 2)")
    tune.add_argument("--out", metavar="DIR", help="folder of the search (default: runs/tune-SUITE)")
    tune.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at once, one thread each (default: 1)")
    tune.add_argument("--quiet", action="store_true", help="print only what was found")


def _add_report(actions: Commands) -> None:
    report = actions.add_parser(
        "report", allow_abbrev=False, help="write the report of results: HTML, Markdown, CSV, Parquet, SVG, PNG",
        description="Write report.html (one file that needs nothing else), report.md, results.csv, results.parquet and the "
        "plots as SVG, and print the leaderboard. Several folders of one suite make one report.",
    )  # fmt: skip
    report.add_argument("folders", metavar="DIR", nargs="+", help="folder of results")
    report.add_argument("--out", metavar="DIR", help="folder of the report (default: DIR/report of the first DIR)")
    report.add_argument("--png", action="store_true", help="write the plots as PNG, too")


def _add_compare(actions: Commands) -> None:
    compare = actions.add_parser(
        "compare", allow_abbrev=False, help="say whether two contenders, or two versions of one, differ",
        description="Compare two sets of results of one suite, pair by pair: same problem, same seed. Without CONTENDER, every "
        "contender that both have is compared: their scores, their scores at equal KL, and how much of B's learning curves "
        "lies within A's intervals. A difference inside the noise is called one.",
    )  # fmt: skip
    compare.add_argument("first", metavar="A", help=SIDE_HELP)
    compare.add_argument("second", metavar="B", help=SIDE_HELP)
