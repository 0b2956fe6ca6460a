"""Troubles through the page: a database that restarts, a disk that is full, clocks that jump.

After each, every acknowledged answer is there exactly once, and raters were told what is the matter and went on.
"""

from __future__ import annotations

import http.client
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from postgres_server import start_server
from tiny_run import command
from waiting import LONG, wait_for_more, wait_until
from web_attack import patient
from web_study import answer, joined, pairs, question, study

from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.web.app import create_app
from rlhf_gym.web.security import RateLimit
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.study import Study

CARD = re.compile(r'data-id=\\?"([^"\\]+)\\?"')
TOLD = (
    "database cannot store answers at the moment",
    "Everything that was stored before is still there",
    "send it again",
)


class Script:
    """Stands for the page's script: an answer is sent again, as it was, until the server confirms it."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.acknowledged: list[str] = []
        self.told: list[str] = []
        reply = self._ask("POST", "/join", {"token": token})
        self.cookie = str(reply.headers["set-cookie"]).partition(";")[0]
        self.csrf = re.findall(r'name="csrf" value="(\w+)"', self._ask("GET", "/rate").text)[0]

    def _ask(self, method: str, path: str, fields: dict[str, str] | None = None) -> Any:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LONG)
        headers = {"Accept": "application/json", "Cookie": getattr(self, "cookie", "")}
        body = None
        if fields is not None:
            body, headers["Content-Type"] = urlencode(fields), "application/x-www-form-urlencoded"
        line.request(method, path, body, headers)
        reply: Any = line.getresponse()
        reply.text = reply.read().decode()
        line.close()
        return reply

    def post(self, path: str, **fields: str) -> Any:
        """One try."""
        reply = self._ask("POST", path, {"csrf": self.csrf, **fields})
        if reply.status == 503:
            self.told.append(reply.text)
        else:
            assert reply.status in (200, 429), reply.text  # or it is in too much of a hurry for a person
        return reply

    def insist(self, path: str, **fields: str) -> str:
        """Tries until it works."""
        while (reply := self.post(path, **fields)).status != 200:
            time.sleep(0.05)
        return str(reply.text)

    def held(self) -> str | None:
        """The question that is open; None where there is none left."""
        found = CARD.search(self.insist("/next", have=""))
        return found[1] if found else None

    def answer(self, reason: str) -> bool:
        """Answer the open question with a reason that nobody else gives; False where there is none."""
        lease = self.held()
        if lease is None:
            return False
        self.insist(f"/rate/{lease}", query_type="pair", answer="a2", reason=reason)
        self.acknowledged.append(reason)
        return True


def everything_is_there_once(store: FeedbackStore, acknowledged: list[str]) -> None:
    stored = Counter(j.reason for j in store.judgements(superseded=True) if j.reason)
    assert set(stored.values()) == {1}
    assert set(stored) == set(acknowledged)  # each was sent until it was acknowledged
    assert len(acknowledged) == len(set(acknowledged))
    asked = Counter((j.query_id, j.rater) for j in store.judgements())
    assert set(asked.values()) == {1}


@contextmanager
def served(found: Study) -> Iterator[int]:
    app = create_app(found)
    app.limit = app.address_limit = RateLimit(1e6, 10**6)
    with PageServer(app, Address(port=0)) as server:
        yield server.address.port


def test_the_database_s_server_restarts_under_raters_who_answer() -> None:
    server = start_server()
    try:
        with study(server.new_url(), pairs(3000), queue=QueueSettings(overlap=2)) as found, served(found) as port:
            token, stop = found.people.invite(uses=9), threading.Event()
            scripts = [Script(port, token) for _ in range(4)]

            def rate(script: Script, number: int) -> None:
                count = 0
                while not stop.is_set() and script.answer(f"rater {number}, answer {count}"):
                    count += 1

            threads = [threading.Thread(target=rate, args=(s, n)) for n, s in enumerate(scripts)]
            for thread in threads:
                thread.start()
            try:
                for how in ("fast", "immediate"):  # an orderly restart, then a crash
                    wait_for_more(lambda: sum(len(script.acknowledged) for script in scripts), 10, "raters answer")
                    server.stop(how)
                    wait_for_more(lambda: sum(len(script.told) for script in scripts), 1, "raters are told")
                    server.start()
                wait_for_more(lambda: sum(len(script.acknowledged) for script in scripts), 10, "raters go on")
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            acknowledged = [reason for script in scripts for reason in script.acknowledged]
            for words in (words for script in scripts for words in script.told):
                assert all(part in words for part in TOLD), words
                assert "127.0.0.1" not in words
            everything_is_there_once(found.store, acknowledged)
    finally:
        server.remove()


def test_a_rater_without_script_sees_what_is_the_matter_and_goes_on(tmp_path: Path) -> None:
    """The database itself is full: plain forms, sent again by hand."""
    with study(tmp_path, pairs(60)) as found:
        rater = patient(joined(found))
        database = found.store.database
        with database.writing() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 4}")
        acknowledged = []
        for number in range(60):
            action, hidden, _ = question(rater)
            said = {**hidden, "answer": "a2", "reason": f"{number} " + "because " * 200}
            reply = rater.post(action, data=said)
            if reply.status_code != 303:
                break
            acknowledged.append(said["reason"].strip())
        assert reply.status_code == 503
        assert len(acknowledged) > 1
        assert all(part in reply.text.replace("&#39;", "'") for part in TOLD)
        assert "Go on" in reply.text
        assert rater.get("/healthz").status_code == 200
        assert found.store.count().judgements == len(acknowledged)
        with database.reading() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        for _ in range(2):  # the form sent again, and once more by a double click
            assert rater.post(action, data=said).status_code == 303
        acknowledged.append(said["reason"].strip())
        assert f"{len(acknowledged)} answered" in rater.get("/rate").text
        everything_is_there_once(found.store, acknowledged)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit, to limit another process's files")
def test_the_server_s_disk_takes_no_more_and_then_does_again(tmp_path: Path) -> None:
    place = tmp_path / "feedback.sqlite"
    with FeedbackStore(place) as store:
        store.add_queries(pairs(300))
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command("rate", "--serve", place, "--port", "0"), stdout=file, stderr=file)
    try:
        printed = re.compile(r"raters: +http://127\.0\.0\.1:(\d+)/join/(\S+)\s")
        wait_until(lambda: printed.search(log.read_text()) or process.poll() is not None, "the page is served")
        links = printed.search(log.read_text())
        assert links, log.read_text()
        script = Script(int(links[1]), links[2])
        for number in range(5):
            script.answer(f"before {number}")
        largest = max(file.stat().st_size for file in tmp_path.iterdir())
        unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest + 150_000, unlimited[1]))
        began = time.monotonic()
        writer = threading.Thread(
            target=lambda: [script.answer(f"during {number} " + "because " * 200) for number in range(60)]
        )
        writer.start()
        wait_until(lambda: len(script.told) >= 3, "the rater is told three times")
        assert all(all(part in words for part in TOLD) for words in script.told)
        assert not any(str(tmp_path) in words for words in script.told)
        kept = len(script.acknowledged)
        assert 5 < kept < 65
        assert script._ask("GET", "/healthz").status == 200
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
        full_for = time.monotonic() - began
        writer.join()
        assert len(script.acknowledged) == 65
        process.terminate()
        process.wait()
        said = log.read_text()
        assert "free some space" in said  # whoever runs the study is told, and not over and over
        assert said.count("could not be") <= 2 + full_for / 10
        with FeedbackStore(place) as store:
            everything_is_there_once(store, [reason.strip() for reason in script.acknowledged])
    finally:
        process.kill()
        process.wait()


# Replies only once the server has begun to end.
SLOW = """
import asyncio, signal
from rlhf_gym.web.server import Address, PageServer

def end(*_):
    raise KeyboardInterrupt

async def slow(scope, receive, send):
    print("asked", flush=True)
    while not server._server.should_exit:
        await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"stored"})

signal.signal(signal.SIGTERM, end)
server = PageServer(slow, Address(port=0))
with server:
    print(server.address.port, flush=True)
    server.wait()
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_whoever_is_being_answered_when_the_server_is_ended_gets_the_reply(how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout
        line = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=LONG)
        line.request("POST", "/rate/x")
        assert process.stdout.readline() == "asked\n"
        process.send_signal(how)
        assert line.getresponse().read() == b"stored"
        line.close()
        _, said = process.communicate(timeout=LONG)
        assert "rating page" not in said, said  # no error in the server's own thread
    finally:
        process.kill()
        process.wait()


class _AnyTime(type):
    """What the real clock has made is a time to the modules that have another one, too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, datetime)


class Clock(datetime, metaclass=_AnyTime):
    """The server's clock, which jumps, and otherwise stands: nothing may depend on how busy the machine is."""

    start = datetime(2026, 1, 1, tzinfo=UTC)
    ahead = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.start + cls.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    """In every module of the store and of the page, whichever there are; the monotonic clock goes on as it does."""
    patched = 0
    for name, module in list(sys.modules.items()):
        if (
            name.startswith(("rlhf_gym.feedback", "rlhf_gym.study", "rlhf_gym.web"))
            and getattr(module, "datetime", None) is datetime
        ):
            monkeypatch.setattr(module, "datetime", Clock)
            patched += 1
    assert patched >= 4
    Clock.ahead = timedelta(0)
    return Clock


JUMPS = [timedelta(minutes=20), timedelta(days=1), timedelta(days=29), -timedelta(hours=1), -timedelta(days=400)]


@pytest.mark.parametrize("jump", JUMPS, ids=str)
def test_a_jump_while_the_rater_reads_loses_nothing(tmp_path: Path, clock: type[Clock], jump: timedelta) -> None:
    with study(tmp_path, pairs(12)) as found:
        rater = patient(joined(found))
        acknowledged = []
        for number in range(3):
            clock.ahead = timedelta(0)
            action, hidden, _ = question(rater)
            clock.ahead = jump  # and back again for the next
            said = {**hidden, "answer": "a2", "reason": f"answer {number}"}
            for _ in range(2):
                assert rater.post(action, data=said).status_code == 303
            acknowledged.append(said["reason"])
        # There, a correction and the next questions work as ever.
        rater.post("/undo", data=hidden)
        assert question(rater)[0] == action
        assert rater.post(action, data={**hidden, "answer": "b3", "reason": "corrected"}).status_code == 303
        for number in range(4):
            assert answer(rater, "a1", reason=f"afterwards {number}").status_code == 303
            acknowledged.append(f"afterwards {number}")
        clock.ahead = timedelta(0)
        everything_is_there_once(found.store, [*acknowledged, "corrected"])
        assert found.store.count().current == 7
        assert all(0 <= (j.seconds or 0) <= 86_400 for j in found.store.judgements())
        admin = patient(joined(found, "admin"))
        for path in ("/admin", "/admin/answers"):
            assert admin.get(path).status_code == 200


def test_a_session_that_a_jump_ended_is_said_and_comes_back_with_the_time(tmp_path: Path, clock: type[Clock]) -> None:
    with study(tmp_path, pairs(3)) as found:
        rater = patient(joined(found))
        action, hidden, _ = question(rater)
        said = {**hidden, "answer": "a2", "reason": "kept in the page"}
        clock.ahead = timedelta(days=31)
        reply = rater.post(action, data=said)
        assert reply.status_code == 401
        assert "Open the link that you were sent" in reply.text
        assert rater.post(action, data=said, headers={"accept": "application/json"}).json() == {"error": "sign in"}
        clock.ahead = timedelta(0)  # somebody has set it right
        assert rater.post(action, data=said).status_code == 303
        everything_is_there_once(found.store, ["kept in the page"])


def test_what_was_held_when_the_clock_was_ahead_is_soon_free_again(tmp_path: Path, clock: type[Clock]) -> None:
    with study(tmp_path, pairs(2), queue=QueueSettings(lease_seconds=60)) as found:
        gone, here = patient(joined(found)), patient(joined(found))
        clock.ahead = timedelta(days=20)
        question(gone)  # holds both, until the clock's next month
        clock.ahead = timedelta(0)
        assert "Nothing to rate right now" in here.get("/rate").text
        clock.ahead = timedelta(seconds=61)
        assert answer(here, "a2").status_code == 303
        assert answer(here, "a2").status_code == 303
        assert found.store.count().answered == 2


def test_raters_under_a_clock_that_jumps_all_the_time(tmp_path: Path, clock: type[Clock]) -> None:
    chance = random.Random(4)
    with study(tmp_path, pairs(40), queue=QueueSettings(overlap=2, lease_seconds=60)) as found:
        raters = [patient(joined(found)) for _ in range(3)]
        open_: dict[int, tuple[str, dict[str, str]]] = {}
        acknowledged: list[str] = []
        refused = 0
        for step in range(220):
            days = chance.choice([0, 0, 0, 0.01, 1, 20, 28, 35, -0.01, -1, -300])
            clock.ahead = timedelta(days=days, seconds=step)
            number = chance.randrange(3)
            if number not in open_:
                page = raters[number].get("/rate")
                assert page.status_code == (401 if days == 35 else 200)
                action = re.search(r'action="(/rate/[^"]+)"', page.text)
                if action:
                    open_[number] = (
                        action[1],
                        dict(re.findall(r'name="(csrf|query_type|shown)" value="([^"]*)"', page.text)),
                    )
                continue
            action_, hidden = open_[number]
            reply = raters[number].post(action_, data={**hidden, "answer": "b1", "reason": f"step {step}"})
            refused += reply.status_code == 401
            if reply.status_code == 303:
                acknowledged.append(f"step {step}")
                del open_[number]
                raters[number].post(
                    action_, data={**hidden, "answer": "b1", "reason": f"step {step}"}
                )  # a double click
            else:
                assert days == 35, reply.text
        assert refused > 3
        assert len(acknowledged) > 60
        everything_is_there_once(found.store, acknowledged)
