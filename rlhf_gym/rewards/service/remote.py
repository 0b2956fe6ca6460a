"""A client for rewards on another machine: HTTP with JSON, in batches, with time-outs and retries.

The request is ``{"query": [prompt + response, ...], "prompts": [...], "responses": [...], "columns": {name: [...]}}``, the
reply ``{"rewards": [number, ...]}``: services that follow the widely used ``{"query", "prompts"} -> {"rewards"}``
convention work as they are. :mod:`rlhf_gym.rewards.service.serve` is the server.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import date
from typing import Any
from urllib.parse import urlsplit

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.service.limits import CircuitBreaker, UnreachableError
from rlhf_gym.text import shorten

RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 30.0
LASTING = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS; write http:// where it is on this machine or behind a tunnel",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted here",
}
"""Failures of TLS that last, so that the request is not repeated."""
LOG_INTERVAL = 10.0  # least seconds between two lines in the log about retries

log = logging.getLogger(__name__)


class RemoteReward:
    """A reward whose scores come from a web service.

    A request whose failure may be temporary (no connection, time-out, status 429 or 5xx other than a reward's own error)
    is sent again after 0.5, 1, 2, ... seconds, each pause varied by up to a quarter so that many clients do not
    come back at once, until ``patience`` has passed since it was first sent. So a service may be killed and restarted
    in the middle of a run. Requests must therefore be harmless to repeat.

    Where a failed reward does not end the run (an ``on_error`` policy), a
    :class:`~rlhf_gym.rewards.service.limits.CircuitBreaker` keeps the run from waiting out ``patience`` for every
    sample: after ``open_after`` requests in a row that were not answered at all, requests fail at once; after
    ``cool_down`` seconds one is sent, once, to see whether the service is back.

    Args:
        url: address to POST to, e.g. ``http://host:8000/score``.
        batch_size: most samples a request.
        concurrency: requests at once.
        timeout: seconds to wait for one reply.
        patience: seconds to keep trying.
        open_after: requests in a row without an answer that open the circuit breaker.
        cool_down: seconds that it stays open.
        columns: names of the data set's columns to send; None sends all. NumPy's numbers and arrays become JSON's, dates
            their ISO texts, NaN and infinity null.
        headers: further headers, e.g. ``{"Authorization": "Bearer ..."}``; they are never shown in messages.
        name: name to report under.
        on_retry: called with a message before each retry; None writes it to the log, at most once in ten seconds.

    Raises:
        ConfigError: not an http(s) address, or a setting out of its range.
    """

    slow = True  # overlapped scoring (rlhf_gym.rewards.service.overlap)

    def __init__(
        self,
        url: str,
        *,
        batch_size: int = 64,
        concurrency: int = 4,
        timeout: float = 60.0,
        patience: float = 600.0,
        open_after: int = 3,
        cool_down: float = 30.0,
        columns: Sequence[str] | None = None,
        headers: Mapping[str, str] | None = None,
        name: str = "remote",
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ConfigError(f"a remote reward needs an http:// or https:// address, got {url!r}")
        if batch_size < 1 or concurrency < 1 or not timeout > 0 or not patience >= 0:
            raise ConfigError(
                f"a remote reward needs batch_size and concurrency of at least 1, timeout above 0 and patience of 0 or more; "
                f"got {batch_size}, {concurrency}, {timeout} and {patience}"
            )
        if isinstance(columns, str):
            raise ConfigError(f"a remote reward needs a list of columns, got {columns!r}")
        self.url, self.name, self.headers = url, name, dict(headers or {})
        self.columns = None if columns is None else tuple(columns)
        self.batch_size, self.concurrency, self.timeout, self.patience = batch_size, concurrency, timeout, patience
        self.breaker = CircuitBreaker(url, open_after=open_after, cool_down=cool_down)
        self.on_retry = on_retry or self._log
        self._logged = -math.inf  # time of the last line in the log
        self._random = random.Random()  # never the global one: a retry must not change what a seeded run draws

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: the service refused the request, replied with something else than one number a sample, or did not
                come back in time.
        """
        if self.columns is not None:
            if missing := [c for c in self.columns if c not in columns]:
                there = ", ".join(map(repr, columns)) or "no columns"
                raise RewardError(f"reward {self.name!r} is to send the column {missing[0]!r}; the data have {there}")
            columns = {c: columns[c] for c in self.columns}
        chunks = [slice(i, i + self.batch_size) for i in range(0, len(prompts), self.batch_size)]
        bodies = [self._body(prompts[c], responses[c], {k: v[c] for k, v in columns.items()}) for c in chunks]
        sizes = [len(prompts[c]) for c in chunks]
        stop = threading.Event()
        if len(chunks) == 1:
            return self._scores(bodies[0], sizes[0], stop)
        pool = ThreadPoolExecutor(min(self.concurrency, len(chunks)), thread_name_prefix="remote-reward")
        try:
            calls = [pool.submit(self._scores, body, n, stop) for body, n in zip(bodies, sizes, strict=True)]
            wait(calls, return_when=FIRST_EXCEPTION)
            # All have ended, or one of those that have ended failed and raises here.
            return [score for call in calls if call.done() for score in call.result()]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C, do not wait for the rest

    def _body(self, prompts: list[str], responses: list[str], columns: dict[str, list[Any]]) -> bytes:
        query = [p + r for p, r in zip(prompts, responses, strict=True)]
        data: dict[str, Any] = {"query": query, "prompts": prompts, "responses": responses}
        sent = {name: [_plain(value, name, self.name) for value in values] for name, values in columns.items()}
        return json.dumps(data | {"columns": sent}, allow_nan=False).encode("ascii")

    def _scores(self, body: bytes, n: int, stop: threading.Event) -> list[float]:
        reply = self._post(body, stop)
        try:
            rewards = json.loads(reply)["rewards"]
        except (ValueError, TypeError, KeyError) as error:
            raise RewardError(
                f"{self.url} replied {shorten(reply.decode('utf-8', 'replace'))}, expected a JSON object with 'rewards'"
            ) from error
        if not isinstance(rewards, list) or len(rewards) != n:
            got = f"{len(rewards)} rewards" if isinstance(rewards, list) else type(rewards).__name__
            raise RewardError(f"{self.url} replied with {got} for {n} samples; expected one number a sample")
        return rewards

    def _post(self, body: bytes, stop: threading.Event) -> bytes:
        """Send a request, if the circuit breaker lets it through; returns the reply."""
        patience = 0.0 if self.breaker.admit() else self.patience
        with self.breaker.watching(absent=UnreachableError, refused=RewardError, given_up=stop.is_set):
            return self._send(body, stop, patience)

    def _send(self, body: bytes, stop: threading.Event, patience: float) -> bytes:
        """Send until there is a reply, patience ends, or ``stop`` is set."""
        begin, pause = time.monotonic(), 0.5
        while True:
            wait = 0.0
            request = urllib.request.Request(
                self.url, data=body, headers={"Content-Type": "application/json", **self.headers}, method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return _read(reply, time.monotonic() + self.timeout)
            except urllib.error.HTTPError as error:
                said = error.read().decode("utf-8", "replace")
                problem = f"status {error.code}: {_message(said)}"
                # A reward that failed on these samples would fail again.
                if error.code not in RETRIED_STATUS or "reward_error" in said:
                    raise RewardError(f"{self.url} refused the request with {problem}") from error
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException) as error:  # no connection, time-out, cut off in the middle
                reason = getattr(error, "reason", error)
                problem = f"{type(reason).__name__}: {reason}"
                if isinstance(reason, ssl.SSLError) and reason.reason in LASTING:
                    raise RewardError(f"{self.url} cannot be reached: {LASTING[reason.reason]} ({reason})") from error
            passed = time.monotonic() - begin
            wait = max(wait, pause * self._random.uniform(0.75, 1.25))
            if passed + wait > patience or stop.is_set():
                raise UnreachableError(
                    f"{self.url} did not answer within {patience:g} s ({problem}). Start the service and go on with "
                    "--resume; nothing that was scored before is lost."
                )
            self.on_retry(f"{self.url}: {problem}; trying again in {wait:.1f} s, and so on for {patience:g} s")
            stop.wait(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _log(self, message: str) -> None:
        now = time.monotonic()
        if now - self._logged >= LOG_INTERVAL:
            self._logged = now
            log.warning("%s", message)


def _read(reply: Any, deadline: float) -> bytes:
    """The body of a reply; one that trickles in past the deadline is a time-out, too."""
    content = b""
    while piece := reply.read1(65536):
        content += piece
        if time.monotonic() > deadline:
            raise TimeoutError("the reply came too slowly")
    if not reply.chunked and reply.length:
        raise http.client.IncompleteRead(content, reply.length)
    return content


def _plain(value: Any, column: str, reward: str) -> Any:
    """Turn a column's value into a JSON value.

    Args:
        value: the value.
        column: the column's name, for the message.
        reward: the reward's name, for the message.

    Raises:
        RewardError: it cannot be sent as JSON.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, column, reward) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, column, reward) for inner in value]
    if isinstance(value, date):
        return value.isoformat()
    if hasattr(value, "tolist"):  # NumPy's and Torch's
        return _plain(value.tolist(), column, reward)
    raise RewardError(
        f"reward {reward!r}: the column {column!r} holds {type(value).__name__}, which cannot be sent as JSON; name the "
        "columns that the service needs (columns=[...])"
    )


def _message(said: str) -> str:
    """The service's error message, from JSON as :mod:`~rlhf_gym.rewards.service.serve` writes it, or the text."""
    try:
        return str(json.loads(said)["error"])
    except (ValueError, TypeError, KeyError):
        return shorten(said)


def _seconds(header: str | None) -> float:
    """A Retry-After header in seconds; dates are not read."""
    return min(float(header), LONGEST_PAUSE) if header and header.isdecimal() else 0.0
