"""A port that refuses connections until a server of the test takes it, and that nobody else can take meanwhile."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """Hold a port of this machine by a socket that does not listen.

    Linux lets a server that sets ``SO_REUSEADDR``, as Python's do, bind the same port; other processes, and calls for any
    free port, do not get it. Elsewhere the port is only free.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
        if sys.platform != "linux":
            held.close()
        yield port
