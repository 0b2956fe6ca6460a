"""`rlhf-gym watch`: a run's page in the browser, renewed while the run goes on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_gym.cli.rate_options import add_address

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_watch(commands: Commands) -> None:
    """Add the command `watch`."""
    watch = commands.add_parser(
        "watch", allow_abbrev=False, help="show a run's curves, samples and workers in the browser, live",
        description="Serve the report of a run, finished or not, as a page that renews itself while the run goes on, until "
        "Ctrl-C. The run may begin later, and is only read. Needs pip install 'rlhf-gym[web]'.",
    )  # fmt: skip
    watch.add_argument("run_dir", metavar="RUN", help="directory of the run, which need not exist yet")
    add_address(watch, port=8723)
    watch.add_argument("--open", action="store_true", help="open the page in this machine's browser")


def watch(options: argparse.Namespace) -> None:
    """`rlhf-gym watch`: serve a run's page until Ctrl-C."""
    import webbrowser

    from rlhf_gym.web.server import Address
    from rlhf_gym.web.watch import lines, watching

    run_dir = Path(options.run_dir)
    with watching(run_dir, Address(options.host, options.port)) as server:
        print("\n".join(lines(run_dir, server)), flush=True)
        if options.open and not webbrowser.open(server.url):
            print("no browser could be opened here; open the address yourself", flush=True)
        server.wait()
