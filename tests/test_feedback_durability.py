"""The store under kill -9, full disks and rival processes: what was acknowledged is there, once."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import wait_until

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query

# Writes queries and judgements one by one from a start on, and says each id only after the store has acknowledged it; half way
# it waits for a line.
WRITER = """
import sys
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
path, rater, start, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with FeedbackStore(path) as store:
    for index in range(start, start + count):
        if index == start + count // 2:
            sys.stdin.readline()
        query = Query(prompt="p" * 2000, responses=("a", "b"), index=index)
        store.add_queries([query])
        judgement = Judgement(query_id=query.id, rater=rater, choice=index % 2)
        store.add_judgements([judgement])
        print(judgement.id, flush=True)
"""


def start_writer(path: Path, rater: str, start: int, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), rater, str(start), str(count)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_kill_9_loses_no_acknowledged_judgement(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    moments = random.Random(5)
    acknowledged: list[str] = []
    for attempt in range(5):
        writer = start_writer(path, "ann", attempt * 100_000, 100_000)
        assert writer.stdout is not None
        acknowledged += [
            writer.stdout.readline().strip() for _ in range(moments.randint(5, 30))
        ]  # it is up and writing
        time.sleep(moments.uniform(0.0, 0.02))
        writer.send_signal(signal.SIGKILL)
        rest, problems = writer.communicate()
        # The kill may cut the last line short; only a whole line was an acknowledgement.
        acknowledged += rest.split("\n")[:-1]
        assert writer.returncode == -signal.SIGKILL, problems
        with FeedbackStore(path) as store:  # opens after every kill, without repair
            stored = [judgement.id for judgement in store.judgements()]
            assert len(stored) == len(set(stored))
            assert set(acknowledged) <= set(stored)
            assert len(stored) <= len(acknowledged) + attempt + 1  # at most the one in flight is more
    assert len(acknowledged) >= 25


def test_processes_open_write_and_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    writers = [start_writer(path, f"rater {i}", 0, 40) for i in range(3)]  # the same queries: each is stored once
    seen = 0

    def read() -> int:
        nonlocal seen
        if path.exists() and path.stat().st_size:
            with contextlib.suppress(FeedbackError), FeedbackStore(path, read_only=True) as reader:
                count = reader.count().judgements  # an error only before the tables are there: see below
                assert count >= seen
                seen = count
        return seen

    wait_until(lambda: read() == 60, "the writers, who are still there, have written half")
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go on\n")
        writer.stdin.flush()
    wait_until(lambda: read() == 120, "the writers have written everything")
    for writer in writers:
        output, problems = writer.communicate()
        assert writer.returncode == 0, problems
        assert len(output.split()) == 40
    with FeedbackStore(path) as store:
        assert (store.count().queries, store.count().judgements) == (40, 120)


def test_a_full_database_loses_nothing(tmp_path: Path) -> None:
    queries = [Query(prompt="p" * 4000, responses=("a", "b"), index=i) for i in range(100)]
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        store.add_queries(queries[:10])
        store.add_judgements([Judgement(query_id=queries[0].id, rater="ann", choice=0)])
        with store._database.writing() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(FeedbackError, match=r"full; free some space.*stored before is still there"):
            store.add_queries(queries)
        assert (store.count().queries, store.count().judgements) == (10, 1)
        with store._database.reading() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        assert store.add_queries(queries) == 90  # space is back, and the store goes on


LIMITED = """
import resource, signal, sys
from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = FeedbackStore(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for index in range(1000):
    query = Query(prompt="p" * 2000, responses=("a", "b"), index=index)
    try:
        store.add_queries([query])
        store.add_judgements([Judgement(query_id=query.id, rater="ann", choice=0)])
    except FeedbackError as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    print(query.id, flush=True)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_disk_that_takes_no_more_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "free some space" in done.stderr
    acknowledged = done.stdout.split()
    assert len(acknowledged) > 5
    with FeedbackStore(path) as store:
        assert {judgement.query_id for judgement in store.judgements()} == set(acknowledged)


def test_a_lock_that_is_never_released_is_an_error_not_a_hang(tmp_path: Path) -> None:
    query = Query(prompt="p", responses=("a", "b"))
    path = tmp_path / "feedback.sqlite"
    with FeedbackStore(path) as holder, FeedbackStore(path, timeout=0.2) as waiting:
        with holder._database.writing(), pytest.raises(FeedbackError, match="another process kept it locked"):
            waiting.add_queries([query])
        assert waiting.queries() == []  # readers never wait
        assert waiting.add_queries([query]) == 1
