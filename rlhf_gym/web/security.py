"""Guards the page: one middleware that every request and every reply goes through.

Pure ASGI, since a rating page is judged by its slowest click. It refuses hosts it does not serve (DNS rebinding), bodies
that are too large or do not come to an end, posts that another site sent, and clients that send too many requests; it sets
the security headers of every reply, errors included.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_COOKIE = "rlhf_gym_session"
LARGEST_BODY = 1 << 20
"""Bytes of a request's body; a corrected response of 100,000 characters fits."""
BODY_SECONDS = 30.0
"""Time for a request's body, from its headers on."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
WRITING = ("/admin/export/",)
"""Paths that are read with GET and yet leave a record: for our own page alone."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: browsers would then send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def cookie_name(study: str) -> str:
    """The session cookie of a study: browsers tell hosts apart by cookie, but not ports.

    Args:
        study: the study's id, different for others on the same host (:meth:`~rlhf_gym.study.people.People.study`).
    """
    return f"{_COOKIE}_{study}"


def csrf_token(session: str) -> str:
    """The token that every form of a session carries: whoever cannot read the session's cookie cannot know it."""
    return hmac.new(session.encode(), b"rlhf-gym csrf", hashlib.sha256).hexdigest()


def csrf_matches(session: str, given: str) -> bool:
    """True if a form's token belongs to the session; compared in constant time.

    Args:
        session: the session's token.
        given: the token in the form.
    """
    return hmac.compare_digest(csrf_token(session).encode(), given.encode("utf-8", "replace"))


class RateLimit:
    """Token buckets, one a client; the least recently seen are forgotten.

    Args:
        per_second: requests a second that go on for ever.
        burst: requests at once.
        clients: number of clients to remember.
        clock: seconds, for tests.
    """

    def __init__(
        self, per_second: float, burst: int, clients: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_second = per_second
        self.burst = burst
        self._clients = clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Take one request; 0 where it may pass, otherwise the seconds until it may."""
        now = self._clock()
        left, seen = self._buckets.pop(client, (float(self.burst), now))
        left = min(float(self.burst), left + max(0.0, now - seen) * self.per_second)
        passes = left >= 1
        self._buckets[client] = (left - 1 if passes else left, now)
        while len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (1 - left) / self.per_second


class Guard:
    """The middleware.

    Args:
        app: the application to guard.
        hosts: names and addresses (without port) that the page is served under; empty: any.
        cookie: the name of the session's cookie.
        limit: rate limit of a session's requests.
        address_limit: rate limit of an address's requests, much higher: a class of raters may share one address.
        join_limit: rate limit of an address's tries of invitations, which are too long to guess anyway.
        body_seconds: time for a request's body, from its headers on.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: Collection[str] = (),
        cookie: str = _COOKIE,
        limit: RateLimit | None = None,
        address_limit: RateLimit | None = None,
        join_limit: RateLimit | None = None,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self.app = app
        self.hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self.cookie = cookie
        self.limit = limit or RateLimit(per_second=20, burst=100)
        self.address_limit = address_limit or RateLimit(per_second=500, burst=2000)
        self.join_limit = join_limit or RateLimit(per_second=5, burst=500)
        self.body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no web sockets here: the connection is refused
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_headers(send, scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _reply(send, *refusal)
            return
        if scope["method"] == "HEAD":  # mail programs look at links so
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self.app(scope, _bounded(receive, self.body_seconds), send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> tuple[int, str, float] | None:
        host = headers.get(b"host", "")
        if self.hosts and _name(host) not in self.hosts:
            return 421, "this page is not served under that name (see --url)", 0
        writes = scope["path"].startswith(WRITING)
        if (writes or scope["method"] not in ("GET", "HEAD")) and not _same_origin(headers, host):
            return 403, "another site sent this form or link; open the page itself and try again", 0
        if writes and scope["method"] == "HEAD":
            return 405, "an export is written down in the audit trail: ask for it with GET", 0
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return 413, f"the request is too large; the limit is {LARGEST_BODY:,} bytes", 0
        wait = self._wait(scope, headers)
        return (429, "too many requests; wait a moment and try again, nothing is lost", wait) if wait else None

    def _wait(self, scope: Scope, headers: dict[bytes, str]) -> float:
        """Seconds until this client may ask again; 0: now."""
        path, address = scope["path"], (scope.get("client") or ("",))[0]
        if path.startswith("/static/"):
            return 0.0
        if path.startswith("/join"):
            return self.join_limit.wait(address)
        session = _cookie(headers.get(b"cookie", ""), self.cookie)
        return self.address_limit.wait(address) or (self.limit.wait(session) if session else 0.0)


def _bounded(receive: Receive, seconds: float) -> Receive:
    """Read no more than :data:`LARGEST_BODY` of a request, whatever its length header says, and for no longer than a while.

    Args:
        receive: the next part of the request.
        seconds: time until the whole body is there.
    """
    taken = 0
    whole = False
    end = asyncio.get_running_loop().time() + seconds

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal taken, whole
        if whole:
            return await receive()  # after the body: waits for the client to go
        try:
            async with asyncio.timeout_at(end):
                message = await receive()
        except TimeoutError:
            # Inside a route, which turns it into a reply. What comes on this connection is no request of its own.
            words = "the request did not come to an end; try again, nothing is lost"
            raise HTTPException(408, words, {"connection": "close"}) from None
        taken += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if taken > LARGEST_BODY:
            raise HTTPException(413, f"the request is too large; the limit is {LARGEST_BODY:,} bytes")
        return message

    return bounded


def _with_headers(send: Send, scope: Scope) -> Send:
    async def with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            given = [(name.lower(), value) for name, value in message.get("headers", [])]
            names = {name for name, _ in given}
            wanted = dict(_HEADERS)
            # What a rater sees is for that rater: no proxy, and no back button after leaving, brings it up again.
            wanted["cache-control"] = "no-store"
            if scope.get("scheme") == "https":
                wanted["strict-transport-security"] = "max-age=31536000"
            given += [(n.encode(), v.encode()) for n, v in wanted.items() if n.encode() not in names]
            message = {**message, "headers": given}
        await send(message)

    return with_headers


def _without_body(send: Send) -> Send:
    async def without_body(message: MutableMapping[str, Any]) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return without_body


async def _reply(send: Send, status: int, text: str, wait: float = 0) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    if wait:
        headers.append((b"retry-after", str(int(wait) + 1).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _same_origin(headers: dict[bytes, str], host: str) -> bool:
    """True if a browser says that our own page sent this; clients that are no browsers say nothing."""
    site = headers.get(b"sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


def _name(host: str) -> str:
    """A Host header without its port, and without an IPv6 address's brackets."""
    name, separator, port = host.lower().rpartition(":")
    if separator and port.isdecimal() and not (":" in name and not name.endswith("]")):
        host = name
    return host.lower().strip("[]")


def _cookie(header: str, wanted: str) -> str:
    """A cookie in a Cookie header; empty where there is none."""
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if name == wanted:
            return value
    return ""
