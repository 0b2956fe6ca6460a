"""A run's page, renewed while the run goes on: `rlhf-gym watch`. It reads the run's directory and writes nothing."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.report.page import render
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.report.run_state import Look, look, state_of
from rlhf_gym.web.server import LOOPBACK, Address, PageServer, require_web

_POLICY = "frame-ancestors 'none'"
"""The header's policy; the page itself has a stricter one for everything else, by the hashes of its style and script."""


class LivePage:
    """The page of one run, made again only when something has changed.

    Args:
        run_dir: the run's directory; it need not exist yet.

    Attributes:
        made: how often the page was made.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.made = 0
        self._seen: Look | None = None
        self._html = ""
        self._lock = threading.Lock()

    def version(self) -> str:
        """A word that changes whenever the page would."""
        return _version(look(self.run_dir))

    def html(self) -> str:
        """The page as it is now."""
        with self._lock:
            # Looked at before it is read: what is written meanwhile makes the next version differ.
            seen = look(self.run_dir)
            if seen != self._seen:
                run = read_run(self.run_dir)
                self._html = render(run, state_of(run, seen), version=_version(seen))
                self._seen = seen
                self.made += 1
            return self._html


def create_watch_app(page: LivePage, *, hosts: Collection[str] = ()) -> object:
    """Make the application that serves a run's page, to whoever can reach it.

    Args:
        page: the page.
        hosts: names that it is served under (see :class:`~rlhf_gym.web.security.Guard`).

    Returns:
        An ASGI application.
    """
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import HTMLResponse, PlainTextResponse
    from starlette.exceptions import HTTPException

    from rlhf_gym.web.security import Guard

    app = FastAPI(title="rlhf-gym watch", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def whole() -> Response:
        return HTMLResponse(page.html(), headers={"content-security-policy": _POLICY})

    @app.get("/version", response_class=PlainTextResponse)
    def version() -> str:
        return page.version()

    @app.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok"

    @app.exception_handler(HTTPException)
    def refused(_request: Request, error: HTTPException) -> Response:
        return PlainTextResponse(str(error.detail), error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    def broken(_request: Request, _error: Exception) -> Response:
        return PlainTextResponse("An error occurred in the server; its log says which.", 500)

    return Guard(app, hosts=hosts)


@contextmanager
def watching(run_dir: Path, address: Address) -> Iterator[PageServer]:
    """Serve a run's page while the block runs.

    Args:
        run_dir: the run's directory; it need not exist yet.
        address: the address to listen on.

    Raises:
        ConfigError: the page's libraries are missing, nothing can listen there, or the folder holds something else.
    """
    require_web()
    check_folder(run_dir)
    with PageServer(create_watch_app(LivePage(run_dir), hosts=address.hosts()), address) as server:
        yield server


def check_folder(run_dir: Path) -> None:
    """Check that a run is in a folder, or may come there.

    Args:
        run_dir: the folder; it need not exist.

    Raises:
        ConfigError: it is a file, or holds something else.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"{run_dir} is a file; give the directory of a run")
    if run_dir.is_dir() and not (run_dir / "config.yaml").exists():
        ours = ("versions.json", "feedback.sqlite")
        others = [path.name for path in run_dir.iterdir() if path.name[0] != "." and not path.name.startswith(ours)]
        if others:
            raise ConfigError(
                f"{run_dir} holds no run (it holds {others[0]!r}, and no config.yaml); give a run's directory"
            )


def lines(run_dir: Path, server: PageServer) -> list[str]:
    """The lines to print for whoever watches.

    Args:
        run_dir: the run's directory.
        server: the running server.
    """
    told = [f"watching {run_dir} at {server.url}; Ctrl-C ends it, and leaves the run alone"]
    if not (run_dir / "config.yaml").exists():
        told.append("there is no run in it yet: the page fills as soon as one begins")
    if server.address.host not in LOOPBACK:
        told.append(
            "other machines can reach it, without a password and over plain HTTP: whoever can may read the run's page"
        )
    return told


def _version(seen: Look) -> str:
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
