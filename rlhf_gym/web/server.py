"""The server: uvicorn in a thread of its own, on this machine only by default."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rlhf_gym.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_START_SECONDS = 30.0


@dataclass(frozen=True)
class Address:
    """The address of the page.

    Attributes:
        host: address it listens on.
        port: port; 0 takes a free one.
        url: public address where a proxy stands in front; empty: none does.
    """

    host: str = "127.0.0.1"
    port: int = 8722
    url: str = ""

    def hosts(self) -> tuple[str, ...]:
        """Names the page answers to: its own, and the public one. Listening everywhere without a public one: any."""
        from urllib.parse import urlsplit

        public = urlsplit(self.url).hostname if self.url else None
        if public is None and self.host in ("0.0.0.0", "::"):
            return ()
        return (*LOOPBACK, self.host, *([public] if public else []))


def require_web() -> None:
    """Check that the packages which the page needs are installed.

    Raises:
        ConfigError: one of them is missing.
    """
    try:
        import fastapi  # noqa: F401
        import markdown_it  # noqa: F401
        import nh3  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the page needs {error.name}: pip install 'rlhf-gym[web]'") from None


class PageServer:
    """An application, served.

    Args:
        app: ASGI.
        address: the address to listen on.

    Raises:
        ConfigError: nothing can listen there.
    """

    def __init__(self, app: Any, address: Address) -> None:
        require_web()
        import uvicorn

        from rlhf_gym.web.connections import ImpatientProtocol

        self._socket = _listen(address)
        self.address = Address(address.host, self._socket.getsockname()[1], address.url)
        # No access log: invitations stand in addresses. Only a proxy on this machine may say who asks, and over what.
        # No configuration of uvicorn's own for the log: setting it up would close every handler that this process has.
        config = uvicorn.Config(
            app, http=ImpatientProtocol, log_config=None, log_level="warning", access_log=False, proxy_headers=True,
            forwarded_allow_ips="127.0.0.1", server_header=False,
            timeout_graceful_shutdown=5, lifespan="off", ws="none", h11_max_incomplete_event_size=65_536,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="rating page", daemon=True)
        # Waited for, not the thread: when a signal's exception interrupts Thread.join, CPython 3.11 takes the thread for
        # ended, and whoever is being answered at that moment would get no reply.
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        """The URL to type into a browser, without a slash at the end."""
        if self.address.url:
            return self.address.url.rstrip("/")
        host = self.address.host if self.address.host not in ("0.0.0.0", "::") else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.address.port}"

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._ended.set()

    def __enter__(self) -> PageServer:
        self._thread.start()
        started = threading.Event()
        for _ in range(int(_START_SECONDS * 100)):
            if self._server.started:
                return self
            if not self._thread.is_alive():
                break
            started.wait(0.01)
        raise ConfigError(f"the page did not start at {self.url}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._ended.wait()
        self._thread.join()
        self._socket.close()

    def wait(self) -> None:
        """Wait until the server ends, or Ctrl-C."""
        while not self._ended.wait(0.5):
            pass


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # The protocol named: asyncio sends small packets at once (TCP_NODELAY) only where it sees that this is TCP. Otherwise
    # each reply on a kept connection would wait 40 ms for the other side's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(512)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {address.host}:{address.port}: {getattr(error, 'strerror', None) or error}; give another "
            "--host or --port (0 takes a free port)"
        ) from error
    return listener
