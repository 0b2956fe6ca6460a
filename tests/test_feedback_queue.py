"""Handing out under every order of events, from many threads and processes, under kill -9 and across a server's restart."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from postgres_server import PostgresServer
from sqlalchemy import select
from waiting import wait_for_more

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query, schema
from rlhf_gym.study import queue as queue_module
from rlhf_gym.study.leases import Answer, Assignment, QueueSettings
from rlhf_gym.study.queue import Queue

RATERS = ("web/a", "web/b", "web/c")
ANSWERS = (
    Answer(choice=0, strength=1.0),
    Answer(choice=1, strength=3.0),
    Answer(tie=True, details={"both_bad": True}),
    Answer(skipped=True),
    Answer(skipped=True, details={"flagged": "rude"}),
)


def pairs(count: int) -> list[Query]:
    return [Query(prompt=f"p{i}", responses=(f"x{i}", f"y{i}"), index=i) for i in range(count)]


class Clock(datetime):
    """A clock that jumps, and otherwise stands: what happens must not depend on how busy the machine is."""

    start = datetime(2026, 1, 1, tzinfo=UTC)
    ahead = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.start + cls.ahead


class Handing(RuleBasedStateMachine):
    """Raters come, answer, answer twice, take back, leave; clocks jump both ways; the page is started again."""

    overlap = 1

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        queue_module.datetime = Clock  # type: ignore[misc]
        Clock.ahead = timedelta(0)
        self.store = FeedbackStore(self.folder / "f.sqlite")
        self.queries = {query.id: query for query in pairs(4)}
        self.store.add_queries(self.queries.values())
        self.start()
        self.known: dict[str, Assignment] = {}
        self.acknowledged: list[str] = []
        self.seconds = 0
        self.said: dict[str, Answer] = {}
        self.surplus: set[str] = set()  # queries that may have more answers than asked for, and why is known

    def start(self) -> None:
        self.queue = Queue(self.store, QueueSettings(overlap=self.overlap, lease_seconds=60, repeat_share=0.2))

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            queue_module.datetime = datetime  # type: ignore[misc]
            self.store.close()
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        """However it went: enough further raters answer everything, and nothing has been lost on the way."""
        Clock.ahead += timedelta(days=1)
        for number in range(self.overlap):
            while held := self.queue.next(f"web/z{number}"):
                self.queue.submit(held[0].id, f"web/z{number}", ANSWERS[0], seconds=1)
        for query_id, (taken, _) in self.slots().items():
            assert taken >= self.overlap, query_id

    def slots(self) -> dict[str, tuple[int, bool]]:
        with self.store.database.reading() as connection:
            table = schema.slots.c
            return {
                i: (taken, is_open)
                for i, taken, is_open in connection.execute(select(table.query_id, table.taken, table.open))
            }

    @rule(rater=st.sampled_from(RATERS), count=st.integers(1, 3))
    def come(self, rater: str, count: int) -> None:
        self.hold(rater, self.queue.next(rater, count=count), count)

    def hold(self, rater: str, held: list[Assignment], count: int) -> None:
        assert len(held) <= count
        assert len({a.id for a in held}) == len(held)
        for a in held:
            before = self.known.setdefault(a.id, a)
            assert (a.rater, a.query, a.order_shown, a.kind) == (rater, before.query, before.order_shown, before.kind)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), answer=st.sampled_from(ANSWERS), count=st.integers(0, 2))
    def answer(self, data: st.DataObject, answer: Answer, count: int) -> None:
        # In the order in which they were handed out: their ids are random, and order by id would not be the same in every run.
        a = self.known[data.draw(st.sampled_from(list(self.known)))]
        self.seconds += 1  # each is an answer of its own, and no retry
        receipt, following = self.queue.exchange(a.id, a.rater, answer, seconds=self.seconds, count=count)
        self.hold(a.rater, following, count)
        assert a.id not in [f.id for f in following]
        # The same ones; a question that lapsed and came back stands last here, and at its old place from then on.
        assert {f.id: f for f in following} == {f.id: f for f in self.queue.next(a.rater, count=count)}
        if receipt.late or receipt.repeated or receipt.replaced:
            self.surplus.add(a.query.id)
        if not receipt.repeated and receipt.judgement_id not in self.acknowledged:
            self.acknowledged.append(receipt.judgement_id)
            self.said[receipt.judgement_id] = answer
        again = self.queue.submit(a.id, a.rater, answer, seconds=self.seconds)
        assert (again.judgement_id, again.repeated) == (receipt.judgement_id, True)

    @rule(rater=st.sampled_from(RATERS))
    def take_back(self, rater: str) -> None:
        a = self.queue.undo(rater)
        if a is not None:
            assert a.earlier is not None
            assert self.known[a.id].order_shown == a.order_shown
            self.surplus.add(a.query.id)  # a skip that somebody else has answered meanwhile may become an answer

    @rule(rater=st.sampled_from(RATERS))
    def leave(self, rater: str) -> None:
        self.queue.release(rater)

    @rule(seconds=st.sampled_from([1, 59, 61, 4000, 90_000, -1, -59, -4000, -90_000]))
    def jump(self, seconds: int) -> None:
        Clock.ahead += timedelta(seconds=seconds)

    @rule()
    def start_again(self) -> None:
        self.store.close()
        self.store = FeedbackStore(self.folder / "f.sqlite")
        self.start()

    @invariant()
    def what_was_acknowledged_is_there_once(self) -> None:
        stored = self.store.judgements(superseded=True)
        assert sorted(j.id for j in stored) == sorted(self.acknowledged)
        for j in stored:
            said = self.said[j.id]
            assert j.choice == (None if said.choice is None else j.order_shown[said.choice])
            assert (j.tie, j.skipped, j.strength) == (said.tie, said.skipped, said.strength)

    @invariant()
    def nobody_stands_twice_for_one_query(self) -> None:
        standing = Counter((j.query_id, j.rater, j.details.get("kind")) for j in self.store.judgements())
        assert set(standing.values()) <= {1}

    @invariant()
    def counts_are_what_they_count(self) -> None:
        stored = {j.id: j for j in self.store.judgements(superseded=True)}
        taken: Counter[str] = Counter()
        table = schema.assignments.c
        with self.store.database.reading() as connection:
            rows = connection.execute(select(schema.assignments).where(table.kind == "query")).mappings().all()
        for row in rows:
            judgement = stored[row["judgement_id"]] if row["judgement_id"] else None
            passed_on = judgement is not None and judgement.skipped and not judgement.details.get("flagged")
            holds = row["state"] == "open" if judgement is None else not passed_on
            taken[row["query_id"]] += holds
        for query_id, (counted, is_open) in self.slots().items():
            assert counted == taken[query_id]
            assert is_open == (counted < self.overlap)
            assert counted <= self.overlap or query_id in self.surplus


class HandingTwice(Handing):
    """Each query to two people."""

    overlap = 2


_BUDGET = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
TestHanding = Handing.TestCase
TestHanding.settings = _BUDGET
TestHandingTwice = HandingTwice.TestCase
TestHandingTwice.settings = _BUDGET


def test_a_clock_that_goes_back_does_not_keep_a_query_from_others(
    store_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "datetime", Clock)
    Clock.ahead = timedelta(days=7)
    with FeedbackStore(store_place) as store:
        store.add_queries(pairs(1))
        queue = Queue(store, QueueSettings(lease_seconds=60))
        [held] = queue.next("web/gone")
        Clock.ahead = timedelta(0)
        assert queue.next("web/b") == []
        Clock.ahead = timedelta(seconds=61)
        [other] = queue.next("web/b")
        assert other.query == held.query
        assert queue.submit(held.id, "web/gone", ANSWERS[0], seconds=1).late
        assert not queue.submit(other.id, "web/b", ANSWERS[0], seconds=1).late
        assert store.count().judgements == 2


def test_whatever_stands_in_an_address_is_no_question(store_place: str) -> None:
    with FeedbackStore(store_place) as store:
        for name in ("nul \0", "", "\ud800", "x" * 10_000, "'; DROP TABLE judgements; --"):
            with pytest.raises(FeedbackError, match="there is no question") as caught:
                Queue(store).submit(name, "web/a", ANSWERS[0], seconds=1)
            assert caught.value.__cause__ is None


# Takes questions and answers them, and says each answer only after the store has acknowledged it.
WORKER = """
import sys
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.study.queue import Queue
from rlhf_gym.study.leases import Answer, QueueSettings
place, rater, overlap = sys.argv[1], sys.argv[2], int(sys.argv[3])
with FeedbackStore(place) as store:
    queue = Queue(store, QueueSettings(overlap=overlap))
    while held := queue.next(rater, count=2):
        receipt = queue.submit(held[0].id, rater, Answer(choice=0), seconds=1)
        print(held[0].id, receipt.judgement_id, flush=True)
"""


def start_worker(place: str, rater: str, overlap: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, place, rater, str(overlap)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_and_many_threads_hand_out_each_query_as_often_as_asked(store_place: str) -> None:
    with FeedbackStore(store_place) as store:
        store.add_queries(pairs(60))
        workers = [start_worker(store_place, f"web/process{i}", overlap=2) for i in range(2)]
        queue, problems = Queue(store, QueueSettings(overlap=2)), list[BaseException]()

        def work_on(rater: str) -> None:
            try:
                while held := queue.next(rater, count=2):
                    for _ in range(2):  # an impatient double click
                        queue.submit(held[0].id, rater, ANSWERS[0], seconds=1)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work_on, args=(f"web/thread{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for worker in workers:
            _, words = worker.communicate()
            assert worker.returncode == 0, words
        assert problems == []
        stored = store.judgements()
        assert len({(j.query_id, j.rater) for j in stored}) == len(stored) == 120
        assert set(Counter(j.query_id for j in stored).values()) == {2}


def test_kill_9_of_the_page_loses_no_acknowledged_answer_and_doubles_none(store_place: str) -> None:
    moments = random.Random(7)
    acknowledged: list[tuple[str, str]] = []
    with FeedbackStore(store_place) as store:
        store.add_queries(pairs(2000))
    for attempt in range(5):
        worker = start_worker(store_place, "web/a")
        assert worker.stdout is not None
        lines = [worker.stdout.readline() for _ in range(moments.randint(5, 20))]  # it is up and answering
        time.sleep(moments.uniform(0.0, 0.02))
        worker.send_signal(signal.SIGKILL)
        rest, words = worker.communicate()
        assert worker.returncode == -signal.SIGKILL, words
        # The kill may cut the last line short; only a whole line was an acknowledgement.
        for line in "".join([*lines, rest]).split("\n")[:-1]:
            lease, judgement = line.split()
            acknowledged.append((lease, judgement))
        with FeedbackStore(store_place) as store:
            stored = [j.id for j in store.judgements(superseded=True)]
            assert len(stored) == len(set(stored))
            assert {judgement for _, judgement in acknowledged} <= set(stored)
            assert len(stored) <= len(acknowledged) + attempt + 1  # at most the one in flight is more
            # Whoever did not hear the reply sends the answer again, and is told what they were told.
            again = Queue(store).submit(acknowledged[-1][0], "web/a", Answer(choice=0), seconds=2)
            assert (again.repeated, again.judgement_id) == (True, acknowledged[-1][1])
    assert len(acknowledged) > 20


def test_a_server_that_is_restarted_loses_nothing_and_clients_go_on(postgres: PostgresServer) -> None:
    with FeedbackStore(postgres.new_url(), timeout=5) as store:
        store.add_queries(pairs(5000))  # more than they can answer meanwhile
        queue, acknowledged, failures = Queue(store), list[str](), list[str]()
        stop = threading.Event()

        def work_on(rater: str) -> None:
            """As the page does: what failed is sent again until it is acknowledged."""
            while not stop.is_set():
                try:
                    held = queue.next(rater)
                except FeedbackError as error:
                    failures.append(str(error))
                    time.sleep(0.05)
                    continue
                if not held:
                    return
                while True:
                    try:
                        acknowledged.append(queue.submit(held[0].id, rater, ANSWERS[0], seconds=1).judgement_id)
                        break
                    except FeedbackError as error:
                        if error.__cause__ is None:  # not the database's fault: the page would not try again
                            raise
                        failures.append(str(error))
                        time.sleep(0.05)

        threads = [threading.Thread(target=work_on, args=(f"web/{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            for how in ("fast", "immediate"):  # an orderly restart, then a crash
                wait_for_more(lambda: len(acknowledged), 20, "raters answer")
                postgres.stop(how)
                wait_for_more(
                    lambda: sum("restarting; try again" in words for words in list(failures)), 1, "they are told"
                )
                postgres.start()
            wait_for_more(lambda: len(acknowledged), 20, "raters go on")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        stored = Counter(j.id for j in store.judgements(superseded=True))
        assert set(stored.values()) == {1}
        assert set(stored) == set(acknowledged)
        assert len(acknowledged) == len(set(acknowledged))


def test_postgres_acknowledges_what_is_on_the_disk(postgres: PostgresServer) -> None:
    """Whatever the server's own default; this one's is to acknowledge first and write later."""
    url = postgres.new_url()
    with FeedbackStore(url) as store, FeedbackStore(url, timeout=2) as waiting:
        with store.database.writing() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            with pytest.raises(FeedbackError, match="another process kept it locked"):
                waiting.add_queries(pairs(1))
        assert waiting.add_queries(pairs(1)) == 1
        with FeedbackStore(url, read_only=True) as reader:
            assert len(reader.queries()) == 1
            with pytest.raises(FeedbackError, match="opened read-only"):
                reader.add_queries(pairs(2))
        with pytest.raises(FeedbackError, match="in a server's database, not in a file"):
            _ = store.path
        with pytest.raises(FeedbackError, match="append-only"), store.database.writing() as connection:
            connection.exec_driver_sql("TRUNCATE judgements CASCADE")


def test_databases_that_cannot_be_opened(postgres: PostgresServer) -> None:
    server = f"127.0.0.1:{postgres.port}"
    for url, problem in (
        (f"postgresql://postgres@{server}/nothing_here", "there is no such database"),
        (f"postgresql://postgres@{server}", "names no database"),
        (f"postgresql://nobody_here:secret@{server}/postgres", "check the URL"),
        ("postgresql://u:secret@127.0.0.1:1/x", "the server cannot be reached"),
    ):
        with pytest.raises(FeedbackError, match=problem) as caught:
            FeedbackStore(url)
        assert "secret" not in str(caught.value)
    empty = postgres.new_url()
    with pytest.raises(FeedbackError, match="not a feedback store"):
        FeedbackStore(empty, read_only=True)
    FeedbackStore(empty).close()
    with FeedbackStore(empty) as store:
        judgement = Judgement(query_id=pairs(1)[0].id, rater="ann", choice=0)
        store.add_queries(pairs(1))
        assert store.add_judgements([judgement]) == 1
