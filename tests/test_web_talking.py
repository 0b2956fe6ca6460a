"""A person in the browser as the user: rates an answer, writes the next message, and what is stored is what trains."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from toy_tasks import letter_task
from waiting import LONG, wait_until
from web_study import answer, client, joined, question, study

from rlhf_gym.envs import ConversationEnv, ConversationVectorEnv, wrap_text_env
from rlhf_gym.envs.conversation_users import as_user
from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.feedback.queries import Judgement
from rlhf_gym.feedback.schema import assignments
from rlhf_gym.study.queue import Queue
from rlhf_gym.tasks.users import user_rating
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.study import Study
from rlhf_gym.web.talking import WebUser

HOSTILE = "<script>document.title='ran'</script>\x1b[2J</textarea></template>"
"""What a model may write; `test_web_browser` shows one to a person in a real browser."""


def talk(user: WebUser, slots: int = 1, **options: Any) -> ConversationVectorEnv:
    options = {"max_turns": 2, "max_characters": 200, "reward": user_rating, "template": "transcript"} | options
    return ConversationVectorEnv(slots, letter_task(), user=user, **options)


def stepping(env: ConversationVectorEnv, actions: list[str]) -> tuple[threading.Thread, list[Any]]:
    """A step in a thread: it waits for the person."""
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(env.step(actions)), daemon=True)
    thread.start()
    return thread, out


def test_two_conversations_by_plain_forms(tmp_path: Path) -> None:
    lines: list[str] = []
    user = WebUser(tmp_path / "talk.sqlite", port=0, scale=5, say=lines.append)
    env = talk(user, 2)
    env.reset(seed=0)
    page = user.page
    assert any(line.strip().startswith("raters:") for line in lines)
    person = joined(Study(page.store, page.people, page.queue, user.settings))
    thread, out = stepping(env, [f"first{HOSTILE}", "second"])
    prompts = {slot.messages[0]["content"] for slot in env.envs}
    for said in ("and\r\nnow?", ""):
        wait_for_question(person)
        _, _, html = question(person)
        assert "<script>document" not in html
        assert "How good is the last answer, and what do you say next?" in html
        assert any(prompt in html for prompt in prompts)
        assert answer(person, "rating", **{"rate-0-overall": "4", "reply": said}).status_code == 303
    thread.join(LONG)
    [(_, rewards, terminations, _, infos)] = out
    assert rewards.tolist() == [4.0, 4.0]
    assert sorted(terminations.tolist()) == [False, True]
    assert infos["user_rating"].tolist() == [4.0, 4.0]
    went_on = terminations.tolist().index(False)
    assert infos["messages"][went_on][-1] == {"role": "user", "content": "and\nnow?"}
    thread, out = stepping(env, ["last", "last"])  # the other slot begins anew
    wait_for_question(person)
    _, _, html = question(person)
    assert "How good is the last answer? The conversation ends with it." in html
    assert "and\nnow?" in html
    assert 'name="reply"' not in html
    answer(person, "rating", **{"rate-0-overall": "1"})
    thread.join(LONG)
    assert out[0][1][went_on] == 1.0
    assert out[0][2][went_on]
    env.close()
    with FeedbackStore(tmp_path / "talk.sqlite") as store:
        stored = store.judgements()
        said = sorted((j.ratings or {})["overall"] + (j.details.get("reply", ""),) for j in stored)
        assert said == [(1.0, ""), (4.0, ""), (4.0, "and\nnow?")]


def test_two_people_share_conversations_and_one_leaves_half_way(tmp_path: Path) -> None:
    user = WebUser(tmp_path / "talk.sqlite", port=0, say=lambda line: None, lease=3600)
    env = wrap_text_env(ConversationEnv(letter_task(), user=user, max_characters=200), 2, template="transcript").envs
    found = Study(user.page.store, user.page.people, user.page.queue, user.settings)
    anna, ben = joined(found), joined(found)
    talks: list[ConversationEnv] = [one.unwrapped for one in env]  # type: ignore[misc]
    assert talks[0].user is talks[1].user is user  # copies share the page
    out: dict[int, Any] = {}

    def step(slot: int, said: str) -> threading.Thread:
        thread = threading.Thread(target=lambda: out.update({slot: talks[slot].step(said)}), daemon=True)
        thread.start()
        return thread

    for slot, talk in enumerate(talks):
        talk.reset(seed=slot)
        step(slot, f"hello {slot}")
    held = {}
    for name, person in (("anna", anna), ("ben", ben)):  # each has one of the two, again and again
        wait_for_question(person)
        pages = {re.search(r"hello \d", question(person)[2])[0] for _ in range(2)}  # type: ignore[index]
        [held[name]] = pages
    assert held["anna"] != held["ben"]
    answer(anna, "rating", **{"rate-0-overall": "6", "reply": "go on"})
    wait_until(lambda: len(out) == 1, "anna's conversation goes on")
    [hers] = out
    assert out.pop(hers)[4]["messages"][-1]["content"] == "go on"
    step(hers, "again")
    wait_for_question(anna)
    assert "again" in question(anna)[2]  # her conversation is hers
    assert "again" not in question(ben)[2]
    # Anna closes the page. Nothing of hers is lost: once her lease runs out, it is Ben's, and her late answer changes nothing.
    late, hidden, _ = question(anna)
    answer(ben, "rating", **{"rate-0-overall": "2", "reply": ""})
    wait_until(lambda: len(out) == 1, "ben's conversation ends")
    assert 'action="/rate/' not in ben.get("/rate").text
    with user.page.store.database.writing() as connection:
        connection.execute(update(assignments).values(expires_at=datetime(2000, 1, 1, tzinfo=UTC)))
    wait_for_question(ben)
    assert "again" in question(ben)[2]
    answer(ben, "rating", **{"rate-0-overall": "3", "reply": "thanks"})
    wait_until(lambda: len(out) == 2, "the conversation that anna left goes on")
    assert (
        anna.post(late, data={**hidden, "answer": "rating", "rate-0-overall": "7", "reply": "late"}).status_code == 303
    )
    assert (out[hers][4]["user_rating"], out[hers][4]["messages"][-1]["content"]) == (3.0, "thanks")
    step(hers, "last")
    wait_for_question(ben)  # he is the one who went on with it
    env[0].close()


def wait_for_question(person: Any) -> None:
    wait_until(lambda: 'action="/rate/' in person.get("/rate").text, "there is a question")


def test_what_is_no_reply_is_refused(tmp_path: Path) -> None:
    query = Query(prompt="p", responses=("r",), query_type="rating", columns={"reply": True})
    with study(tmp_path, [query], page=PageSettings(scale=3)) as found:
        person = joined(found)
        assert answer(person, "rating", **{"rate-0-overall": "9", "reply": "a"}).status_code == 409
        assert answer(person, "rating", reply="a").status_code == 409
        assert answer(person, "rating", **{"rate-0-overall": "2", "reply": "a" * 10_001}).status_code == 409
        assert answer(person, "skip", reply="a").status_code == 303
        assert client(found).get("/rate").status_code == 401
        assert found.store.judgements()[0].details == {}


def test_a_person_who_does_not_come_and_settings_that_cannot_be(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "talk.sqlite") as store:  # of a program that was interrupted
        left = [
            Query(prompt="p", responses=(r,), query_type="rating", columns={"reply": True}) for r in ("old", "said")
        ]
        store.add_queries(left)
        store.add_judgements([Judgement(query_id=left[1].id, rater="web/x", ratings={"overall": (1.0,)})])
        Queue(store).offer([query.id for query in left])
    user = as_user({"web": str(tmp_path / "talk.sqlite"), "port": 0, "timeout": 0.01, "say": lambda line: None})
    assert isinstance(user, WebUser)
    env = ConversationEnv(letter_task(), user=user)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"nobody answered on the rating page within 0\.01 seconds"):
        env.step("a")
    assert env.turn == 0
    assert len(user.page.store.withdrawn_queries()) == 2  # nobody is asked for nothing later
    person = joined(Study(user.page.store, user.page.people, user.page.queue, user.settings))
    assert 'action="/rate/' not in person.get("/rate").text
    user.timeout = None
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(env.step("a")), daemon=True)
    thread.start()
    wait_for_question(person)
    answer(person, "skip")
    thread.join(LONG)
    assert out[0][2]
    assert (out[0][4]["ended_by"], out[0][4]["user_rating"]) == ("user", None)
    assert len(user.page.store.withdrawn_queries()) == 3
    env.close()
    assert isinstance(as_user("web"), WebUser)
    with pytest.raises(ConfigError, match="timeout must be above 0"):
        WebUser(timeout=0)
    with pytest.raises(ConfigError, match="options that it does not take"):
        as_user({"web": None, "colour": "red"})
