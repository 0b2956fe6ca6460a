"""HTTP with JSON to a serving engine: time-outs everywhere, and every failure one line."""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from rlhf_gym.errors import ConfigError, EngineError
from rlhf_gym.text import shorten

KEY_VARIABLE = "RLHF_GYM_ENGINE_KEY"
"""The environment variable that holds an engine's API key."""
BUSY = (408, 425, 429, 502, 503, 504)
"""Statuses that pass: the server is loading or overloaded."""
LONGEST_PAUSE = 10.0
LONGEST_CONNECT = 10.0


class ServerAbsentError(EngineError):
    """The server did not answer, or may answer later."""


class ServerRefusedError(EngineError):
    """The server refused a request.

    Args:
        message: one line.
        status: of the reply.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ServerConnection:
    """Requests to one server, from any number of threads; a connection each.

    Args:
        name: the engine's name, for messages.
        url: the server's address, ``http://host:port``; a ``/v1`` at its end is left out.
        timeout: seconds to wait for one reply.
        patience: seconds to go on trying where a server does not answer.

    Raises:
        ConfigError: no address, or numbers out of their range.
    """

    def __init__(self, name: str, url: str, *, timeout: float, patience: float) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise ConfigError(
                f"engine {name!r} needs the http:// or https:// address of a server, e.g. vllm:http://localhost:8000"
            )
        if parts.username or parts.password:
            raise ConfigError(
                f"an engine's key does not belong into its address: set {KEY_VARIABLE} in the environment"
            )
        if not timeout > 0 or not patience >= 0:
            raise ConfigError(
                f"an engine needs a timeout above 0 and a patience of 0 or more, got {timeout} and {patience}"
            )
        self.name, self.timeout, self.patience = name, timeout, patience
        self._host, self._port, self._tls = host, port, parts.scheme == "https"
        self._root = parts.path.rstrip("/").removesuffix("/v1")
        self.url = f"{parts.scheme}://{parts.netloc}{self._root}"
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._random = random.Random()  # never the global one: a retry must not change what a seeded run draws

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request, again and again while the server does not answer, until ``patience`` has passed.

        Args:
            method: ``"GET"`` or ``"POST"``.
            path: from the server's root.
            body: a JSON value, or None.

        Returns:
            The reply's JSON value; None where it has none.

        Raises:
            ServerAbsentError: it did not answer in time.
            ServerRefusedError: it refused.
        """
        end, pause = time.monotonic() + self.patience, 0.25
        while True:
            try:
                return self.call_once(method, path, body)
            except ServerAbsentError as error:
                wait = pause * self._random.uniform(0.75, 1.25)
                if time.monotonic() + wait > end:
                    raise ServerAbsentError(
                        f"{error}; tried for {self.patience:g} s (engine_patience). Start the server and go on from the last "
                        "checkpoint"
                    ) from error
                time.sleep(wait)
                pause = min(2 * pause, LONGEST_PAUSE)

    def call_once(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request once; see :meth:`call`.

        Args:
            method: ``"GET"`` or ``"POST"``.
            path: from the server's root.
            body: a JSON value, or None.

        Raises:
            ServerAbsentError: it did not answer.
            ServerRefusedError: it refused.
        """
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(LONGEST_CONNECT, self.timeout))
        with self._lock:
            self._open.add(connection)
        try:
            headers = {"Accept": "application/json"}
            if key := os.environ.get(KEY_VARIABLE):
                headers["Authorization"] = f"Bearer {key}"
            content = None
            if body is not None:
                content, headers["Content-Type"] = json.dumps(body).encode("ascii"), "application/json"
            connection.connect()
            connection.sock.settimeout(self.timeout)
            connection.request(method, self._root + path, content, headers)
            reply = connection.getresponse()
            status, said = reply.status, reply.read()
        except TimeoutError as error:
            raise ServerAbsentError(
                f"engine {self.name} did not reply to {path} within {self.timeout:g} s (engine_timeout)"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ServerAbsentError(
                f"engine {self.name} cannot be reached ({type(error).__name__}: {error})"
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
        if status >= 400:
            line = f"engine {self.name} refused {path} with status {status}: {_message(said)}"
            if status in (401, 403):
                line += f"; set {KEY_VARIABLE} in the environment"
            raise ServerAbsentError(line) if status in BUSY else ServerRefusedError(line, status)
        if not said.strip():
            return None
        try:
            return json.loads(said)
        except ValueError:
            return said.decode("utf-8", "replace")

    def abort(self) -> None:
        """End all requests that are under way: their threads return at once, and vLLM stops generating for them."""
        with self._lock:
            sockets = [connection.sock for connection in self._open if connection.sock is not None]
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _message(said: bytes) -> str:
    """The server's own words, from the forms of error that vLLM and OpenAI reply with."""
    text = said.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except ValueError:
        return shorten(text, 300)
    for name in ("error", "message", "detail"):
        if isinstance(value, dict) and value.get(name):
            value = value[name]
    return shorten(value if isinstance(value, str) else json.dumps(value), 300)
