"""HTTP connections that are closed when a request does not come to an end; uvicorn waits for the rest of one for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
"""Time for a request's first line and headers, from the connection's start or from the first byte after a reply."""


class ImpatientProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for a request's head. A body's limit is the guard's, which can still reply."""

    head_seconds = HEAD_SECONDS
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected: its first request is due."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes have come; many small ones do not put the end of the time limit off.

        Args:
            data: the bytes.
        """
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended.

        Args:
            exc: why, where it was not closed in order.
        """
        self._forget()
        super().connection_lost(exc)

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _watch(self) -> None:
        if not self._between_requests:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self._between_requests and not self.transport.is_closing():
            self.transport.close()
