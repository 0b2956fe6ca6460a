"""`rlhf-gym analyse`: gold and proxy reward of finished runs, fitted against KL."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_gym.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_analyse(commands: Commands) -> None:
    """Add the command `analyse`."""
    analyse = commands.add_parser(
        "analyse", allow_abbrev=False, help="fit gold and proxy reward against KL: where were runs over-optimised?",
        description="Fit the gains of gold and proxy reward of finished runs against the root of the KL: "
        "d (alpha - beta log d) along training, d (alpha - beta d) along best-of-n (Gao et al. 2023), with 95% intervals, and "
        "the mean over runs. Needs pip install 'rlhf-gym[analysis]'.",
    )  # fmt: skip
    analyse.add_argument("run_dirs", metavar="RUN", nargs="+", help="directory of an evaluated run with a gold reward")
    analyse.add_argument("--json", metavar="FILE", help="write everything to this file, too")
    analyse.add_argument("--plot", metavar="FILE", help="draw points and fits: .svg, or .png with the extra bench")


def analyse(options: argparse.Namespace) -> None:
    """`rlhf-gym analyse`: fit gold and proxy against KL, for finished runs.

    Raises:
        ConfigError: no run with an evaluation in a directory, a library that is missing, or a plot of nothing.
    """
    plot_file = None if options.plot is None else Path(options.plot)
    if plot_file is not None and plot_file.suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot writes .svg or .png, got {plot_file}")
    if plot_file is not None and plot_file.suffix == ".png":
        from rlhf_gym.cli.bench_commands import need

        need("resvg_py", "--plot takes its PNG from resvg-py (.svg needs nothing)")
    from rlhf_gym.loop.analyse import analyse, as_json, as_text, plot
    from rlhf_gym.loop.whole_files import write_json, write_text

    found = analyse(options.run_dirs)
    print(as_text(found))
    if options.json:
        write_json(Path(options.json), as_json(found))
    if plot_file is not None:
        from rlhf_gym.bench.plots import standalone

        svg = standalone(plot(found))
        if plot_file.suffix == ".svg":
            write_text(plot_file, svg)
        else:
            from rlhf_gym.bench.png import png

            plot_file.write_bytes(png(svg))
        print(f"plot written: {plot_file}")
