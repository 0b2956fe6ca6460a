"""A real PostgreSQL server for tests, in a folder of its own, on a free port of the loopback."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from held_port import held_port
from waiting import LONG

_NUMBERS = itertools.count()


class PostgresServer:
    """One server. PostgreSQL refuses to run as root: there, it runs as the user ``postgres``."""

    def __init__(self, bin_folder: Path, user: str | None) -> None:
        self._bin, self._user = bin_folder, user
        self._folder = Path(tempfile.mkdtemp(prefix="pg"))
        if user is not None:
            shutil.chown(self._folder, user)
        self._held = ExitStack()
        self.port = self._held.enter_context(held_port())  # also while it restarts
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")
        self.start()

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        command = command if self._user is None else ["runuser", "-u", self._user, "--", *command]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=LONG, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        settings = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories= -c max_connections=60"
        )
        # Its own default would be to acknowledge what is not on the disk yet: the store must ask for better itself.
        settings += " -c synchronous_commit=off"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", self._data, "-l", log, "-w", "-t", f"{LONG:.0f}", "-o", settings, "start")

    def stop(self, how: str = "fast") -> None:
        """Stop; ``immediate`` is a crash: nothing is written that was not on the disk."""
        self._run("pg_ctl", "-D", self._data, "-m", how, "-w", "-t", f"{LONG:.0f}", "stop")

    def new_url(self) -> str:
        """The URL of an empty schema."""
        import psycopg

        name = f"test{next(_NUMBERS)}"
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", dbname="postgres") as connection:
            connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{name}"

    def remove(self) -> None:
        self.stop("immediate")
        self._held.close()
        shutil.rmtree(self._folder)


def start_server() -> PostgresServer:
    """A running server; skips the test, saying why, where there can be none."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra `postgres`)")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.skip("there is no PostgreSQL server here (apt-get install postgresql)")
    bin_folder = found[-1].parent if found else Path(str(on_path)).resolve().parent
    if os.geteuid() != 0:
        return PostgresServer(bin_folder, None)
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    return PostgresServer(bin_folder, "postgres")
