"""The administrator's pages and the commands beside them: links, pauses, metrics, the browser of answers, the export."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from web_study import answer, client, fields, joined, pairs, routes, study

from rlhf_gym.cli.main import main
from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.study.audit import trail
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.study.people import People
from rlhf_gym.web.overview import accuracy_chart, reward_models, throughput_chart


def token(page: str) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', page)
    assert found
    return found[1]


def test_links_are_made_shown_once_and_revoked(tmp_path: Path) -> None:
    with study(tmp_path, pairs(2)) as found:
        admin = joined(found, "admin")
        assert admin.get("/").headers["location"] == "/admin"
        said = {"csrf": token(admin.get("/admin").text), "role": "rater", "uses": "2", "days": "3", "label": "for Kim"}
        page = admin.post("/admin/invite", data=said).text
        link = re.search(r"<code>http://testserver(/join/\S+)</code>", page)
        assert link
        assert link[1] not in admin.get("/admin").text
        assert "for Kim" in page
        rater = client(found)
        assert rater.post("/join", data={"token": link[1].removeprefix("/join/")}).status_code == 303
        newest = found.people.invitations()[0]
        assert (newest.label, newest.uses, newest.used) == ("for Kim", 2, 1)
        admin.post("/admin/revoke", data={**said, "subject": newest.id})
        assert client(found).post("/join", data={"token": link[1].removeprefix("/join/")}).status_code == 409
        for wrong in ({"uses": "0"}, {"uses": "x"}, {"days": "-1"}, {"days": "nan"}, {"role": "king"}):
            assert admin.post("/admin/invite", data={**said, **wrong}).status_code == 400, wrong


def test_raters_are_paused_resumed_and_forgotten(tmp_path: Path) -> None:
    with study(tmp_path, pairs(4)) as found:
        admin, rater = joined(found, "admin"), joined(found)
        name = found.people.people()[1].name
        answer(rater, "a2", reason="because I am Kim")
        said = {"csrf": token(admin.get("/admin").text), "subject": name}
        admin.post("/admin/pause", data=said)
        assert "A break" in rater.get("/rate").text
        admin.post("/admin/resume", data=said)
        assert "Prompt 1" in rater.get("/rate").text
        assert admin.post("/admin/forget", data=said).status_code == 303
        assert rater.get("/rate").status_code == 401
        assert "Kim" not in admin.get("/admin/answers").text
        assert "forgotten" in admin.get("/admin").text
        assert [e.action for e in trail(found.store, 3)] == ["forget", "resume", "pause"]
        assert trail(found.store, 1)[0].actor == found.people.people()[0].name
        assert admin.post("/admin/pause", data={**said, "subject": "web/nobody"}).status_code == 409


def test_the_metrics_are_those_of_the_store(tmp_path: Path) -> None:
    queue = QueueSettings(overlap=2)
    with study(tmp_path, pairs(4), queue=queue) as found:
        admin, one, two = joined(found, "admin"), joined(found), joined(found)
        for said_by_one, said_by_two in (("a2", "a2"), ("b2", "b2"), ("tie", "tie"), ("skip", "flag")):
            for rater, said in ((one, said_by_one), (two, said_by_two)):
                action, hidden = _sides(rater)
                rater.post(action, data={**hidden, "answer": _by_response(found, hidden, said, action)})
        page = admin.get("/admin").text
        assert "4 of 4" in page
        assert "100.0%" in page  # both said the same of the same responses
        assert "1, 1" in page  # skipped, flagged
        assert "Two raters agree on 100.0% of 3 comparisons" in page
        assert page.count('class="column"') >= 1


def _sides(rater: Any) -> tuple[str, dict[str, str]]:
    page = rater.get("/rate").text
    action = re.search(r'action="(/rate/[^"]+)"', page)
    assert action
    return action[1], fields(page)


def _by_response(found: Any, _hidden: dict[str, str], said: str, action: str) -> str:
    """`a2` means the first response of the query here, on whichever side it is shown."""
    if said not in ("a2", "b2"):
        return said
    for person in found.people.people():
        for held in found.queue.next(person.name, count=2) if person.role == "rater" else ():
            if action.endswith(held.id):
                return "ab"[held.order_shown.index("ab".index(said[0]))] + "2"
    raise AssertionError(action)


def test_answers_are_found_by_what_they_are(tmp_path: Path) -> None:
    with study(tmp_path, pairs(30)) as found:
        admin, rater = joined(found, "admin"), joined(found)
        for i in range(30):
            answer(rater, "tie" if i == 7 else "skip" if i == 8 else "flag" if i == 9 else "a3", reason=f"reason {i}")
        page = admin.get("/admin/answers").text
        assert "30 answers" in page
        assert "page 1 of 2" in page
        assert "secret-model-A" in page  # here models are named
        assert page.count("<article") == 25
        assert admin.get("/admin/answers?page=2").text.count("<article") == 5
        for kind, number in (("ties", 7), ("skipped", 8), ("flagged", 9)):
            page = admin.get("/admin/answers", params={"kind": kind}).text
            assert "1 answer," in page
            assert f"reason {number}" in page
        assert "1 answer," in admin.get("/admin/answers", params={"text": "REASON 12"}).text
        assert "0 answers" in admin.get("/admin/answers", params={"rater": "web/nobody"}).text
        for page_number in ("0", "-1", "x", "9" * 30, "\u0663"):
            assert admin.get("/admin/answers", params={"page": page_number}).status_code == 200


def test_every_action_of_an_administrator_is_in_the_trail(tmp_path: Path) -> None:
    """Whatever route there is or will be: who did what to whom, in the same transaction, and for good."""
    with study(tmp_path, pairs(2)) as found:
        admin, rater = joined(found, "admin"), joined(found)
        actor, subject = (person.name for person in found.people.people())
        assert answer(rater, "a2").status_code == 303
        token_ = token(admin.get("/admin").text)
        actions = [route.path.removeprefix("/admin/") for route in routes(admin.app.app) if "POST" in route.methods]
        actions = [name for name in actions if "/" not in name]
        assert set(actions) == {"invite", "revoke", "pause", "resume", "forget"}
        for action in sorted(actions, key=lambda name: name == "forget"):
            about = found.people.invitations()[0].id if action == "revoke" else subject
            before = len(trail(found.store))
            assert admin.post(f"/admin/{action}", data={"csrf": token_, "subject": about}).status_code in (200, 303)
            entry = trail(found.store, 1)[0]
            assert (len(trail(found.store)), entry.actor, entry.action) == (before + 1, actor, action)
            assert entry.subject == (found.people.invitations()[0].id if action == "invite" else about)
        assert admin.get("/admin/export/native").status_code == 200
        assert (trail(found.store, 1)[0].actor, trail(found.store, 1)[0].action) == (actor, "export")


def test_the_export_is_the_store(tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        admin, rater = joined(found, "admin"), joined(found)
        for _ in range(3):
            answer(rater, "a1")
        reply = admin.get("/admin/export/trl-explicit")
        assert "attachment" in reply.headers["content-disposition"]
        rows = [json.loads(line) for line in reply.text.splitlines()]
        assert [set(row) >= {"prompt", "chosen", "rejected"} for row in rows] == [True] * 3
        assert trail(found.store, 1)[0].action == "export"
        assert admin.get("/admin/export/nothing").status_code == 404
        before = len(trail(found.store))
        elsewhere = admin.get("/admin/export/native", headers={"sec-fetch-site": "cross-site"})
        assert (elsewhere.status_code, admin.head("/admin/export/native").status_code) == (403, 405)
        assert len(trail(found.store)) == before


def test_drawings(tmp_path: Path) -> None:
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    assert throughput_chart([]) is None
    for step in (timedelta(seconds=20), timedelta(minutes=40), timedelta(days=2)):
        drawn = throughput_chart([now + i * step for i in range(60)])
        assert drawn is not None
        assert "60 answers" in drawn
    assert accuracy_chart([]) is None
    folder = tmp_path / "round-1"
    folder.mkdir()
    fit = {"accuracy": 0.71, "standard_error": 0.03, "n_train": 160, "n_validation": 40, "iteration": 0}
    again = fit | {"iteration": 12, "n_train": 300, "accuracy": 0.74}
    (folder / "reward_models.jsonl").write_text(f"{json.dumps(fit)}\n{json.dumps(again)}\n")
    (tmp_path / "round-2").mkdir()
    (tmp_path / "round-2" / "reward_models.jsonl").write_text("{")  # from elsewhere
    found = reward_models(tmp_path)
    assert [(row["round"], row["n_train"]) for row in found] == [(1, 160), (1, 300)]
    drawn = str(accuracy_chart(found))
    assert "71.0%" in drawn
    assert drawn.count("whisker") == 2
    for words in ("accuracy", "comparisons fitted on", "chance"):
        assert f">{words}</text>" in drawn
    low = str(accuracy_chart([fit | {"round": 1, "accuracy": 0.31, "standard_error": 0.08}]))
    places = [float(y) for y in re.findall(r' y[12]="([\d.]+)"', low)]
    assert all(0 <= y <= 190 for y in places)


def test_the_queue_is_told_by_round(tmp_path: Path) -> None:
    from rlhf_gym.study.leases import RoundProgress
    from rlhf_gym.web.overview import to_go

    queries = [replace(query, round=1 + number // 2, id="") for number, query in enumerate(pairs(4))]
    with study(tmp_path, queries, queue=QueueSettings(overlap=2)) as found:
        admin, one, two = joined(found, "admin"), joined(found), joined(found)
        answer(one, "a2")
        answer(one, "skip")  # for somebody else
        two.get("/rate")  # holds two
        first, second = found.queue.progress()
        # The first of round 2 came to one while it was next; two holds both of round 1.
        assert first == RoundProgress(round=1, given=1, held=2, left=1)
        assert second == RoundProgress(round=2, given=0, held=1, left=3)
        page = admin.get("/admin").text
        assert "7 answers to go" in page
        assert re.search(r'<th scope="row">1</th>.*?<td>1</td><td>2</td><td>1</td>', page)
    assert to_go(0, 3.0) == "All queries are answered."
    assert "1 answer to go; nobody" in to_go(1, 0)
    assert "about 20 minutes" in to_go(60, 3.0)
    assert "about 10.0 hours" in to_go(1800, 3.0)


def test_a_check_question_is_named_to_the_administrator(tmp_path: Path) -> None:
    check = Query(prompt="g", responses=("x", "y"), round=0, columns={"expected": {"choice": 0}})
    with study(tmp_path, [*pairs(2), check], queue=QueueSettings(check_share=0.99)) as found:
        admin, rater = joined(found, "admin"), joined(found)
        for _ in range(3):
            answer(rater, "a2")
        [judgement] = [j for _, j in found.store.answers() if j.details.get("kind") == "check"]
        page = admin.get("/admin/answers", params={"kind": "check questions"}).text
        assert f"check question, {'' if judgement.choice == 0 else 'not '}as expected" in page
        assert "No answer matches these filters" in admin.get("/admin/answers", params={"kind": "ties"}).text


def test_a_full_page(tmp_path: Path) -> None:
    """With check questions, repetitions and a run's reward model, every part of the page is there."""
    checks = [
        Query(prompt=f"g{i}", responses=("x", "y"), round=0, index=i, columns={"expected": {"choice": 0}})
        for i in range(20)
    ]
    queue = QueueSettings(check_share=0.4, repeat_share=0.2)
    (tmp_path / "round-1").mkdir()
    fit = {"accuracy": 0.71, "standard_error": 0.03, "n_train": 160, "n_validation": 40, "iteration": 0}
    (tmp_path / "round-1" / "reward_models.jsonl").write_text(json.dumps(fit))
    with study(tmp_path, [*pairs(50), *checks], queue=queue) as found:
        found = replace(found, run=tmp_path)
        admin, rater = joined(found, "admin"), joined(found)
        for _ in range(50):
            answer(rater, "a2")
        page = admin.get("/admin").text
        for words in (
            "Check questions",
            "Repetitions",
            "Chose the first shown",
            "chose the response shown first",
            "71.0%",
        ):
            assert words in page, words


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "f.sqlite"
    with FeedbackStore(file) as store:
        store.add_queries(pairs(2))
    url = "https://rate.example.org/"
    assert main(["rate", "invite", "--store", str(file), "--number", "2", "--label", "x", "--url", url]) == 0
    links = capsys.readouterr().out.split()
    assert len(links) == 2
    with FeedbackStore(file) as store:
        person, _ = People(store).accept(links[0].removeprefix("https://rate.example.org/join/"))
        assert person.role == "rater"
    assert main(["rate", "invite", "--store", str(file), "--admin", "--port", "9000"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:9000/join/")
    assert main(["rate", "forget", person.name, "--store", str(file)]) == 0
    assert "forgotten" in capsys.readouterr().err
    for wrong in (
        ["rate"],
        ["rate", "forget", "web/nobody", "--store", str(file)],
        ["rate", "invite", "--store", str(tmp_path / "none")],
        ["rate", "invite", "--store", str(file), "--uses", "0"],
        ["rate", "--serve", str(tmp_path)],
        ["rate", "--serve", str(file), "--overlap", "0"],
    ):
        assert main(wrong) == 2
        said = capsys.readouterr().err
        assert said.startswith("rlhf-gym: ")
        assert said.count("\n") == 1
