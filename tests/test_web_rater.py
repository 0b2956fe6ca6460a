"""People as the loop's rater: a run waits for them, loses nothing when it is stopped, and goes on."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import command, save_tiny_model, tiny_settings
from waiting import LONG, wait_until
from web_study import pairs, start_run, study

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.feedback.preferences import preferences_from
from rlhf_gym.loop.config_file import Settings, build, merge
from rlhf_gym.loop.label import Turnout, split_queries
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.reward_models import fits
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.raters import Rater, RaterStoppedError, ask
from rlhf_gym.store_places import store_of
from rlhf_gym.study.checks import check_questions
from rlhf_gym.study.leases import Answer
from rlhf_gym.study.quality import quality
from rlhf_gym.web.overview import reward_models
from rlhf_gym.web.page_rater import WebRater
from rlhf_gym.web.run_page import RunPage
from rlhf_gym.web.server import Address, PageServer

A, B = Answer(choice=0, strength=1.0), Answer(choice=1, strength=1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_what_is_submitted_is_offered_and_what_is_answered_comes_back(tmp_path: Path) -> None:
    with study(tmp_path, pairs(4)) as found:
        rater = WebRater(found.store, found.queue, overlap=2)
        assert isinstance(rater, Rater)
        tickets = rater.submit(found.store.queries()[:2])
        assert [(t.rater, t.number) for t in tickets] == [("web", 0), ("web", 1)] * 2
        assert rater.collect(tickets, timeout=0) == []
        assert len(found.queue.next("web/a", count=9)) == 2
        [held] = found.queue.next("web/a")
        found.queue.submit(held.id, "web/a", A, seconds=1)
        [judgement] = rater.collect(tickets, timeout=LONG)
        assert judgement == found.store.judgements()[0]
        assert rater.collect(tickets, timeout=0) == []  # once is enough
        [held] = found.queue.next("web/a")
        found.queue.submit(held.id, "web/a", A, seconds=1)
        others = [ticket for ticket in tickets if ticket.query_id != held.query.id]
        assert rater.collect(others, timeout=0) == []
        assert len(rater.collect(tickets, timeout=0)) == 1  # whoever asks for other tickets first misses nothing


def test_a_correction_comes_after_what_it_corrects(tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found:
        rater = WebRater(found.store, found.queue)
        tickets = rater.submit(found.store.queries())
        [held] = found.queue.next("web/a")
        found.queue.submit(held.id, "web/a", A, seconds=1)
        found.queue.undo("web/a")
        found.queue.submit(held.id, "web/a", B, seconds=1)
        first, second = rater.collect(tickets)
        assert second.supersedes == first.id


def test_asking_people_stores_nothing_twice_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with study(tmp_path, []) as found:
        queries = pairs(6)
        rater = WebRater(found.store, found.queue)

        def rate() -> None:
            for _ in range(6):
                while not (held := found.queue.next("web/a")):
                    time.sleep(0.01)
                found.queue.submit(held[0].id, "web/a", A, seconds=0)

        person = threading.Thread(target=rate)
        person.start()
        seen: list[tuple[int, int]] = []
        ask(rater, queries, found.store, on_progress=lambda done, total: seen.append((done, total)))
        person.join()
        assert seen[-1] == (6, 6)
        assert found.store.count().judgements == 6
        assert ask(WebRater(found.store, found.queue), queries, found.store) == 0


def test_a_quota_is_enough(tmp_path: Path) -> None:
    with study(tmp_path, []) as found:
        queries = pairs(10)
        found.store.add_queries(queries)
        rater = WebRater(found.store, found.queue)
        rater.submit(queries)
        for _ in range(7):
            [held] = found.queue.next("web/a")
            found.queue.submit(held.id, "web/a", A, seconds=0)
        ask(rater, queries, found.store, quota=0.7)  # or it would wait for ever
        [held] = found.queue.next("web/a")  # what is left may still be answered
        found.queue.submit(held.id, "web/a", A, seconds=0)
        assert found.store.count().answered == 8


def test_who_gets_what_in_a_mixture() -> None:
    queries = [Query(prompt=f"{i}", responses=("x", "y"), round=1 + i % 2, index=i) for i in range(2000)]
    mixed, others = split_queries(queries, build({"people": {"share": 0.1}}))
    assert 150 < len(mixed) < 250
    assert sorted(q.index for q in [*mixed, *others]) == list(range(2000))
    everything, nothing = split_queries(queries, build({"rater": {"name": "web"}}))
    assert (len(everything), nothing) == (2000, [])
    later, warm = split_queries(queries, build({"rater": {"name": "web"}, "people": {"warm_up": 1}}))
    assert {q.round for q in later} == {2}
    assert {q.round for q in warm} == {1}


def test_the_line_that_shows_how_far_people_are() -> None:
    said: list[str] = []
    now = [0.0]

    class Bar:
        shown: tuple[int, str] = (0, "")

        def update(self, done: int, note: str = "", total: int | None = None) -> None:
            self.shown = (done, note)

    bar: Any = Bar()
    turnout = Turnout(bar, said.append, 10, plain=True, clock=lambda: now[0])
    for second, done in ((0, 0), (30, 5), (59, 9), (61, 10), (120, 20)):
        now[0] = second
        turnout(done, 20)
    assert bar.shown == (30, "10.0 a minute")
    for second, note in ((180, "6.7 a minute"), (420, "waiting for people")):  # they have gone home
        now[0] = second
        turnout(20, 30)
        assert bar.shown == (30, note)
    assert said == [
        "people have answered 0 of 20 queries (waiting for people)",
        "people have answered 10 of 20 queries (9.8 a minute)",
        "people have answered 20 of 20 queries (10.0 a minute)",
    ]


def test_what_cannot_be_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guidelines"):
        RunPage().check(build({"rater": {"name": "web"}, "people": {"guidelines": str(tmp_path / "none.md")}}))
    with pytest.raises(ConfigError, match="public address"):
        RunPage().check(build({"people": {"share": 0.5, "url": "rate.example.org"}}))
    with pytest.raises(ConfigError, match="no run and no feedback store"):
        store_of(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="without a run"):
        store_of(str(tmp_path))
    with PageServer(None, Address(port=0)) as server, pytest.raises(ConfigError, match="cannot listen"):
        PageServer(None, Address(port=server.address.port))


def rate_everything(line: str, stop: threading.Event, cookies: dict[str, str], limit: int = 10_000) -> int:
    """A person with a script: joins by the printed link, or is known by a cookie, and prefers the longer response."""
    import httpx2

    base, token = line.rsplit("/join/", 1)
    given = 0
    with httpx2.Client(base_url=base, timeout=LONG, cookies=cookies) as person:
        if not cookies:
            assert person.post("/join", data={"token": token}).status_code == 303
            cookies.update(person.cookies)
        while not stop.is_set() and given < limit:
            try:
                page = person.get("/rate").text
            except httpx2.TransportError:  # the run has ended
                return given
            action = re.search(r'action="(/rate/[^"]+)"', page)
            if action is None:
                time.sleep(0.05)
                continue
            form = page[page.index('class="answer"') : page.index("</article>")]
            hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))
            texts = re.findall(r'class="text" dir="auto" tabindex="0"[^>]*>(.*?)</div>', form, re.DOTALL)[:2]
            longer = 0 if len(texts) < 2 or len(texts[0]) >= len(texts[1]) else 1
            answers = {
                "pair": "ab"[longer] + "2", "best": f"best-{longer}", "thumbs": ("up", "down")[given % 2], "edit": "correct",
            }  # fmt: skip
            said = answers.get(hidden["query_type"], hidden["query_type"])
            rates = {
                name: "7" if name.startswith(f"rate-{longer}") else "2" for name in re.findall(r"rate-[^\"]+", form)
            }
            reply = person.post(action[1], data={**hidden, **rates, "answer": said, "edited": "better"})
            assert reply.status_code == (200 if "Practice" in page else 303), reply.text
            given += 1
    return given


def test_a_run_waits_for_people_stops_for_the_night_and_goes_on(model: Path, tmp_path: Path) -> None:
    settings = tiny_settings(model, rater={"name": "web", "query_type": "pair"}, people={"port": 0})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    out = tmp_path / "run"
    process, link = start_run(tmp_path, "--config", str(tmp_path / "c.yaml"), "--out", str(out))
    stop, cookies = threading.Event(), dict[str, str]()
    assert rate_everything(link, stop, cookies, limit=5) == 5
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=LONG) == 130
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert f"rlhf-gym run --out {out} --resume" in log
    with FeedbackStore(out / "feedback.sqlite", read_only=True) as store:
        first = store.judgements()
        assert len(first) == 5

    process, link = start_run(tmp_path, "--out", str(out), "--resume")
    person = threading.Thread(target=rate_everything, args=(link, stop, cookies))
    person.start()
    try:
        assert process.wait(timeout=LONG) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        stop.set()
        person.join()
    with FeedbackStore(out / "feedback.sqlite", read_only=True) as store:
        assert store.count().judgements == store.count().queries == 12
        assert set(first) <= set(store.judgements())
    assert (out / "report.html").exists()
    assert "people have answered 12 of 12 queries" in (tmp_path / "log").read_text()


class Link(Progress):
    """Catches the link for raters out of what a run says."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []
        self.found = threading.Event()

    def say(self, line: str) -> None:
        self.said.append(line)
        if line.strip().startswith("raters:"):
            self.found.set()

    def link(self) -> str:
        assert self.found.wait(LONG)
        return next(line.split()[1] for line in self.said if line.strip().startswith("raters:"))


@pytest.mark.parametrize(
    ("sections", "by_people"),
    [
        ({"people": {"port": 0, "share": 0.4}, "rater": {"query_type": "pair"}}, None),
        (
            {
                "people": {"port": 0, "warm_up": 1, "quota": 0.5},
                "rater": {"name": "web", "query_type": "pair"},
                "run": {"rounds": 2},
            },
            {2},
        ),
    ],
)
def test_people_and_simulated_raters_share_a_run(model: Path, tmp_path: Path, sections: Any, by_people: Any) -> None:
    progress, stop, cookies = Link(), threading.Event(), dict[str, str]()

    def rate() -> None:
        rate_everything(progress.link(), stop, cookies)

    person = threading.Thread(target=rate)
    person.start()
    try:
        run = run_loop(
            build(merge(tiny_settings(model), sections)), tmp_path / "run", progress=progress, page=RunPage()
        )
    finally:
        stop.set()
        person.join()
    with FeedbackStore(run.store_file) as store:
        rounds: dict[str, set[int]] = {"web": set(), "simulated": set()}
        counts = {"web": 0, "simulated": 0}
        for query, judgement in store.answers():
            who = judgement.rater.partition("/")[0]
            rounds[who].add(query.round)
            counts[who] += 1
    if by_people is None:
        assert counts["web"] + counts["simulated"] == 12
        assert min(counts.values()) >= 1
    else:
        assert rounds == {"web": by_people, "simulated": {1}}
        assert counts["simulated"] == 12
        assert 6 <= counts["web"] <= 12  # half is enough to go on


def run_with_a_person(settings: Settings, folder: Path) -> RunDirectory:
    """A whole run, with somebody who answers whatever it asks."""
    progress, stop = Link(), threading.Event()
    person = threading.Thread(target=lambda: rate_everything(progress.link(), stop, {}))
    person.start()
    try:
        return run_loop(build(settings), folder, progress=progress, page=RunPage())
    finally:
        stop.set()
        person.join()


@pytest.mark.parametrize("query_type", ["thumbs", "edit"])
def test_people_say_of_each_response_alone_how_good_it_is(model: Path, tmp_path: Path, query_type: str) -> None:
    """Thumbs up are preferred to thumbs down of the same prompt, corrections to what they correct."""
    sections = {"rater": {"name": "web", "query_type": query_type}, "people": {"port": 0}, "sampling": {"prompts": 6}}
    run = run_with_a_person(merge(tiny_settings(model), sections), tmp_path / "run")
    with FeedbackStore(run.store_file, read_only=True) as store:
        assert {query.query_type for query in store.queries()} == {query_type}
        assert store.count().answered == store.count().queries == 12  # 6 prompts of 2 candidates
        preferences = store.preferences()
    fitted = json.loads((run.round(1) / "reward_model.json").read_text())
    assert len(preferences) == fitted["n_train"] + fitted["n_validation"] > 0
    assert query_type == "thumbs" or {p.chosen for p in preferences} == {"better"}


@pytest.mark.parametrize("query_type", ["best", "rating"])
def test_check_questions_and_repetitions_in_a_run(model: Path, tmp_path: Path, query_type: str) -> None:
    """Practice first, check questions and repetitions among the rest; what is fitted is the run's own queries, each once."""
    expected = {"choice": 1} if query_type == "best" else {"ratings": {"helpful": [1, 7], "honest": [1, 7]}}
    checks = [
        {"prompt": f"{i}?", "responses": ["no", "yes, it is"], "query_type": query_type, "expected": expected}
        for i in range(4)
    ]
    checks[0] |= {"practice": True, "explanation": "The longer one."}
    (tmp_path / "checks.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in checks))
    sections = {
        "rater": {"name": "web", "query_type": query_type}, "sampling": {"candidates": 3},
        "people": {
            "port": 0, "check_questions": str(tmp_path / "checks.jsonl"), "practice": 1, "check_share": 0.3,
            "repeat_share": 0.4, "attributes": ["helpful", "honest"],
        },
    }  # fmt: skip
    run = run_with_a_person(merge(tiny_settings(model), sections), tmp_path / "run")
    with FeedbackStore(run.store_file, read_only=True) as store:
        answers = store.answers()
    kinds = Counter(judgement.details.get("kind", "query") for _, judgement in answers)
    assert kinds["query"] == 12
    assert kinds["practice"] == 1
    assert kinds["check"] >= 1
    assert kinds["repeat"] >= 1
    [rater] = quality(answers).raters
    assert rater.checks.part == rater.checks.whole == kinds["check"]
    assert rater.repeated.whole == kinds["repeat"]
    if query_type == "rating":
        assert all(set(j.ratings or ()) == {"helpful", "honest"} for _, j in answers)
    fit = json.loads((run.path / "round-1" / "reward_model.json").read_text())
    asked = [(query, j) for query, j in answers if query.round and j.details.get("kind") != "repeat"]
    own = [preference for query, j in asked for preference in preferences_from(query, j)]
    ties = sum(preference.tie for preference in own)
    assert len(own) - ties <= fit["n_train"] + fit["n_validation"] <= len(own)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "line 1"),
        ('{"prompt": "p", "responses": ["a", "b"]}', "expected must say"),
        ('{"prompt": "p", "responses": ["a", "b"], "expected": {"choice": 2}}', "line 1"),
        ('\n{"responses": ["a", "b"], "expected": {"choice": 0}}', "line 2.*prompt"),
        ('{"prompt": "p", "responses": ["a", "b"], "expected": {"choice": 0}, "practise": true}', "practise"),
        ('{"prompt": "p", "responses": ["a"], "expected": {"choice": 0}}', "line 1"),
    ],
)
def test_known_answers_that_are_none_are_named(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "checks.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        check_questions(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        check_questions(str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match=r"people\.check_questions"):
        build({"people": {"practice": 1}})


def test_training_goes_on_while_people_answer_and_takes_their_answers_in(model: Path, tmp_path: Path) -> None:
    """The person answers the rest in the middle of training, before its third iteration."""
    waiting = threading.Event()

    def answered() -> int:
        with FeedbackStore(tmp_path / "run" / "feedback.sqlite", read_only=True) as store:
            return store.count().judgements

    class Listening(Link):
        def say(self, line: str) -> None:
            super().say(line)
            if re.search(r"round 1 PPO +2/6", line):
                waiting.set()
                wait_until(lambda: answered() == 12, "the rest is answered")  # the page is another thread's

    progress, cookies = Listening(), dict[str, str]()

    def rate() -> None:
        rate_everything(progress.link(), threading.Event(), cookies, limit=6)
        waiting.wait(LONG)
        rate_everything(progress.link(), threading.Event(), cookies, limit=6)

    sections = {
        "people": {"port": 0, "quota": 0.5, "refit": 4}, "rater": {"name": "web", "query_type": "pair"},
        "agent": {"iterations": 6},
    }  # fmt: skip
    person = threading.Thread(target=rate)
    person.start()
    run = run_loop(build(merge(tiny_settings(model), sections)), tmp_path / "run", progress=progress, page=RunPage())
    person.join()
    found = fits(run.path / "round-1")
    assert [(fit["iteration"], fit["judgements"]) for fit in found] == [(0, 6), (2, 12)]
    assert "6 new answers: fitting the reward model again" in progress.said
    assert json.loads((run.path / "round-1" / "reward_model.json").read_text())["n_train"] == found[1]["n_train"]
    assert reward_models(run.path) == [
        {"round": 1, **{k: v for k, v in fit.items() if k not in ("judgements", "last")}} for fit in found
    ]
    assert "It was fitted again while the policy was trained" in (run.path / "report.html").read_text()


def test_waiting_for_answers_without_people_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"people\.refit \(8\) waits for people's answers"):
        build(tiny_settings(model, people={"refit": 8}))


def test_a_run_asks_whoever_sits_at_the_terminal(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = merge(tiny_settings(model), {"rater": {"name": "terminal", "query_type": "pair"}})
    monkeypatch.setattr(sys, "stdin", io.StringIO("aab"))  # and the input ends: a stop
    with pytest.raises(RaterStoppedError, match="--resume"):
        run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    monkeypatch.setattr(sys, "stdin", io.StringIO("abtabababu" + "b" * 3))
    run = run_loop(build(settings), tmp_path / "run", resume=True, progress=Progress(quiet=True))
    with FeedbackStore(run.store_file) as store:
        assert store.count().answered == 12
        assert store.count().ties == 1
        assert {judgement.rater for judgement in store.judgements()} == {"terminal"}
    assert "1 to go" in capsys.readouterr().out


def test_a_page_of_its_own_ends_by_ctrl_c(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        store.add_queries(pairs(2))
    serve = command("rate", "--serve", tmp_path / "f.sqlite", "--port", "0")
    process = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]
        link = lines[1].split()[1]
        assert rate_everything(link, threading.Event(), {}, limit=2) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LONG) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
    with FeedbackStore(tmp_path / "f.sqlite", read_only=True) as store:
        assert store.count().judgements == 2
