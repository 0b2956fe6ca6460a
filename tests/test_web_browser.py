"""The rating page in a real browser, by keys and by touch: what a person does there is what is stored, and trains a model.

Skipped where there is no Chromium, or no Playwright to drive it (`pip install playwright`; no browser download needed).
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_run import save_tiny_model, tiny_settings
from toy_tasks import letter_task
from waiting import LONG, wait_until
from web_attack import store_down
from web_study import answer, joined, pairs, start_run, study

from rlhf_gym.envs import ConversationEnv
from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.tasks.users import user_rating
from rlhf_gym.web.answers import PAIR
from rlhf_gym.web.app import create_app
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.study import Study
from rlhf_gym.web.talking import WebUser

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

PHONE = {"viewport": {"width": 390, "height": 780}, "is_mobile": True, "has_touch": True}
HOSTILE = (
    "<script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">\x1b[2J\u202egnp.exe\u202c\x00 "
    "{{7*7}} </textarea></template></form>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Chromium's sandbox refuses to run as root, which is who tests in a container.
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    # Two sites: for cookies, ports and addresses of one machine are one.
    arguments.append("--host-resolver-rules=MAP rate.test 127.0.0.1, MAP mail.example 127.0.0.1")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, found: Study, *, may_fail: bool = False, **options: Any) -> Iterator[Any]:
    """The page of a rater who has just joined; nothing may be said on the console, and nothing asked of other hosts.

    With ``may_fail``, the browser may say that the server could not do something.
    """
    address = Address(port=0)
    with PageServer(create_app(found, hosts=address.hosts()), address) as server:
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * LONG)
        page = context.new_page()
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{server.url}/join/{found.people.invite()}")
        page.get_by_role("button", name="Begin").click()
        script = options.get("java_script_enabled", True)
        page.wait_for_selector("body.has-script .card" if script else ".card")  # keys work from here on
        yield page
        expected = "ERR_INTERNET_DISCONNECTED" if not may_fail else "the server responded with a status of 503"
        assert [line for line in said if expected not in line] == []
        assert [url for url in asked if not url.startswith((server.url, "data:"))] == []
        assert page.title() != "ran"
        context.close()


def press(page: Any, key: str) -> None:
    """Press a key as somebody who has looked at the card first, and wait for what it does."""
    page.wait_for_timeout(230)
    before = page.locator(".card").get_attribute("data-id")
    page.keyboard.press(key)
    page.wait_for_function("id => document.querySelector('.card').dataset.id !== id", arg=before)


def settled(page: Any, answered: int) -> None:
    page.wait_for_function(f"() => document.getElementById('counts').textContent.startsWith('{answered} answered')")


def test_every_decision_has_its_key(browser: Any, tmp_path: Path) -> None:
    began = time.monotonic()
    with study(tmp_path, pairs(14)) as found, opened(browser, found) as page:
        for _, _, _, keys in PAIR:
            press(page, keys.split()[-1])
        for key in "1", "2", "6", "s", "f":
            press(page, key)
        settled(page, 13)
        given = found.store.judgements()
        places = [None if j.choice is None else j.order_shown.index(j.choice) for j in given]
        assert places == [0, 0, 0, None, 1, 1, 1, None, 0, 0, 1, None, None]
        assert [j.strength for j in given] == [3, 2, 1, None, 1, 2, 3, None, 3, 2, 2, None, None]
        assert [j.tie for j in given] == [False] * 3 + [True] + [False] * 3 + [True] + [False] * 5
        assert all((j.seconds or 0) >= 0.2 for j in given)
        assert sum(j.seconds or 0 for j in given) < time.monotonic() - began
        assert "13 in this sitting" in page.inner_text("#session")
        assert page.inner_text("#counts") == "13 answered · 1 to go"


def test_undo_reason_pause_and_guidelines(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(4)) as found, opened(browser, found) as page:
        page.keyboard.press("r")
        page.keyboard.type("a better bet")  # its letters answer nothing while one types
        page.keyboard.press("Escape")
        press(page, "a")
        press(page, "u")
        assert "A is better" in page.inner_text(".ribbon")
        began = time.monotonic()  # before the next question is there
        press(page, "7")
        page.wait_for_function("() => sessionStorage.getItem('unsent') === '[]'")  # the count is 1 before and after
        settled(page, 1)
        first, second = found.store.judgements(superseded=True)
        assert first.reason == "a better bet"
        assert (second.supersedes, second.strength) == (first.id, 3)
        page.keyboard.press("p")
        paused = time.monotonic()
        page.wait_for_timeout(1200)
        page.keyboard.press("1")
        assert page.locator("#paused").is_visible()
        paused = time.monotonic() - paused
        page.keyboard.press("p")
        press(page, "1")
        settled(page, 2)
        shown = time.monotonic() - began
        assert (found.store.judgements()[1].seconds or 0) < shown - paused + 0.01  # the clock was stopped
        page.keyboard.press("g")
        assert "Honest" in page.inner_text("#guidelines")
        page.keyboard.press("g")
        page.get_by_label("answer with single keys").uncheck()
        page.keyboard.press("1")
        page.wait_for_timeout(400)
        assert found.store.count().current == 2


def test_a_key_that_bounces_answers_one_question(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(5)) as found, opened(browser, found) as page:
        page.wait_for_timeout(250)
        # All at once, however long the browser takes to say that a key is pressed.
        bounce = "document.body.dispatchEvent(new KeyboardEvent('keydown', { key: '1', bubbles: true }))"
        page.evaluate(f"() => {{ for (let i = 0; i < 4; i++) {bounce}; }}")
        settled(page, 1)
        page.wait_for_timeout(250)
        assert found.store.count().judgements == 1


def test_no_answer_is_lost_without_a_network(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(6)) as found, opened(browser, found) as page:
        page.context.set_offline(True)
        press(page, "1")
        press(page, "2")
        page.wait_for_function("() => !document.getElementById('alert').hidden")
        assert "wait here" in page.inner_text("#alert")
        assert found.store.count().judgements == 0
        page.context.set_offline(False)
        settled(page, 2)
        assert page.locator("#alert").is_hidden()
        assert [j.strength for j in found.store.judgements()] == [3, 2]
        press(page, "3")
        settled(page, 3)


def test_no_answer_is_lost_while_the_database_is_full(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(6)) as found, opened(browser, found, may_fail=True) as page:
        with store_down(found):
            press(page, "1")
            press(page, "2")
            page.wait_for_function("() => !document.getElementById('alert').hidden")
            assert "database cannot store answers at the moment" in page.inner_text("#alert")
            assert "wait here" in page.inner_text("#alert")
            page.reload()
            assert "Everything that was stored before is still there" in page.inner_text("main")
        page.reload()  # the answers have waited through this, too
        settled(page, 2)
        assert page.locator("#alert").is_hidden()
        assert [j.strength for j in found.store.judgements()] == [3, 2]
        press(page, "3")
        settled(page, 3)


def test_practice_is_told_before_it_goes_on(browser: Any, tmp_path: Path) -> None:
    columns = {"expected": {"tie": True}, "explanation": "Both say the same.", "practice": True}
    practice = Query(prompt="try", responses=("x", "y"), round=0, columns=columns)
    queue = QueueSettings(practice=1)
    with study(tmp_path, [*pairs(2), practice], queue=queue) as found, opened(browser, found) as page:
        assert "Practice" in page.inner_text(".ribbon")
        page.wait_for_timeout(230)
        page.keyboard.press("1")
        page.wait_for_selector("#alert.wrong")
        assert "Both say the same." in page.inner_text("#alert")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('.prompt').textContent.includes('Prompt 0')")
        assert page.locator("#session").is_hidden()  # practice does not count
        press(page, "1")
        settled(page, 1)


def test_rankings_by_key_tap_and_drag_and_ratings_by_digits(browser: Any, tmp_path: Path) -> None:
    texts = ("one", "two", "three", "four")
    queries = [Query(prompt="p", responses=texts, query_type="ranking", index=i) for i in range(2)]
    queries.append(Query(prompt="p", responses=texts[:2], query_type="rating", index=2))
    with study(tmp_path, queries) as found, opened(browser, found, viewport={"width": 1280, "height": 820}) as page:
        for key in "4", "4", "9", "1", "Backspace", "3", "1":
            page.keyboard.press(key)
        assert page.locator(".chip").all_inner_texts() == ["D", "C", "A", "B"]
        first, last = (page.locator(".chip").nth(i).bounding_box() for i in (0, 3))
        page.mouse.move(first["x"] + 20, first["y"] + 20)
        page.mouse.down()
        page.mouse.move(last["x"] + 40, last["y"] + 20)
        page.mouse.up()
        page.keyboard.press("ArrowLeft")  # the focus stays on what was moved
        assert page.locator(".chip").all_inner_texts() == ["C", "A", "D", "B"]
        page.wait_for_timeout(200)
        page.get_by_role("button", name="Done").click()
        page.wait_for_function("() => document.querySelectorAll('.chip').length === 0")
        for letter in "B", "A", "D":
            page.locator(f'.response[data-letter="{letter}"]').click()
        press(page, "Enter")
        page.keyboard.press("5")
        assert page.get_by_role("button", name="Done").is_disabled()
        page.keyboard.press("2")
        page.wait_for_timeout(230)
        page.keyboard.press("Enter")
        settled(page, 3)
        one, two, three = found.store.judgements()
        assert one.ranking == tuple((one.order_shown["ABCD".index(letter)],) for letter in "CADB")
        assert two.ranking == tuple((two.order_shown["ABCD".index(letter)],) for letter in "BADC")
        assert three.ratings is not None
        assert [three.ratings["overall"][i] for i in three.order_shown] == [5, 2]


def test_rankings_with_equals_and_in_part(browser: Any, tmp_path: Path) -> None:
    query = Query(prompt="p", responses=("one", "two", "three", "four"), query_type="ranking")
    with study(tmp_path, [query]) as found, opened(browser, found) as page:
        page.keyboard.press("2")
        assert page.get_by_role("button", name="Done").is_disabled()
        for key in "1", "=":
            page.keyboard.press(key)
        assert "without a place" in page.inner_text(".order .left")
        press(page, "Enter")
        page.wait_for_function("() => document.getElementById('status').textContent === 'B = A. Stored.'")
        press(page, "u")
        assert page.locator(".chip").count() == 0  # the earlier answer stands in the ribbon
        for key in "3", "1", "4":  # and B is what is left
            page.keyboard.press(key)
        page.get_by_role("button", name="A is better than D").click()
        page.locator(".chip").first.focus()  # Enter means done there, too
        press(page, "Enter")
        page.wait_for_function("() => document.getElementById('status').textContent.endsWith('Stored.')")
        first, second = found.store.judgements(superseded=True)
        a, b, c, d = first.order_shown
        assert [set(group) for group in first.ranking or ()] == [{a, b}]
        assert [set(group) for group in second.ranking or ()] == [{c}, {a, d}, {b}]
        assert second.supersedes == first.id


def test_undo_when_there_is_nothing_left_shows_the_last_answer(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found, opened(browser, found) as page:
        press(page, "1")
        page.wait_for_selector("text=Nothing to rate right now")
        seen = "window.seen = []; new MutationObserver(() => seen.push(document.querySelector('.card').dataset.id)).observe"
        page.evaluate(f"{seen}(document.getElementById('cards'), {{ childList: true }})")
        page.keyboard.press("u")
        page.wait_for_selector(".ribbon")
        assert "" not in page.evaluate("window.seen")
        press(page, "7")
        page.wait_for_function("() => sessionStorage.getItem('unsent') === '[]'")
        assert found.store.judgements()[0].strength == 3


def test_a_question_answered_in_another_tab_is_none_any_more(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(4)) as found, opened(browser, found) as page:
        other = page.context.new_page()
        other.goto(page.url)
        other.wait_for_selector("body.has-script .card")
        for tab in page, other:
            assert "Prompt 0" in tab.inner_text(".prompt")
        press(other, "1")
        settled(other, 1)
        page.bring_to_front()
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # headless tabs are never hidden
        page.wait_for_function("() => document.querySelector('.prompt').textContent.includes('Prompt 1')")
        assert "answered meanwhile" in page.inner_text("#status")
        press(page, "7")
        settled(page, 2)
        other.fill("[name=reason]", "half a th")  # what was begun is never taken away
        other.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        other.wait_for_function("() => document.getElementById('counts').textContent.startsWith('2 answered')")
        assert "Prompt 1" in other.inner_text(".prompt")
        assert found.store.count().judgements == 2
        other.close()


def test_differences_are_marked_on_request(browser: Any, tmp_path: Path) -> None:
    pair = Query(prompt="p", responses=("The old dog, slept well.", "The dog slept <b>badly</b>."))
    with study(tmp_path, [pair]) as found, opened(browser, found) as page:
        page.keyboard.press("d")
        marked = sorted(page.locator(".text mark").all_inner_texts())
        assert {"old", ",", "well"} <= set(marked)
        assert "badly" in "".join(marked)
        assert not {"The", "dog", "slept"} & set(re.findall(r"\w+", " ".join(marked)))
        page.keyboard.press("d")
        assert page.locator(".text mark").count() == 0
        assert sorted(page.locator(".response .text").all_inner_texts()) == sorted(pair.responses)
        press(page, "1")
        settled(page, 1)


def test_differences_leave_markdown_as_it_is(browser: Any, tmp_path: Path) -> None:
    from rlhf_gym.web.page_settings import PageSettings

    text = "**Bake** it:\n\n| step | minutes |\n|-|-|\n| rise | {} |\n\n```\nwait({})\n```"
    pair = Query(prompt="p", responses=(text.format(60, 3), text.format(90, 3)))
    with study(tmp_path, [pair], page=PageSettings(text="markdown")) as found, opened(browser, found) as page:
        before = page.locator(".response .text").all_inner_texts()
        page.keyboard.press("d")
        assert sorted(page.locator("td mark").all_inner_texts()) == ["60", "90"]
        assert page.locator("mark").count() == 2
        assert page.locator(".response strong, .response pre").count() == 4
        assert page.locator(".response .text").all_inner_texts() == before
        press(page, "1")
        settled(page, 1)


def test_the_administrator_s_page_looks_again_by_itself(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        address = Address(port=0)
        with PageServer(create_app(found, hosts=address.hosts()), address) as server:
            page = browser.new_page()
            said: list[str] = []

            def later(words: str) -> None:
                # Again and again: the slower a reply was by this clock, the later the page looks again.
                wait_until(lambda: page.clock.run_for(16_000) or page.get_by_text(words).count(), words)

            page.on("console", lambda message: said.append(message.text))
            page.clock.install()
            page.goto(f"{server.url}/join/{found.people.invite(role='admin')}")
            page.get_by_role("button", name="Begin").click()
            page.get_by_text("3 answers to go").wait_for()
            page.fill("[name=label]", "for Ki")
            answer(joined(found), "a2")
            later("2 answers to go")
            assert page.input_value("[name=label]") == "for Ki"  # nobody's typing is disturbed
            page.get_by_text("Forget …").last.click()
            answer(joined(found), "a2")
            later("1 answer to go")
            assert page.locator("details[open]").count() == 1
            assert said == []
            page.context.close()


def test_the_end_and_new_questions(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found, opened(browser, found) as page:
        press(page, "4")
        page.wait_for_selector("text=Nothing to rate right now")
        found.store.add_queries(pairs(2))
        page.wait_for_function("() => document.querySelector('.prompt')?.textContent.includes('Prompt 1')")
        press(page, "5")
        settled(page, 2)


@pytest.mark.parametrize("options", [{"viewport": {"width": 1280, "height": 820}}, PHONE])
@pytest.mark.parametrize("text", ["plain", "markdown"])
def test_hostile_text_does_nothing_and_fits(browser: Any, tmp_path: Path, options: Any, text: Any) -> None:
    from rlhf_gym.web.page_settings import PageSettings

    long = "x" * 100_000
    queries = [
        Query(prompt=HOSTILE, responses=(HOSTILE, long), columns={"messages": [{"role": HOSTILE, "content": HOSTILE}]}),
        Query(prompt=long, responses=("e" + "\u0301" * 3000, "\u202e" * 3000), index=1),
    ]
    with study(tmp_path, queries, page=PageSettings(text=text)) as found, opened(browser, found, **options) as page:
        for _ in queries:
            width = page.evaluate("document.documentElement.scrollWidth")
            assert width <= options["viewport"]["width"]
            assert page.locator("script, img, iframe, object, embed").count() == 2  # our own scripts
            press(page, "1")
        settled(page, 2)


def test_without_script_and_by_touch(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        with opened(browser, found, java_script_enabled=False) as page:
            page.get_by_role("button", name="A is slightly better").click()
            page.get_by_role("button", name="Undo").click()
            page.get_by_role("button", name="Both are bad").click()
            assert page.inner_text("#counts") == "1 answered · 2 to go"
            page.get_by_role("link", name="Guidelines").click()
            page.get_by_role("link", name="Go on rating").click()
            page.get_by_role("button", name="Leave").click()
            assert "Thank you" in page.inner_text("h1")
        with opened(browser, found, **PHONE) as page:
            page.wait_for_timeout(250)
            page.get_by_role("button", name="B is better", exact=True).tap()
            settled(page, 1)
    # What the first rater had open is kept for them.


def test_a_person_s_keys_train_a_model(browser: Any, tmp_path: Path) -> None:
    """The whole loop on a tiny model: the run serves the page, a person answers in the browser, the run completes."""
    model = save_tiny_model(tmp_path / "model")
    settings = tiny_settings(model, rater={"name": "web", "query_type": "pair"}, people={"port": 0})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    process, link = start_run(tmp_path, "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"))
    try:
        page = browser.new_context().new_page()
        page.goto(link)
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector(".prompt", timeout=1000 * LONG)
        for _ in range(12):
            texts = page.locator(".response .text").all_inner_texts()
            press(page, "1" if len(texts[0]) >= len(texts[1]) else "7")
        assert process.wait(timeout=LONG) == 0, (tmp_path / "log").read_text()
        page.context.close()
    finally:
        process.kill()
    with FeedbackStore(tmp_path / "run" / "feedback.sqlite", read_only=True) as store:
        for query, judgement in store.answers():
            better, other = query.responses[judgement.choice or 0], query.responses[1 - (judgement.choice or 0)]
            assert len(better) >= len(other) or re.search(r"\s", better + other)
            assert judgement.rater.startswith("web/")
            assert judgement.strength == 3
        assert store.count().judgements == 12
    assert (tmp_path / "run" / "evaluation.json").exists()


@contextmanager
def elsewhere(html: str) -> Iterator[str]:
    """A page on another site."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://mail.example:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_links_clicked_on_another_site_know_the_rater_and_its_forms_are_refused(browser: Any, tmp_path: Path) -> None:
    address = Address(port=0)
    with study(tmp_path, pairs(3)) as found:
        single, group = found.people.invite(), found.people.invite(uses=9)
        with PageServer(create_app(found, hosts=("rate.test",)), address) as server:
            rate = f"http://rate.test:{server.address.port}"
            mail = f"""<a href="{rate}/join/{single}">yours</a> <a href="{rate}/join/{group}">everybody's</a>
                <a href="{rate}/rate">go on</a>
                <form method=post action="{rate}/leave"><button>leave</button></form>
                <form method=post action="{rate}/join"><input name=token value={group}><input name=another value=yes>
                <button>begin</button></form>"""
            with elsewhere(mail) as site:
                context = browser.new_context()
                context.set_default_timeout(1000 * LONG)
                page = context.new_page()
                page.goto(site)
                page.get_by_text("yours").click()
                page.get_by_role("button", name="Begin").click()
                page.wait_for_selector("body.has-script .card")
                [person] = found.people.people()
                for link in ("yours", "everybody's"):
                    page.goto(site)
                    with page.expect_request(re.compile("/join/")) as asked:
                        page.get_by_text(link).click()
                    assert asked.value.all_headers()["referer"] == site
                    page.get_by_text(f"You take part already, as {person.name}").wait_for()
                    page.get_by_role("link", name="Go on").click()
                    page.wait_for_selector("body.has-script .card")
                page.goto(site)
                page.get_by_text("go on", exact=True).click()
                page.wait_for_selector("body.has-script .card")
                for button in ("leave", "begin"):
                    page.goto(site)
                    with page.expect_response(re.compile(re.escape(rate))) as got:
                        page.get_by_role("button", name=button).click()
                    assert got.value.status == 403
                page.goto(f"{rate}/rate")
                page.wait_for_selector("body.has-script .card")
                context.close()
        assert found.people.people() == [person]


def test_two_windows_with_one_question_keep_the_later_answer(browser: Any, tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found, opened(browser, found) as page:
        other = page.context.new_page()
        other.goto(page.url)
        other.wait_for_selector("body.has-script .card")
        assert other.locator(".card").get_attribute("data-id") == page.locator(".card").get_attribute("data-id")
        press(page, "1")
        settled(page, 1)
        press(other, "t")
        other.get_by_text("Tie. Stored instead of your answer in another window: A is much better.").wait_for()
        settled(other, 1)
        [standing] = found.store.judgements()
        assert standing.tie
        assert [j.strength for j in found.store.judgements(superseded=True)] == [3.0, None]
        other.close()


def test_a_conversation_with_the_model(browser: Any, tmp_path: Path) -> None:
    """The person rates the answer by a key, writes the next message, and the environment goes on with both."""
    user = WebUser(tmp_path / "talk.sqlite", port=0, say=lambda line: None)
    env = ConversationEnv(letter_task(), user=user, reward=user_rating, max_characters=200)
    env.reset(seed=0)
    context = browser.new_context()
    context.set_default_timeout(1000 * LONG)
    page = context.new_page()
    page.goto(user.page.link("rater"))
    page.get_by_role("button", name="Begin").click()
    out: list[Any] = []
    thread = threading.Thread(target=lambda: out.append(env.step(HOSTILE[:200])), daemon=True)
    thread.start()
    page.wait_for_selector("body.has-script .card.rating")
    assert page.inner_text(".response .text").startswith("<script>")
    page.wait_for_timeout(300)
    page.keyboard.press("6")
    page.keyboard.press("m")
    page.keyboard.type("why 7?")  # its digits rate nothing while one types
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    thread.join(LONG)
    assert page.title() != "ran"
    context.close()
    env.close()
    assert out[0][1] == 6.0
    assert out[0][4]["messages"][-1] == {"role": "user", "content": "why 7?"}
