"""What does not come to an end: a database that stays locked, requests that are half sent, queries that cannot be shown."""

from __future__ import annotations

import http.client
import logging
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy
from waiting import LONG, wait_until
from web_attack import csrf_of, patient
from web_study import answer, joined, pairs, question, study

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query, schema
from rlhf_gym.feedback.rows import query_row
from rlhf_gym.web import study as study_module
from rlhf_gym.web.app import create_app
from rlhf_gym.web.connections import ImpatientProtocol
from rlhf_gym.web.security import RateLimit
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.study import WORKERS, Study

JSON = {"accept": "application/json", "content-type": "application/x-www-form-urlencoded"}


@contextmanager
def served(found: Study, body_seconds: float = 30.0) -> Iterator[int]:
    app = create_app(found)
    app.limit = app.address_limit = RateLimit(1e6, 10**6)
    app.body_seconds = body_seconds
    with PageServer(app, Address(port=0)) as server:
        yield server.address.port


def test_while_the_database_is_locked_the_server_answers_and_pages_are_read(tmp_path: Path) -> None:
    with study(tmp_path, pairs(200)) as found, served(found) as port:
        admin, token = joined(found, "admin"), found.people.invite()
        raters = [joined(found) for _ in range(60)]
        raters[0].get("/rate")  # the queries are offered
        cookies = [f"{found.cookie}={rater.cookies[found.cookie]}" for rater in raters]
        lock = sqlite3.connect(tmp_path / "feedback.sqlite", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        lines = [http.client.HTTPConnection("127.0.0.1", port, timeout=LONG) for _ in raters]
        for line, rater, cookie in zip(lines, raters, cookies, strict=True):
            line.request("POST", "/next", urlencode({"csrf": csrf_of(found, rater)}), {**JSON, "cookie": cookie})
        wait_until(lambda: found._workers._work_queue.qsize() >= len(raters) - WORKERS, "all of them wait")
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)
        by_admin = {"cookie": f"{found.cookie}={admin.cookies[found.cookie]}"}
        for path in ("/healthz", "/static/page.css", f"/join/{token}", "/guidelines", "/admin/answers"):
            line.request("GET", path, headers=by_admin)
            reply = line.getresponse()
            reply.read()
            assert reply.status == 200, path
        lock.execute("ROLLBACK")
        for line in lines:
            reply = line.getresponse()
            assert (reply.status, b"Prompt" in reply.read()) == (200, True)
            line.close()
        lock.close()


def test_writers_wait_for_each_other_no_longer_than_for_another_process(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite", timeout=0.01) as store:
        with store.database._writers, pytest.raises(FeedbackError, match="others waited before it") as caught:
            store.add_queries(pairs(1))
        assert isinstance(caught.value.__cause__, TimeoutError)  # the page says to try again
        assert store.add_queries(pairs(1)) == 1


def test_whoever_waited_for_a_thread_too_long_is_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with study(tmp_path, pairs(1)) as found:
        rater = joined(found)
        action, hidden, _ = question(rater)
        with monkeypatch.context() as patched:
            patched.setattr(study_module, "PATIENCE", -1.0)
            reply = rater.post(action, data={**hidden, "answer": "a2"})
        assert (reply.status_code, "send it again" in reply.text) == (503, True)
        assert rater.post(action, data={**hidden, "answer": "a2"}).status_code == 303


def until_closed(port: int, sent: bytes) -> bytes:
    """What a server says to a request that goes no further, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONG) as line:
        line.sendall(sent)
        said = b""
        while part := line.recv(65536):
            said += part
    return said


def test_the_server_leaves_other_logs_of_its_process_open(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "log", mode="w")
    with study(tmp_path, pairs(1)) as found, served(found):
        handler.emit(logging.makeLogRecord({"msg": "still here"}))
    handler.close()
    assert (tmp_path / "log").read_text() == "still here\n"


def test_a_request_that_does_not_come_to_an_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImpatientProtocol, "head_seconds", 0.1)  # since the connection, or the last reply
    with study(tmp_path, pairs(1)) as found, served(found, body_seconds=0.1) as port:
        for head in (b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"):
            assert until_closed(port, head) == b""
        monkeypatch.setattr(ImpatientProtocol, "head_seconds", 1.0)  # enough to send a whole head, on a busy machine
        said = until_closed(port, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhos")
        assert said.startswith(b"HTTP/1.1 200")
        assert said.endswith(b"ok")  # and the second one was given up
        form = b"host: x\r\naccept: application/json\r\ncontent-type: application/x-www-form-urlencoded\r\n"
        for body in (b"content-length: 50\r\n\r\ntoken=", b"transfer-encoding: chunked\r\n\r\n3\r\ntok\r\n"):
            said = until_closed(port, b"POST /join HTTP/1.1\r\n" + form + body)
            assert said.startswith(b"HTTP/1.1 408")
            assert b"nothing is lost" in said


def test_bytes_that_trickle_in_do_not_put_the_end_off() -> None:
    """The clock of a request's head is set once, stopped by a whole head, and set again by the next request's first byte."""

    class Loop:
        def __init__(self) -> None:
            self.timers: list[Any] = []

        def call_later(self, seconds: float, act: Any) -> Any:
            timer = type(
                "Timer", (), {"act": act, "stopped": False, "cancel": lambda self: setattr(self, "stopped", True)}
            )()
            self.timers.append(timer)
            return timer

    class Line(ImpatientProtocol):
        def __init__(self) -> None:
            self.loop: Any = Loop()
            self.cycle: Any = None

    line = Line()
    for _ in range(5):
        line._watch()
    [first] = line.loop.timers
    line.cycle = type("Cycle", (), {"response_complete": False})()
    line._watch()
    assert first.stopped
    line.cycle.response_complete = True
    line._watch()
    line._watch()
    assert [timer.stopped for timer in line.loop.timers] == [True, False]


def broken(store: FeedbackStore, query: Query, **columns: Any) -> Query:
    """Store a query that no page can show, as an earlier version or a hand has put it there."""
    with store.database.writing() as connection:
        connection.execute(schema.queries.insert(), {**query_row(query, datetime.now(UTC)), **columns})
    return query


def test_a_query_that_cannot_be_shown_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = pairs(4)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        bad = [
            broken(store, Query(prompt="null", responses=("a", "b"), index=-3), responses=["a", None]),
            broken(store, Query(prompt="parts", responses=("a", "b"), index=-2), responses=[{"text": "a"}, "b"]),
            broken(store, Query(prompt="number", responses=("a", "b"), index=2), prompt=7),
            broken(store, Query(prompt="no columns", responses=("a", "b"), round=0), columns=["a"]),
            broken(store, Query(prompt="no responses", responses=("a", "b"), index=3), responses=sqlalchemy.JSON.NULL),
        ]
        given = [vars(Judgement(query_id=query.id, rater="import", choice=0)) for query in bad]
        with store.database.writing() as connection:
            connection.execute(schema.judgements.insert(), given)
    with study(tmp_path, sound) as found, caplog.at_level(logging.ERROR):
        rater, admin = patient(joined(found)), patient(joined(found, "admin"))
        seen = []
        for _ in range(4):
            seen.append(re.findall(r"Prompt \d", question(rater)[2])[0])
            assert answer(rater, "a2").status_code == 303
        assert seen == [f"Prompt {i}" for i in range(4)]
        assert "Nothing to rate right now" in rater.get("/rate").text
        reply = rater.post("/next", data={"csrf": csrf_of(found, rater)}, headers={"accept": "application/json"})
        assert (reply.status_code, reply.json()["cards"]) == (200, [])
        page = admin.get("/admin").text
        assert "5 queries in the store cannot be shown" in page
        assert all(query.id in page for query in bad)
        assert "response 2" in page
        assert "columns must be values by name, got list" in page
        assert f"rlhf-gym rate withdraw ID --store {found.store.place}" in page
        found.store.withdraw(bad[0].id)
        page = admin.get("/admin").text
        assert "4 queries in the store cannot be shown" in page
        for path in ("/admin/answers", "/admin/answers?text=a", "/admin/export/native", "/admin/export/hh"):
            reply = admin.get(path)
            assert (reply.status_code, "null" in reply.text and bad[0].id in reply.text) == (200, False), path
        # A second rater, and the page started again, meet none of it any more.
        assert "Nothing to rate right now" in patient(joined(found)).get("/rate").text
    with study(tmp_path, []) as found:
        assert patient(joined(found)).get("/rate").status_code == 200


def test_whatever_makes_a_card_fail_costs_that_question_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Study.card

    def card(self: Study, assignment: Any, session: str) -> Any:
        if assignment.query.index == 1:
            raise RecursionError("no end")
        return real(self, assignment, session)

    monkeypatch.setattr(Study, "card", card)
    with study(tmp_path, pairs(3)) as found:
        rater = patient(joined(found))
        for number in (0, 2):
            assert f"Prompt {number}" in question(rater)[2]
            assert answer(rater, "a2").status_code == 303
        assert "Nothing to rate right now" in rater.get("/rate").text
        trail = patient(joined(found, "admin")).get("/admin").text
        assert "set aside" in trail
        assert "RecursionError: no end" in trail
        assert "1 query in the store cannot be shown" in trail
    with study(tmp_path, []) as found:  # the page started again
        assert "Nothing to rate right now" in patient(joined(found)).get("/rate").text
        [aside] = found.set_aside(queries=3)
        found.store.withdraw(aside.id)
        assert found.set_aside(queries=2) == []


def test_a_second_answer_from_another_window_is_said_to_replace_the_first(tmp_path: Path) -> None:
    with study(tmp_path, pairs(2)) as found:
        rater = patient(joined(found))
        action, hidden, _ = question(rater)
        assert rater.post(action, data={**hidden, "answer": "tie"}).status_code == 303
        reply = rater.post(action, data={**hidden, "answer": "b3"})
        assert reply.status_code == 200
        assert (
            "You had answered this question in another window (Tie). Your new answer replaces that one." in reply.text
        )
        reply = rater.post(
            action, data={**hidden, "answer": "a1", "seconds": "2.5"}, headers={"accept": "application/json"}
        )
        assert reply.json()["replaced"] == "B is much better"
        [standing] = found.store.judgements()
        assert (standing.choice, standing.strength) == (standing.order_shown[0], 1.0)
        assert len(found.store.judgements(superseded=True)) == 3
        assert "1 answered" in rater.get("/rate").text
