"""The rating page without a browser: what it shows, what it stores, and that it works by plain forms."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from web_study import answer, client, joined, pairs, question, study

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import Query
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.web.answers import PAIR, answer_of, seconds_of
from rlhf_gym.web.markup import LONGEST, coded, markdown_html, plain_html, turns_of
from rlhf_gym.web.page_settings import PageSettings, guidelines_from
from rlhf_gym.web.study import static

JSON = {"accept": "application/json"}


def test_an_invitation_leads_to_the_first_question(tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        somebody = client(found)
        assert somebody.get("/rate").status_code == 401
        token = found.people.invite()
        for _ in range(3):  # a preview of the link does not use it up
            assert "Begin" in somebody.get(f"/join/{token}").text
        reply = somebody.post("/join", data={"token": token})
        assert (reply.status_code, reply.headers["location"]) == (303, "/")
        cookie = reply.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert "secure" not in cookie  # plain HTTP on this machine
        assert somebody.get("/").headers["location"] == "/rate"
        _, _, page = question(somebody)
        assert "Prompt 0" in page
        assert "0 answered · 3 to go" in page


def test_an_invitation_opened_again_makes_no_second_rater(tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        token = found.people.invite(uses=5)
        somebody = client(found)
        somebody.post("/join", data={"token": token})
        [person] = found.people.people()
        page = somebody.get(f"/join/{token}").text
        assert f"You take part already, as {person.name}" in page
        assert '<a class="button" href="/">Go on</a>' in page
        assert "Begin as somebody else" in page  # on a shared computer
        assert "take part already" not in client(found).get(f"/join/{token}").text
        found.people.forget(person.name)
        assert "take part already" not in somebody.get(f"/join/{token}").text


def test_behind_tls_the_cookie_is_secure(tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found:
        reply = client(found, base_url="https://testserver").post("/join", data={"token": found.people.invite()})
        assert "secure" in reply.headers["set-cookie"].lower()
        assert reply.headers["strict-transport-security"]


def test_plain_forms_alone_do_the_whole_work(tmp_path: Path) -> None:
    with study(tmp_path, pairs(len(PAIR) + 2)) as found:
        somebody = joined(found)
        for value, *_ in PAIR:
            assert answer(somebody, value, reason=f"why {value}").headers["location"] == "/rate"
        answer(somebody, "skip")
        answer(somebody, "flag", reason="rude")
        assert "Nothing to rate right now" in somebody.get("/rate").text
        given = found.store.judgements()
        assert [j.reason for j in given[:8]] == [f"why {value}" for value, *_ in PAIR]
        for judgement, strength, place in zip(given, (3, 2, 1, None, 1, 2, 3), (0, 0, 0, None, 1, 1, 1), strict=False):
            assert judgement.strength == strength
            assert judgement.choice == (None if place is None else judgement.order_shown[place])
            assert judgement.seconds is not None
            assert 0 <= judgement.seconds < 60
        assert given[3].tie
        assert not given[3].details
        assert given[7].details == {"both_bad": True}
        assert given[8].skipped
        assert given[9].details == {"flagged": "rude"}


def test_what_is_shown_is_the_order_that_is_stored(tmp_path: Path) -> None:
    with study(tmp_path, pairs(12)) as found:
        somebody = joined(found)
        for number in range(12):
            page = question(somebody)[2]
            shown = re.findall(rf"(first|second) of {number}\b", page[page.index('class="responses') :])[:2]
            answer(somebody, "a2")
            judgement = found.store.judgements()[-1]
            assert [("first", "second")[i] for i in judgement.order_shown] == shown
            assert judgement.choice == judgement.order_shown[0]
        assert {j.order_shown for j in found.store.judgements()} == {(0, 1), (1, 0)}


def test_nothing_tells_who_wrote_what_or_why_it_is_asked(tmp_path: Path) -> None:
    check = Query(prompt="g", responses=("x", "y"), round=0, columns={"expected": {"choice": 0}, "explanation": "hush"})
    with study(tmp_path, [*pairs(9), check], queue=QueueSettings(check_share=0.5)) as found:
        somebody = joined(found)
        seen = ""
        for _ in range(10):
            seen += question(somebody)[2]
            seen += somebody.post("/next", data=question(somebody)[1], headers=JSON).text
            answer(somebody, "a2")
        for word in ("secret-model", "expected", "hush", "repeat", "round"):
            assert word not in seen
        assert any(j.details.get("kind") == "check" for j in found.store.judgements())


def test_the_script_s_requests(tmp_path: Path) -> None:
    with study(tmp_path, pairs(4)) as found:
        somebody = joined(found)
        action, hidden, page = question(somebody)
        ids = re.findall(r'data-id="([^"]+)"', page)
        assert len(ids) == 2  # the next one is there already
        said = {**hidden, "answer": "b3", "seconds": "1.25", "have": " ".join(ids)}
        reply = somebody.post(action, data=said, headers=JSON).json()
        assert len(reply["cards"]) == 1
        assert ids[1] not in reply["cards"][0]
        assert reply["counts"] == "1 answered · 3 to go"
        assert somebody.post(action, data=said, headers=JSON).status_code == 200  # a retry
        assert [j.seconds for j in found.store.judgements()] == [1.25]
        undone = somebody.post("/undo", data=hidden, headers=JSON).json()
        assert undone["reopened"] == ids[0]
        assert "B is much better" in undone["card"]
        assert 'aria-current="true"' in undone["card"]
        somebody.post(action, data={**said, "answer": "tie"}, headers=JSON)
        assert found.store.count().judgements == 2
        assert found.store.judgements()[0].tie


def test_practice_is_told(tmp_path: Path) -> None:
    columns = {"expected": {"choice": 0}, "explanation": "the <b>first</b> is true", "practice": True}
    practice = Query(prompt="try", responses=("x", "y"), round=0, columns=columns)
    with study(tmp_path, [*pairs(1), practice], queue=QueueSettings(practice=1)) as found:
        somebody = joined(found)
        assert "Practice" in question(somebody)[2]
        order = found.queue.next(found.people.people()[0].name)[0].order_shown
        reply = answer(somebody, "a2" if order[0] == 0 else "b2")
        assert "As expected." in reply.text
        assert "the &lt;b&gt;first" in reply.text
        assert "Practice" not in question(somebody)[2]


def test_a_paused_rater_finishes_and_gets_no_more(tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        somebody = joined(found)
        action, hidden, _ = question(somebody)
        found.people.pause(found.people.people()[0].name)
        reply = somebody.post(action, data={**hidden, "answer": "a2"}, headers=JSON).json()
        assert (reply["cards"], reply["paused"]) == ([], True)
        assert found.store.count().judgements == 1
        assert "A break" in somebody.get("/rate").text


def test_leaving_ends_the_session(tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found:
        somebody = joined(found)
        kept = dict(somebody.cookies)
        assert "Thank you" in somebody.post("/leave", data=question(somebody)[1]).text
        again = client(found, cookies=kept)
        assert again.get("/rate").status_code == 401


def test_a_conversation_is_shown_turn_by_turn() -> None:
    talk = "\n\nHuman: Capital of France?\n\nAssistant: Paris.\n\nHuman: Of Spain?\n\nAssistant:"
    turns = turns_of(Query(prompt=talk, responses=("x", "y")))
    assert [(t.role, t.text) for t in turns] == [
        ("user", "Capital of France?"), ("assistant", "Paris."), ("user", "Of Spain?")
    ]  # fmt: skip
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    turns = turns_of(Query(prompt="as one text", responses=("x", "y"), columns={"messages": messages}))
    assert [(t.role, t.text) for t in turns] == [("system", "Be brief."), ("user", "Hi")]
    assert [t.text for t in turns_of(Query(prompt="go on:", responses=("x", "y")))] == ["go on:"]


def test_hidden_characters_are_shown() -> None:
    assert coded("a\x1b[31mb\u202ec\x00\ud800\r\n") == "a⟦U+001B⟧[31mb⟦U+202E⟧c⟦U+0000⟧⟦U+D800⟧\n"
    assert coded("naïve 中文 👩\u200d👧 \t") == "naïve 中文 👩\u200d👧 \t"
    assert 'title="RIGHT-TO-LEFT OVERRIDE">U+202E<' in plain_html("\u202e")
    assert plain_html("x" * (LONGEST + 5)).endswith("… 5 more characters</span>")


def test_markdown_is_rendered_and_cannot_load_or_lead_anywhere() -> None:
    html = markdown_html(
        "**bold** `code`\n\n| a | b |\n|-|-|\n| 1 | 2 |\n\n[here](https://evil.example/?q=1) ![pic](https://x/y.png)"
    )
    assert "<strong>bold</strong>" in html
    assert "<td>1</td>" in html
    assert "here (https://evil.example/?q=1)" in html
    assert "[image: pic] (https://x/y.png)" in html
    assert not re.search(r"<(a|img|script|iframe|style|link|form|input|svg)\b", html)
    assert "&lt;script&gt;" in markdown_html("<script>alert(1)</script>")
    assert 'class="mark"' in markdown_html("a\u202eb")


def test_answers_out_of_forms() -> None:
    assert answer_of({"query_type": "pair", "answer": "b1"}).choice == 1
    assert answer_of({"query_type": "pair", "answer": "flag"}).details == {"flagged": "no reason given"}
    assert len(answer_of({"query_type": "pair", "answer": "tie", "reason": "x" * 9999}).reason) == 2000
    for wrong in (
        {},
        {"query_type": "pair"},
        {"query_type": "pair", "answer": "c1"},
        {"query_type": "pair", "answer": "a4"},
        {"query_type": "?", "answer": "a2"},
    ):
        with pytest.raises(FeedbackError, match="is not an answer to a query of the type"):
            answer_of(wrong)
    assert (
        seconds_of({"seconds": "nan"})
        == seconds_of({"seconds": "-3"})
        == seconds_of({})
        == seconds_of({"shown": "x"})
        == 0
    )
    assert seconds_of({"seconds": "1e300"}) == 86_400
    assert seconds_of({"seconds": "12.5", "shown": "0"}) == 12.5


def test_the_page_starts_without_torch() -> None:
    code = "import sys, rlhf_gym.web.app; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_settings() -> None:
    for wrong in ({"scale": 1}, {"attributes": ()}, {"url": "ftp://x"}, {"text": "html"}):
        with pytest.raises(ConfigError):
            PageSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be read"):
        guidelines_from("/nowhere/g.md")


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_is_wcag_aa(scheme: int) -> None:
    """4.5:1 for text on every ground it stands on, 3:1 for the edges of what can be pressed."""
    css = static("page.css").decode()
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    tone: dict[str, Any] = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if scheme:
        tone |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    text = [
        *((ink, ground) for ink in ("ink", "soft") for ground in ("page", "panel", "key", "mid")),
        *((ink, ground) for ink in ("blue", "gold") for ground in ("page", "panel", f"{ink}-soft")),
        ("ink", "blue-soft"), ("ink", "gold-soft"), ("blue-ink", "blue"), ("warn-ink", "warn"), ("bad", "bad-soft"),
        ("good", "good-soft"), ("blue", "page"), ("bad", "panel"), ("good", "panel"),
    ]  # fmt: skip
    assert {pair: round(found, 2) for pair in text if (found := contrast(tone[pair[0]], tone[pair[1]])) < 4.5} == {}
    assert all(contrast(tone["edge"], tone[ground]) >= 3 for ground in ("page", "panel"))


def test_every_control_has_a_name_and_a_key(tmp_path: Path) -> None:
    with study(tmp_path, pairs(2)) as found:
        page = question(joined(found))[2]
        card = page[page.index("<article") : page.index("</article>")]
        assert card.count("data-key=") == len(PAIR) + 3
        for value, words, _, keys in PAIR:
            button = re.search(rf'<button[^>]*value="{value}"[^>]*>', card)
            assert button
            assert f'aria-label="{words}"' in button[0]
            assert f'data-key="{keys}"' in button[0]
        all_keys = [
            key
            for keys in re.findall(r'data-(?:key|focus)="([^"]+)"', page[: page.index("<template")])
            for key in keys.split()
        ]
        assert len(all_keys) == len(set(all_keys))
        assert 'lang="en"' in page
        assert 'name="viewport"' in page
        assert "style=" not in page
        assert not re.search(r"<script(?! src=)|\son\w+=", page)


def test_rankings_and_ratings_by_plain_forms(tmp_path: Path) -> None:
    texts = ("one", "two", "three", "four")
    queries = [
        Query(prompt="p", responses=texts, query_type="ranking", index=0),
        Query(prompt="p", responses=texts, query_type="ranking", index=1),
        Query(prompt="p", responses=texts, query_type="rating", index=2),
    ]
    page = PageSettings(attributes=("helpful", "harmless"), scale=5)
    with study(tmp_path, queries, page=page) as found:
        somebody = joined(found)
        assert question(somebody)[2].partition("<template")[0].count("<select") == 4
        answer(somebody, "ranking", **{"place-0": "2", "place-1": "1", "place-2": "4", "place-3": "3"})
        assert answer(somebody, "ranking", **{"place-0": "1"}).status_code == 409  # one alone says nothing
        answer(somebody, "ranking", **{"place-0": "1", "place-1": "3", "place-2": "1", "place-3": ""})
        assert question(somebody)[2].partition("<template")[0].count('type="radio"') == 4 * 2 * 5
        assert answer(somebody, "rating", **{"rate-0-helpful": "6"}).status_code == 409  # the scale ends at 5
        assert answer(somebody, "rating", **{"rate-4-helpful": "1"}).status_code == 409  # there are four responses
        answer(somebody, "rating", **{f"rate-{i}-helpful": str(i + 1) for i in range(4)}, **{"rate-1-harmless": "5"})
        first, second, third = found.store.judgements()
        a, b, c, d = first.order_shown
        assert first.ranking == ((b,), (a,), (d,), (c,))
        a, b, c, d = second.order_shown
        assert second.ranking is not None
        assert [set(group) for group in second.ranking] == [{a, c}, {b}]
        assert third.ratings is not None
        assert [third.ratings["helpful"][i] for i in third.order_shown] == [1, 2, 3, 4]
        assert [third.ratings["harmless"][i] for i in third.order_shown] == [None, 5, None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        {"query_type": "ranking", "place-0": "1", "place-1": "x"},
        {"query_type": "ranking", "place-0": "1", "place-1": "-1"},
        {"query_type": "ranking", "place-0": "1", "place-99999": "2"},
        {"query_type": "ranking"},
        {"query_type": "rating", "rate-0-overall": "8"},
        {"query_type": "rating", "rate-0-other": "1"},
        {"query_type": "rating", "rate-9999999-overall": "1"},
        {"query_type": "rating", "rate-0-overall": "\u0663"},
    ],
)
def test_rankings_and_ratings_that_are_none(wrong: dict[str, str]) -> None:
    with pytest.raises(FeedbackError, match="is not an answer to a query of the type"):
        answer_of({"answer": "ranking", **wrong})


def test_best_thumbs_and_edit_by_plain_forms(tmp_path: Path) -> None:
    text = "\n  a line <b>\nanother"
    queries = [
        Query(prompt="p", responses=("one", "two", "three"), query_type="best", index=0),
        Query(prompt="p", responses=("one",), query_type="thumbs", index=1),
        Query(prompt="p", responses=("one",), query_type="thumbs", index=2),
        Query(prompt="p", responses=(text,), query_type="edit", index=3),
        Query(prompt="p", responses=(text,), query_type="edit", index=4),
    ]
    with study(tmp_path, queries) as found:
        somebody = joined(found)
        assert answer(somebody, "best-3").status_code == 409
        assert answer(somebody, "best-2").status_code == 303
        answer(somebody, "up")
        answer(somebody, "down")
        assert "\n\n  a line &lt;b&gt;\nanother</textarea>" in question(somebody)[2]
        answer(somebody, "accept", edited="ignored")
        assert answer(somebody, "correct", edited="  ").status_code == 409
        answer(somebody, "correct", edited="a line\r\n\r\nbetter")
        best, up, down, accepted, corrected = found.store.judgements()
        assert best.choice == best.order_shown[2]
        assert (up.ratings, down.ratings) == ({"overall": (1.0,)}, {"overall": (0.0,)})
        assert (accepted.choice, accepted.details) == (0, {})
        assert corrected.details == {"edited": "a line\n\nbetter"}
