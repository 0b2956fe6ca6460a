"""Every page and every form held against WCAG 2.2 A and AA by axe, in light and dark, on a desk and on a phone.

Skipped where there is no Chromium, or no Playwright or axe to look with (`pip install 'rlhf-gym[test]'`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_web_browser import CHROMIUM, PHONE, browser, press
from web_study import joined, study

from rlhf_gym.feedback import Query
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.web.app import create_app
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.server import Address, PageServer

axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

__all__ = ["browser"]  # the fixture
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
MARKDOWN = "1. **Bake** `it`\n\n| step | minutes |\n|-|-|\n| rise | {} |\n\n```\nwait({})\n```\n\n> and rest"
PRACTICE = {"expected": {"tie": True}, "explanation": "Both say the same.", "practice": True}
TALK = [{"role": role, "content": role * 9} for role in ("system", "user", "assistant", "user")]
QUERIES = [
    Query(prompt="try", responses=("x", "y"), round=0, columns=PRACTICE),
    Query(prompt="p", columns={"messages": TALK}, responses=(MARKDOWN.format(1, 2), MARKDOWN.format(1, 3)), index=0),
    Query(prompt="p", responses=("one", "two", "three"), query_type="ranking", index=1),
    Query(prompt="p", responses=("one", "two"), query_type="rating", index=2),
    Query(prompt="p", responses=("one", "two", "three"), query_type="best", index=3),
    Query(prompt="p", responses=("one",), query_type="thumbs", index=4),
    Query(prompt="p", responses=("one",), query_type="edit", index=5),
    Query(prompt="p", columns={"messages": TALK, "reply": True}, responses=("one",), query_type="rating", index=6),
]
ANSWERS = {"pair": ["d", "2"], "ranking": ["2", "1", "=", "Enter"], "rating": ["3", "4", "5", "6", "Enter"]} | {
    "best": ["1"], "thumbs": ["1"], "edit": ["a"]
}  # fmt: skip
"""Keys that answer each query type; axe looks before the last one."""


def faults(page: Any) -> list[str]:
    """The faults that axe finds in a page as it stands."""
    page.evaluate(axe.AXE_SCRIPT)
    found = page.evaluate("rules => axe.run(document, { runOnly: rules })", RULES)
    assert len(found["passes"]) > 10
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]


def test_axe_finds_what_is_wrong(browser: Any) -> None:
    page = browser.new_page()
    page.set_content("<main><h1>x</h1><p style='color:#999;background:#fff'>pale</p><input></main>")
    assert {fault.partition(":")[0] for fault in faults(page)} >= {"color-contrast", "label"}
    page.close()


def looks(page: Any) -> Iterator[tuple[str, list[str]]]:
    """A rater's way through every form, and what is wrong at each place."""
    yield "invitation", faults(page)
    page.get_by_role("button", name="Begin").click()
    page.wait_for_selector("body.has-script .card")
    page.wait_for_timeout(230)
    page.keyboard.press("1")
    page.wait_for_selector("#alert.wrong")
    yield "practice", faults(page)
    page.keyboard.press("Enter")
    for key, name in (("g", "guidelines"), ("p", "paused")):
        page.keyboard.press(key)
        yield name, faults(page)
        page.keyboard.press(key)
    for query_type, keys in ANSWERS.items():
        page.wait_for_selector(f".card.{query_type}")
        for key in keys[:-1]:
            page.keyboard.press(key)
        yield query_type, faults(page)
        press(page, keys[-1])
    page.wait_for_selector(".card.rating .reply")
    for key in "3", "4":
        page.keyboard.press(key)
    yield "conversation", faults(page)
    press(page, "Enter")
    page.wait_for_selector("text=Nothing to rate right now")
    yield "waiting", faults(page)
    press(page, "u")
    yield "undone", faults(page)


@pytest.mark.parametrize(
    "options", [{"color_scheme": "light"}, {"color_scheme": "dark", **PHONE}], ids=["light desk", "dark phone"]
)
def test_every_page_meets_wcag(browser: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = PageSettings(text="markdown", attributes=("helpful", "harmless"))
    with study(tmp_path, QUERIES, queue=QueueSettings(practice=1), page=settings) as found:
        address = Address(port=0)
        with PageServer(create_app(found, hosts=address.hosts()), address) as server:
            # A card that fades in has less contrast while it does.
            context = browser.new_context(reduced_motion="reduce", **options)
            page = context.new_page()
            page.goto(f"{server.url}/join/{found.people.invite()}")
            wrong = {name: found_there for name, found_there in looks(page) if found_there}
            page.context.clear_cookies()
            admin = joined(found, "admin")
            cookie = {"name": found.cookie, "value": admin.cookies[found.cookie], "url": server.url}
            context.add_cookies([cookie])
            for path in "/admin", "/admin/answers", "/guidelines", "/nowhere":
                page.goto(server.url + path)
                if there := faults(page):
                    wrong[path] = there
            assert wrong == {}
            context.close()
