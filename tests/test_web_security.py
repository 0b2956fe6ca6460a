"""The rating page against whoever means harm: other sites, guessers, hostile model text, and requests that make no sense."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_attack import patient
from web_study import client, joined, pairs, question, study

from rlhf_gym.feedback import Query
from rlhf_gym.study.audit import trail
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.security import LARGEST_BODY, POLICY, RateLimit, csrf_matches, csrf_token
from rlhf_gym.web.server import Address
from rlhf_gym.web.study import Study

RATER_PAGES = ("/", "/rate", "/guidelines", "/rate/x/text/0")
ADMIN_PAGES = ("/admin", "/admin/answers", "/admin/export/native")
RATER_POSTS = ("/rate/x", "/next", "/undo", "/leave")
ADMIN_POSTS = ("/admin/invite", "/admin/revoke", "/admin/pause", "/admin/resume", "/admin/forget")
JSON = {"accept": "application/json"}


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Study]:
    with study(tmp_path, pairs(6)) as opened:
        yield opened


def test_nothing_opens_without_an_invitation(found: Study) -> None:
    somebody = client(found)
    for path in (*RATER_PAGES, *ADMIN_PAGES):
        assert somebody.get(path).status_code == 401, path
    for path in (*RATER_POSTS, *ADMIN_POSTS):
        assert somebody.post(path, data={"csrf": "x"}).status_code == 401, path
        assert somebody.post(path, data={"csrf": "x"}, headers=JSON).status_code == 401, path
    for guess in ("", "x", "../admin", "' OR 1=1 --", "\x00", "é" * 500):
        assert somebody.post("/join", data={"token": guess}).status_code == 409
    assert client(found, cookies={found.cookie: "guess"}).get("/rate").status_code == 401
    for path in ("/docs", "/redoc", "/openapi.json", "/static/../app.py", "/static/app.py", "/static/%2e%2e/app.py"):
        assert somebody.get(path).status_code == 404, path


def test_a_rater_is_no_administrator(found: Study) -> None:
    rater = joined(found)
    _, hidden, _ = question(rater)
    for path in ADMIN_PAGES:
        assert rater.get(path).status_code == 403, path
    before = trail(found.store)
    for path in ADMIN_POSTS:
        reply = rater.post(path, data={"csrf": hidden["csrf"], "subject": found.people.people()[0].name})
        assert reply.status_code == 403, path
    assert trail(found.store) == before


def test_one_rater_cannot_answer_or_read_for_another(found: Study) -> None:
    one, other = joined(found), joined(found)
    action, hidden, _ = question(one)
    mine = question(other)[1]
    assert other.post(action, data={**mine, "answer": "a3"}).status_code == 409
    assert other.get(f"{action}/text/0").status_code == 404
    assert one.get(f"{action}/text/0").status_code == 200
    assert one.get(f"{action}/text/2").status_code == 404
    assert found.store.count().judgements == 0
    assert one.post(action, data={**hidden, "answer": "a3", "rater": "web/somebody"}).status_code == 303
    assert found.store.judgements()[0].rater == found.people.people()[0].name


def test_forms_of_other_sites_are_refused(found: Study) -> None:
    rater = joined(found)
    action, hidden, _ = question(rater)
    said = {**hidden, "answer": "a2"}
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://testserver.evil.example"},
    ):
        assert rater.post(action, data=said, headers=headers).status_code == 403, headers
    for token in ("", "x", csrf_token("another session"), "é"):
        assert rater.post(action, data={**said, "csrf": token}).status_code == 403
    assert rater.post(action, json=said).status_code == 415
    assert found.store.count().judgements == 0
    own = {"origin": "http://testserver", "sec-fetch-site": "same-origin"}
    assert rater.post(action, data=said, headers=own).status_code == 303
    assert not csrf_matches("one", csrf_token("two"))


def test_names_that_are_not_ours_are_refused(found: Study) -> None:
    """A name that somebody else's DNS leads to this machine must not open the page (DNS rebinding)."""
    here = client(found, hosts=Address(url="https://rate.example.org").hosts())
    for host in ("127.0.0.1:8722", "localhost", "[::1]:8722", "rate.example.org", "RATE.example.org:443"):
        assert here.get("/healthz", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "rate.example.org.evil", ""):
        assert here.get("/healthz", headers={"host": host}).status_code == 421, host


def test_every_reply_has_the_headers(found: Study) -> None:
    rater, admin = joined(found), joined(found, "admin")
    replies = [rater.get(p) for p in (*RATER_PAGES, "/nowhere", "/static/page.css", "/healthz", "/join/x")]
    replies += [admin.get(p) for p in ADMIN_PAGES]
    replies += [rater.post("/rate/x", content=b"x" * (LARGEST_BODY + 1)), rater.delete("/rate")]
    assert [r.status_code for r in replies[-2:]] == [413, 405]
    for reply in replies:
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "same-origin"
        assert "server" not in reply.headers
        public = "immutable" in reply.headers["cache-control"]
        assert public == (reply.request.url.path == "/static/page.css")
        assert public or reply.headers["cache-control"] == "no-store"
    assert "unsafe" not in POLICY


def test_a_body_that_lies_about_its_length_is_cut(found: Study) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b"a=" + b"x" * 65_536

    reply = joined(found).post(
        "/next", content=endless(), headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert reply.status_code in (400, 413)


def test_whoever_is_in_too_much_of_a_hurry_waits(found: Study) -> None:
    guesser = client(found)
    guesser.app.join_limit._clock = lambda: 0.0  # or a slow machine would be in no hurry
    codes = [guesser.post("/join", data={"token": f"guess {i}"}).status_code for i in range(520)]
    assert codes[0] == 409
    assert codes[-1] == 429
    rater = client(found)
    rater.app.limit._clock = lambda: 0.0
    rater.cookies.set(found.cookie, "x")
    replies = [rater.get("/guidelines") for _ in range(150)]
    assert replies[-1].status_code == 429
    assert int(replies[-1].headers["retry-after"]) >= 1


def test_the_bucket() -> None:
    now = [0.0]
    limit = RateLimit(per_second=2, burst=3, clients=2, clock=lambda: now[0])
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait("b") == 0
    now[0] = 0.5
    assert [limit.wait("a"), limit.wait("a")] == [0, 0.5]
    limit.wait("c")  # "b" is forgotten, so the table does not grow
    assert len(limit._buckets) == 2


HOSTILE = st.lists(
    st.sampled_from(
        [
            *(
                "<script>alert(1)</script>",
                "<img src=x onerror=alert(1)>",
                "<svg/onload=alert(1)>",
                "javascript:alert(1)",
            ),
            *("</textarea>", "</template>", "</form>", "<!--", "]]>", "&lt;", "'\" onmouseover=alert(1) x='"),
            *("[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "<https://evil.example>", "<a href='x'>"),
            *("```html\n<b>", "|a|b|\n|-|-|\n|<i>|2|", "{{7*7}}", "{% raw %}", "<style>*{display:none}</style>"),
            *("\x1b[2J", "\u202e", "\u2066", "\x00", "\ud800", "\ufeff", "\r\n", "⟦U+110000⟧", "⟦U+FFFFFF⟧"),
            *("*" * 50, "[" * 50, "\u0301" * 50, "x" * 3000),
        ]
    )
    | st.text(max_size=20),
    max_size=12,
).map("".join)

# Every tag that one of our pages may hold, and every attribute.
TAGS = {
    "!doctype", "html", "head", "meta", "link", "title", "body", "a", "header", "h1", "h2", "h3", "h4", "h5", "h6", "p", "span",
    "progress", "nav", "form", "input", "button", "kbd", "main", "article", "section", "div", "label", "template", "footer",
    "strong", "em", "s", "code", "pre", "ul", "ol", "li", "blockquote", "br", "hr", "table", "thead", "tbody", "tr", "th", "td",
    "dialog", "dl", "dt", "dd", "script", "noscript", "fieldset", "legend", "select", "option", "textarea", "figure",
    "figcaption", "details", "summary", "time", "svg", "path", "line", "text", "rect", "circle", "polyline", "g",
}  # fmt: skip


ATTRIBUTE = re.compile(r'\s([\w-]+)="([^"]*)"')


def harmless(html: str, *, typed_by_us: bool = False) -> None:
    """No tag, script, handler or address in a page that is not ours; a text field may hold hidden characters."""
    if typed_by_us:
        html = re.sub(r"(<textarea[^>]*>).*?(</textarea>)", r"\1\2", html, flags=re.DOTALL)
    assert {tag.lower() for tag in re.findall(r"<(!?[a-zA-Z][\w-]*)", html)} <= TAGS | {"!doctype"}
    assert re.findall(r"<script[^>]*>[^<]+", html) == []
    assert not re.search(r"<[^>]*\s(on\w+|style|srcdoc|formaction)\s*=", re.sub(r'"[^"]*"', '""', html))
    attributes = [pair for tag in re.findall(r'<[a-zA-Z](?:"[^"]*"|[^">])*>', html) for pair in ATTRIBUTE.findall(tag)]
    addresses = [value for name, value in attributes if name in ("href", "src", "action")]
    assert addresses
    assert all(address.startswith(("/", "#", "data:,")) and not address.startswith("//") for address in addresses)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)


SAID = {
    "pair": {"answer": "a2"},
    "ranking": {"answer": "ranking", "place-0": "1", "place-1": "2"},
    "rating": {"answer": "rating", "rate-0-overall": "1"},
    "best": {"answer": "best-0"},
    "thumbs": {"answer": "up"},
    "edit": {"answer": "flag"},
}


@pytest.mark.parametrize("shown", ["plain", "markdown"])
def test_no_page_holds_anything_that_a_model_wrote(tmp_path: Path, shown: Any) -> None:
    with study(tmp_path, [], page=PageSettings(text=shown)) as found:
        rater, admin = patient(joined(found)), patient(joined(found, "admin"))
        rounds = itertools.count(1)

        @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
        @given(texts=st.lists(HOSTILE, min_size=6, max_size=6), query_type=st.sampled_from(list(SAID)))
        def attack(texts: list[str], query_type: Any) -> None:
            prompt, first, second, role, reason, column = texts
            responses = (first,) if query_type in ("thumbs", "edit") else (first, second)
            columns = {"messages": [{"role": role, "content": prompt}], "x": column}
            query = Query(
                prompt=prompt, responses=responses, query_type=query_type, round=next(rounds), columns=columns,
                model_versions=(role, column)[: len(responses)],
            )  # fmt: skip
            typed = reason.encode("utf-8", "replace").decode()
            found.store.add_queries([query])
            found.queue.offer([query.id])
            action, hidden, page = question(rater)
            harmless(page, typed_by_us=query_type == "edit")
            assert rater.get(f"{action}/text/0").headers["content-type"].startswith("text/plain")
            said = {**hidden, "reason": typed, **SAID[query_type]}
            assert rater.post(action, data=said).status_code == 303
            rater.post("/undo", data=hidden)
            harmless(question(rater)[2], typed_by_us=query_type == "edit")
            assert rater.post(action, data=said).status_code == 303
            harmless(admin.get("/admin").text)
            harmless(admin.get("/admin/answers", params={"text": typed[:20], "rater": typed}).text)
            harmless(admin.get("/admin/answers").text)
            assert admin.get("/admin/export/native").text.isascii()

        attack()


def test_what_a_researcher_types_is_escaped_too(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    page = PageSettings(title=evil, guidelines=f"# {evil}\n\n[x](javascript:alert(1))", attributes=(f'a" onx="{evil}',))
    query = Query(prompt="p", responses=("x", "y"), query_type="rating")
    with study(tmp_path, [query], page=page) as found:
        rater, admin = joined(found), joined(found, "admin")
        found.people.invite(label=evil)
        for html in (question(rater)[2], rater.get("/guidelines").text, admin.get("/admin").text):
            harmless(html)


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "*a " * 6000, "> " * 9000, "`" * 20_000, "|" * 20_000, "[a](" * 5000, "x" * 10**6]
)
def test_no_text_keeps_the_server_busy(text: str) -> None:
    import time

    from rlhf_gym.web.markup import markdown_html

    began = time.thread_time()  # not how long other programs keep the processor from it
    markdown_html(text)
    assert time.thread_time() - began < 3
