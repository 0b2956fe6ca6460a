"""Handing out of queries (leases, overlap, repetition, undo), and taking part (invitations, sessions, forgetting)."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from web_study import pairs

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.study import people as people_module
from rlhf_gym.study import queue as queue_module
from rlhf_gym.study.audit import record, trail
from rlhf_gym.study.checks import meets
from rlhf_gym.study.leases import Answer, QueueSettings
from rlhf_gym.study.people import People
from rlhf_gym.study.queue import Queue

A, B = Answer(choice=0, strength=2.0), Answer(choice=1, strength=1.0)


@pytest.fixture
def store(store_place: str) -> Any:
    with FeedbackStore(store_place) as found:
        found.add_queries(pairs(6))
        yield found


class Clock(datetime):
    """A clock that can be put forward, and otherwise stands."""

    start = datetime(2026, 1, 1, tzinfo=UTC)
    ahead = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.start + cls.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(queue_module, "datetime", Clock)
    monkeypatch.setattr(people_module, "datetime", Clock)
    Clock.ahead = timedelta(0)
    return Clock


def test_a_rater_keeps_what_they_hold_and_nobody_else_gets_it(store: FeedbackStore) -> None:
    queue = Queue(store)
    mine = queue.next("web/a", count=2)
    assert [a.query.index for a in mine] == [0, 1]
    assert queue.next("web/a", count=2) == queue.next("web/a", count=2)
    assert [a.id for a in queue.next("web/a", count=2)] == [a.id for a in mine]
    assert [a.query.index for a in queue.next("web/b", count=9)] == [2, 3, 4, 5]
    assert queue.next("web/c") == []
    assert (queue.counts("web/a").answered, queue.counts("web/a").waiting) == (0, 2)


def test_answers_are_stored_by_the_query_s_own_indices(store: FeedbackStore) -> None:
    queue = Queue(store)
    orders = set()
    for _ in range(6):
        [held] = queue.next("web/a")
        queue.submit(held.id, "web/a", A, seconds=2.5)
        orders.add(held.order_shown)
    found = store.judgements()
    assert orders == {(0, 1), (1, 0)}
    assert all(j.choice == j.order_shown[0] and j.strength == 2.0 and j.seconds == 2.5 for j in found)


def test_sent_twice_is_stored_once(store: FeedbackStore) -> None:
    queue = Queue(store)
    [held] = queue.next("web/a")
    first = queue.submit(held.id, "web/a", A, seconds=1)
    again = queue.submit(held.id, "web/a", A, seconds=9)
    assert not first.repeated
    assert again.repeated
    assert first.judgement_id == again.judgement_id
    assert [j.seconds for j in store.judgements()] == [1]


def test_another_answer_from_a_second_window_corrects_the_first(store: FeedbackStore) -> None:
    queue = Queue(store, QueueSettings(overlap=1))
    [held] = queue.next("web/a")
    first = queue.submit(held.id, "web/a", A, seconds=1.5)
    other = queue.submit(held.id, "web/a", B, seconds=9)
    assert (other.repeated, other.replaced and other.replaced.id) == (False, first.judgement_id)
    # The first one's reply was lost, and it is sent again: it was said before the other one.
    again = queue.submit(held.id, "web/a", A, seconds=1.5)
    assert (again.repeated, again.judgement_id, again.replaced) == (True, other.judgement_id, None)
    [standing] = store.judgements()
    assert (standing.id, standing.supersedes) == (other.judgement_id, first.judgement_id)
    assert [j.seconds for j in store.judgements(superseded=True)] == [1.5, 9]  # what was said first is kept
    assert queue.counts("web/a").answered == 1
    # The question counts as before: a skip hands it on, an answer takes it back.
    queue.submit(held.id, "web/a", Answer(skipped=True), seconds=3)
    assert held.query.id in {a.query.id for a in queue.next("web/b", count=9)}
    third = queue.submit(held.id, "web/a", A, seconds=4)
    assert third.replaced is not None
    assert store.judgements(rater="web/a")[0].supersedes == third.replaced.id
    back = queue.undo("web/a")
    assert back is not None
    assert back.earlier is not None
    assert back.earlier.id == third.judgement_id


def test_only_the_holder_may_answer_and_only_what_fits(store: FeedbackStore) -> None:
    queue = Queue(store)
    [held] = queue.next("web/a")
    for lease, rater, said in (
        (held.id, "web/b", A),
        ("nothing", "web/a", A),
        (held.id, "web/a", Answer(choice=2)),
        (held.id, "web/a", Answer(choice=-1)),
        (held.id, "web/a", Answer(ranking=((0,), (1,)))),
        (held.id, "web/a", Answer()),
    ):
        with pytest.raises(FeedbackError) as caught:
            queue.submit(lease, rater, said, seconds=1)
        assert caught.value.__cause__ is None
    assert store.count().judgements == 0
    queue.submit(held.id, "web/a", A, seconds=1)


def test_a_lease_that_ran_out_goes_to_somebody_else_and_a_late_answer_is_kept(
    store: FeedbackStore, clock: type[Clock]
) -> None:
    queue = Queue(store, QueueSettings(lease_seconds=60))
    [held] = queue.next("web/a")
    clock.ahead = timedelta(seconds=61)
    [other] = queue.next("web/b")
    assert other.query == held.query
    assert queue.submit(held.id, "web/a", A, seconds=1).late
    assert not queue.submit(other.id, "web/b", B, seconds=1).late
    assert {j.rater for j in store.judgements()} == {"web/a", "web/b"}


def test_whoever_comes_back_late_gets_the_same_question(store: FeedbackStore, clock: type[Clock]) -> None:
    """One rater alone: what ran out in their hands is still theirs to answer, once."""
    queue = Queue(store, QueueSettings(lease_seconds=60))
    held = queue.next("web/a", count=6)
    clock.ahead = timedelta(hours=12)
    again = queue.next("web/a", count=6)
    assert [a.id for a in again] == [a.id for a in held]
    for a in again:
        queue.submit(a.id, "web/a", A, seconds=1)
    assert store.count().judgements == 6
    assert queue.next("web/a") == []


def test_overlap_asks_different_people(store: FeedbackStore) -> None:
    queue = Queue(store, QueueSettings(overlap=2))
    for rater in ("web/a", "web/b", "web/c"):
        while held := queue.next(rater):
            queue.submit(held[0].id, rater, A, seconds=1)
    by_query = Counter(j.query_id for j in store.judgements())
    assert set(by_query.values()) == {2}
    assert store.raters(by_query) == {query_id: {"web/a", "web/b"} for query_id in by_query}


def test_a_skipped_query_is_for_somebody_else_a_flagged_one_for_nobody(store: FeedbackStore) -> None:
    queue = Queue(store)
    first, second = queue.next("web/a", count=2)
    queue.submit(first.id, "web/a", Answer(skipped=True), seconds=1)
    queue.submit(second.id, "web/a", Answer(skipped=True, details={"flagged": "rude"}), seconds=1)
    assert [a.query.index for a in queue.next("web/b", count=6)] == [0, 2, 3, 4, 5]
    assert queue.next("web/a") == []


def test_undo_goes_back_answer_by_answer_and_overwrites_nothing(store: FeedbackStore) -> None:
    queue = Queue(store)
    held = []
    for said in (A, B, A):
        held += queue.next("web/a")
        queue.submit(held[-1].id, "web/a", said, seconds=1)
    back = queue.undo("web/a")
    assert back is not None
    assert back.id == held[2].id
    assert back.earlier is not None
    further = queue.undo("web/a")
    assert further is not None
    assert further.id == held[1].id
    assert [a.id for a in queue.next("web/a", count=3)][:2] == [held[1].id, held[2].id]
    assert store.count().current == 3  # until it is answered anew, an answer stands
    receipt = queue.submit(held[1].id, "web/a", A, seconds=1)
    assert not receipt.repeated
    queue.submit(held[2].id, "web/a", A, seconds=1)  # said again as before: nothing to correct
    assert store.count().judgements == 4
    assert store.count().current == 3
    [correction] = [j for j in store.judgements() if j.supersedes]
    assert (correction.query_id, correction.choice) == (held[1].query.id, held[1].order_shown[0])
    assert queue.undo("web/b") is None


def test_a_correction_that_comes_late_is_a_correction(store: FeedbackStore, clock: type[Clock]) -> None:
    queue = Queue(store, QueueSettings(lease_seconds=60))
    [held] = queue.next("web/a")
    queue.submit(held.id, "web/a", A, seconds=1)
    queue.undo("web/a")
    clock.ahead = timedelta(hours=1)
    queue.next("web/b")
    assert not queue.submit(held.id, "web/a", B, seconds=1).repeated
    assert [j.choice for j in store.judgements()] == [held.order_shown[1]]
    assert store.count().judgements == 2


def test_no_two_raters_ever_hold_the_same_query(store_place: str) -> None:
    """Eight raters at once, on two connections to the same database."""
    with FeedbackStore(store_place) as one, FeedbackStore(store_place) as two:
        one.add_queries(pairs(60))
        queues = [Queue(one), Queue(two)]
        problems: list[Exception] = []

        def work(number: int) -> None:
            try:
                queue, rater = queues[number % 2], f"web/{number}"
                while held := queue.next(rater, count=2):
                    queue.submit(held[0].id, rater, A, seconds=0)
            except Exception as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert sorted(Counter(j.query_id for j in one.judgements()).values()) == [1] * 60


def test_practice_first_then_checks_and_repetitions(store_place: str) -> None:
    columns = {"expected": {"choice": 0}, "explanation": "because"}
    special = [Query(prompt=f"g{i}", responses=("x", "y"), round=0, index=i, columns=columns) for i in range(3)]
    practice = Query(prompt="try", responses=("x", "y"), round=0, index=9, columns={**columns, "practice": True})
    settings = QueueSettings(practice=2, check_share=0.3, repeat_share=0.3)
    with FeedbackStore(store_place) as store:
        store.add_queries([*pairs(30), *special, practice])
        queue = Queue(store, settings)
        [held] = queue.next("web/a")
        assert held.kind == "practice"
        receipt = queue.submit(held.id, "web/a", Answer(choice=held.order_shown.index(1)), seconds=1)
        assert (receipt.correct, receipt.explanation) == (False, "because")
        kinds = []
        while held_now := queue.next("web/a"):
            [held] = held_now
            kinds.append(held.kind)
            assert queue.submit(held.id, "web/a", A, seconds=1).correct is None
        assert kinds.count("query") == 30
        assert kinds.count("check") == 3
        assert kinds.count("repeat") >= 5
        assert kinds[:5].count("repeat") == 0
        repeated = [j for j in store.judgements() if j.details.get("kind") == "repeat"]
        assert len({j.query_id for j in repeated}) == len(repeated) == kinds.count("repeat")
        assert store.count(1).answered == 30


def test_check_questions_from_before_their_column_was_renamed_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ordinary queries they would be handed out, counted and fitted to."""
    old = Query(prompt="2 + 2?", responses=("4", "5"), round=0, columns={"gold": {"choice": 0}})
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        store.add_queries([*pairs(2), old, replace(old, id="", prompt="Who?", columns={"gold": "Ada"})])
        with pytest.raises(FeedbackError, match=rf"query {old.id} of the feedback store .* renamed"):
            Queue(store)
    assert main(["rate", "--serve", str(tmp_path / "f.sqlite"), "--port", "0"]) == 2
    assert "is now expected in 'expected'" in capsys.readouterr().err


def test_what_a_known_answer_is() -> None:
    def said(**answer: Any) -> Judgement:
        return Judgement(query_id="q", rater="web/a", **answer)

    assert meets(said(tie=True), {"expected": {"tie": True}})
    assert meets(said(ranking=((1,), (0, 2))), {"expected": {"ranking": [[1], [2, 0]]}})
    assert not meets(said(ranking=((0,), (1, 2))), {"expected": {"ranking": [[1], [2, 0]]}})
    assert meets(said(ratings={"overall": (7, 2)}), {"expected": {"ratings": {"overall": [5, 1]}}})
    assert not meets(said(ratings={"overall": (2, 2)}), {"expected": {"ratings": {"overall": [5, 1]}}})
    assert not meets(said(skipped=True), {"expected": {"choice": 0}})


def test_only_what_is_offered_is_handed_out(store: FeedbackStore) -> None:
    queue = Queue(store, offered=())
    assert queue.next("web/a") == []
    queue.offer([q.id for q in store.queries()][3:5])
    assert [a.query.index for a in queue.next("web/a", count=9)] == [3, 4]


def test_queries_that_come_later_are_handed_out_too(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_REFRESH", 0.0)
    queue = Queue(store)
    assert len(queue.next("web/a", count=20)) == 6
    store.add_queries(pairs(9))
    assert len(queue.next("web/a", count=20)) == 9


def test_answers_from_before_the_page_count(store: FeedbackStore) -> None:
    first, second = store.queries()[:2]
    store.add_judgements([Judgement(query_id=first.id, rater="web/old", choice=0)])
    store.add_judgements([Judgement(query_id=second.id, rater="simulated", choice=0)])
    # What somebody else has answered (a file, a simulated rater) is handed out where that is asked for, and not otherwise.
    assert [a.query.index for a in Queue(store).next("web/a", count=9)] == [2, 3, 4, 5]
    assert [a.query.index for a in Queue(store, QueueSettings(answered=True)).next("web/b", count=9)] == [1]


@pytest.mark.parametrize("wrong", [{"overlap": 0}, {"check_share": 1.0}, {"lease_seconds": 0}, {"repeat_share": -0.1}])
def test_settings_out_of_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        QueueSettings(**wrong)


def test_an_invitation_lets_in_as_often_as_it_says(store: FeedbackStore, clock: type[Clock]) -> None:
    people = People(store)
    token = people.invite(uses=2, label="the Tuesday group")
    one, session = people.accept(token)
    two, _ = people.accept(token)
    assert one.name != two.name
    assert one.name.startswith("web/")
    assert people.person_of(session) == one
    assert one.label == "the Tuesday group"
    with pytest.raises(FeedbackError, match="not valid"):
        people.accept(token)
    with pytest.raises(FeedbackError, match="not valid"):
        people.accept("guess")
    other = people.invite()
    people.revoke(next(invitation.id for invitation in people.invitations() if not invitation.used))
    with pytest.raises(FeedbackError, match="not valid"):
        people.accept(other)
    third = people.invite(days=1)
    clock.ahead = timedelta(days=2)
    with pytest.raises(FeedbackError, match="not valid"):
        people.accept(third)
    clock.ahead = timedelta(days=31)
    assert people.person_of(session) is None


@pytest.mark.parametrize("name", ["", "web/nobody", "nul \0"])
def test_who_or_what_is_not_there_is_named_and_is_no_trouble_of_the_database(store: FeedbackStore, name: str) -> None:
    people = People(store)
    for action, problem in (
        (people.revoke, "no invitation"), (people.pause, "no rater"), (people.resume, "no rater"), (people.forget, "no rater")
    ):  # fmt: skip
        with pytest.raises(FeedbackError, match=problem) as caught:
            action(name)
        assert caught.value.__cause__ is None


def test_nothing_that_lets_anybody_in_is_in_the_file(tmp_path: Path) -> None:
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    people = People(store)
    token = people.invite()
    _, session = people.accept(token)
    store.close()
    found = b"".join(p.read_bytes() for p in store.path.parent.iterdir())
    assert token.encode() not in found
    assert session.encode() not in found


def test_forgetting_removes_the_person_and_keeps_the_answers(store: FeedbackStore) -> None:
    people, queue = People(store), Queue(store)
    person, session = people.accept(people.invite(label="Jane Doe, room 4"))
    first, second = queue.next(person.name, count=2)
    queue.submit(first.id, person.name, Answer(choice=0, reason="I am Jane"), seconds=1)
    queue.submit(second.id, person.name, Answer(skipped=True, details={"flagged": "Jane says no"}), seconds=1)
    before = [(j.id, j.choice, j.skipped) for j in store.judgements()]
    people.forget(person.name)
    assert people.person_of(session) is None
    assert [(j.id, j.choice, j.skipped) for j in store.judgements()] == before
    assert [j.reason for j in store.judgements()] == ["", ""]
    assert [p.label for p in people.people()] == [""]
    with pytest.raises(FeedbackError, match="no rater"):
        people.forget("web/nobody")
    # The guard against changes stands again.
    with pytest.raises(FeedbackError, match="append-only"), store.database.writing() as connection:
        connection.exec_driver_sql("UPDATE judgements SET tie = tie")


def test_the_trail_says_who_did_what_and_cannot_be_changed(store: FeedbackStore) -> None:
    people = People(store)
    person, session = people.accept(people.invite(role="admin"))
    people.pause(person.name, actor="web/admin")
    paused = people.person_of(session)
    assert paused is not None
    assert paused.paused
    people.resume(person.name)
    with store.database.writing() as connection:
        record(connection, "web/admin", "export", "all", {"rows": 3})
    assert [e.action for e in trail(store)] == ["export", "resume", "pause", "join", "invite"]
    assert trail(store)[2].actor == "web/admin"
    assert trail(store)[0].at <= datetime.now(UTC)
    with pytest.raises(FeedbackError, match="append-only"), store.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM audit")


def test_the_label_of_an_invitation_goes_with_its_person(tmp_path: Path) -> None:
    """Forgetting somebody must not leave their name on the invitation that was theirs alone."""
    store = FeedbackStore(tmp_path / "feedback.sqlite")
    people = People(store)
    person, _ = people.accept(people.invite(label="Jane Doe"))
    people.forget(person.name)
    store.close()
    assert b"Jane Doe" not in b"".join(p.read_bytes() for p in store.path.parent.iterdir())
