"""A service that does not answer: retries and their pauses, time-outs, the circuit breaker, the cache; on this machine."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from held_port import held_port
from waiting import LONG

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import CachedReward, FillOnError, SkipOnError, score
from rlhf_gym.rewards.service import remote as remote_module
from rlhf_gym.rewards.service.limits import CircuitBreaker, UnreachableError
from rlhf_gym.rewards.service.remote import RemoteReward
from rlhf_gym.rewards.service.serve import RewardServer


def lengths(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(r)) for r in responses]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between requests, which are noted instead of waited for."""
    found: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            found.append(timeout)
            return self.is_set()

    monkeypatch.setattr(remote_module, "threading", SimpleNamespace(Event=Stop))
    return found


class Service:
    """Answers each connection by the next of some plans: a status, ``"hang"``, ``"cut"`` or ``"ok"``; "ok" for ever after.

    Connections take their plans in the order in which they come in, whichever thread runs first.

    Args:
        plans: the plans.
        retry_after: the header, of replies that are not ok.
        at_once: requests that are answered together, once so many are there.
    """

    def __init__(self, *plans: int | str, retry_after: str = "", at_once: int = 1) -> None:
        self.requests = self.now = self.most_at_once = 0
        self.ended = threading.Event()
        taken: dict[Any, int | str] = {}
        steps: Iterator[int | str] = itertools.chain(plans, itertools.repeat("ok"))
        lock, meeting, outer = threading.Lock(), threading.Barrier(at_once, timeout=LONG), self

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request: Any, client_address: Any) -> None:
                outer.requests += 1
                taken[client_address] = next(steps)
                super().process_request(request, client_address)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                plan = taken[self.client_address]
                self.rfile.read(int(self.headers["Content-Length"]))
                if plan == "hang":
                    outer.ended.wait(LONG)
                    return
                with lock:
                    outer.now += 1
                    outer.most_at_once = max(outer.most_at_once, outer.now)
                meeting.wait()
                with lock:
                    outer.now -= 1
                if plan == "cut":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
                    return
                body = b'{"rewards": [1.0]}'
                self.send_response(plan if isinstance(plan, int) else 200)
                if retry_after and plan != "ok":
                    self.send_header("Retry-After", retry_after)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/score"


@contextmanager
def running(service: Service) -> Iterator[Service]:
    thread = threading.Thread(target=service.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.ended.set()
        service.http.shutdown()
        service.http.server_close()
        thread.join()


# --------------------------------------------------------------------------------------------- retries and time-outs


def test_what_may_pass_is_sent_again_ever_more_slowly(pauses: list[float]) -> None:
    said: list[str] = []
    with running(Service(503, "cut")) as service:
        assert RemoteReward(service.url, patience=30, on_retry=said.append)(["p"], ["r"]) == [1.0]
    assert service.requests == 3
    first, second = pauses
    assert 0.375 <= first <= 0.625  # 0.5 s, a quarter more or less
    assert 0.75 <= second <= 1.25  # then twice that
    assert "status 503" in said[0]
    assert "IncompleteRead" in said[1] or "Remote" in said[1]


def test_a_service_says_how_long_to_wait(pauses: list[float]) -> None:
    with running(Service(429, retry_after="7")) as service:
        RemoteReward(service.url, patience=30)(["p"], ["r"])
    assert pauses == [7.0]


def test_a_service_that_hangs_is_given_up_and_called_again(pauses: list[float]) -> None:
    said: list[str] = []

    def patiently(message: str) -> None:
        said.append(message)
        remote.timeout = LONG  # the next reply may take as long as it takes

    with running(Service("hang")) as service:
        remote = RemoteReward(service.url, timeout=0.2, patience=30, on_retry=patiently)
        assert remote(["p"], ["r"]) == [1.0]
    assert "timed out" in said[0].lower()
    assert service.requests == 2


def test_what_cannot_pass_is_not_sent_again() -> None:
    with running(Service(404)) as service, pytest.raises(RewardError, match="refused the request with status 404"):
        RemoteReward(service.url, patience=30)(["p"], ["r"])
    assert service.requests == 1


def test_so_many_requests_at_once_and_no_more() -> None:
    with running(Service(at_once=3)) as service:
        remote = RemoteReward(service.url, batch_size=1, concurrency=3, timeout=LONG)
        assert remote(["p"] * 12, ["r"] * 12) == [1.0] * 12
    assert service.requests == 12
    assert service.most_at_once == 3


def test_a_cache_calls_once() -> None:
    with running(Service()) as service:
        known = CachedReward(RemoteReward(service.url, batch_size=1))
        assert known(["p"] * 3, ["r", "r", "s"]) == [1.0] * 3
        assert known(["p"] * 2, ["s", "r"]) == [1.0] * 2
    assert service.requests == 2
    assert (known.hits, known.misses) == (3, 2)


# ---------------------------------------------------------------------------------------------------------- the breaker


def test_the_breaker_by_its_clock(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    breaker = CircuitBreaker("http://there", open_after=2, cool_down=10, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        assert not breaker.admit()
        breaker.failed("refused")
        assert not breaker.admit()
        breaker.succeeded()  # in a row counts
        for _ in range(2):
            assert breaker.state == "closed"
            assert not breaker.admit()
            breaker.failed("refused")
        assert breaker.state == "open"
        now[0] = 9
        with pytest.raises(
            UnreachableError, match=r"http://there is not called: its last 2 calls failed, .* in 1\.0 s .*refused"
        ):
            breaker.admit()
        now[0] = 10
        assert breaker.state == "half-open"
        assert breaker.admit()
        with pytest.raises(UnreachableError, match="being tried again by another call"):
            breaker.admit()  # one trial at a time
        breaker.failed("still refused")
        now[0] = 19
        with pytest.raises(UnreachableError, match=r"last 3 calls failed.*still refused"):
            breaker.admit()
        now[0] = 20
        assert breaker.admit()
        breaker.abandoned()  # nobody learned anything
        assert breaker.admit()
        breaker.succeeded()
    assert breaker.state == "closed"
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "http://there has failed 2 times in a row and is left alone for 10 s: refused"
    assert lines[-1] == "http://there answers again"
    assert sum("is tried again after 10 s" in line for line in lines) == 3


@pytest.mark.parametrize("options", [{"open_after": 0}, {"cool_down": -1}])
def test_settings(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="circuit breaker needs"):
        RemoteReward("http://host/score", **options)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:reward .* has failed")
def test_with_a_policy_a_dead_service_costs_no_patience_and_comes_back(pauses: list[float]) -> None:
    now = [0.0]
    with held_port() as port:
        remote = RemoteReward(f"http://127.0.0.1:{port}/score", patience=0.4, open_after=2, cool_down=60)
        remote.breaker.clock = lambda: now[0]
        skipping = SkipOnError(remote, most=1000)
        scored = score(skipping, ["p"] * 50, ["abc"] * 50, may_skip=True)
        assert not scored.kept.any()
        errors = [failure.error for failure in scored.failures or () if failure is not None]
        assert "did not answer within 0.4 s" in errors[0]
        # Two calls were made, one for the batch and one for the first sample, and none for the other 49.
        assert all("is not called: its last 2 calls failed" in error for error in errors[1:])
        assert len(errors) == 50
        with RewardServer(lengths, port=port):
            assert FillOnError(remote, fill=-1)(["p"], ["abc"]) == [-1]  # there, but it is not called yet
            now[0] = 60
            assert score(skipping, ["p"] * 2, ["abc", "d"]).values.tolist() == [3, 1]
            assert remote.breaker.state == "closed"


def test_a_refusal_is_an_answer() -> None:
    def broken(prompts: list[str], responses: list[str]) -> list[float]:
        raise ValueError("no")

    with RewardServer(broken, port=0) as server:
        remote = RemoteReward(server.url, open_after=1)
        for _ in range(3):
            with pytest.raises(RewardError, match="raised ValueError: no"):
                remote(["p"], ["r"])
    assert remote.breaker.state == "closed"


def test_the_trial_is_one_request(pauses: list[float]) -> None:
    with held_port() as port:
        remote = RemoteReward(f"http://127.0.0.1:{port}/score", patience=0.1, open_after=1, cool_down=0)
        for _ in range(2):
            with pytest.raises(RewardError):
                remote(["p"], ["r"])
            remote.patience = 600  # the trial does not wait for it
    assert pauses == []
