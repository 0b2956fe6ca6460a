"""The rating page against the OWASP basics: what it is sent and what it says; one test an item."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from waiting import LONG
from web_attack import FILTERS, JSON, contents, csrf_of, every_route, filled, patient, store_down
from web_study import answer, client, fields, joined, pairs, question, study

from rlhf_gym.web.app import create_app
from rlhf_gym.web.security import POLICY, RateLimit
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.study import STATIC, Study

SQL = (
    "' OR '1'='1", "'; DROP TABLE judgements; --", '" OR 1=1 --', "1); DELETE FROM people; --", "\\'; --", "%' OR 'a'='a",
)  # fmt: skip
FIELDS = (
    "csrf", "token", "subject", "role", "label", "uses", "days", "query_type", "answer", "reason", "edited", "seconds", "shown",
    "have", "place-0", "place-1", "rate-0-overall", "k",
)  # fmt: skip


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Study]:
    with study(tmp_path, pairs(30)) as opened:
        yield opened


@pytest.fixture
def anywhere(store_place: str) -> Iterator[Study]:
    """The same in SQLite and in PostgreSQL."""
    with study(store_place, pairs(30)) as opened:
        yield opened


# --- A03 Injection


def test_sql_in_every_field_is_only_text(anywhere: Study) -> None:
    found = anywhere
    rater, admin = patient(joined(found)), patient(joined(found, "admin"))
    given = 0
    question(rater)
    question(admin)
    tables = contents(found)
    for attack in SQL:
        for who, (method, path) in ((w, r) for w in (rater, admin) for r in every_route(w) if r[1] != "/leave"):
            there = re.sub(r"\{\w+\}", quote(attack, safe=""), path.replace("{slot}", "0"))
            if method == "GET":
                reply = who.get(there, params=dict.fromkeys(FILTERS, attack))
            else:
                reply = who.post(there, data=dict.fromkeys(FIELDS, attack) | {"csrf": csrf_of(found, who)})
            assert reply.status_code < 500, (attack, path)
            given += 1
    assert given > 100
    assert contents(found) == tables
    # In a field that is stored, it stays what it was.
    assert answer(rater, "a2", reason=SQL[1]).status_code == 303
    admin.post("/admin/invite", data={"csrf": csrf_of(found, admin), "label": SQL[1]})
    assert found.store.judgements()[0].reason == SQL[1]
    assert found.people.invitations()[0].label == SQL[1]
    assert "1 answer," in admin.get("/admin/answers", params={"text": SQL[1]}).text
    assert "0 answers" in admin.get("/admin/answers", params={"text": SQL[0]}).text


def test_no_header_can_be_slipped_in(found: Study) -> None:
    admin = patient(joined(found, "admin"))
    evil = "x\r\nset-cookie: evil=1\r\n\r\n<script>"
    coded = "x%0d%0aset-cookie:%20evil=1%0d%0a%0d%0a"
    replies = [
        admin.get(f"/admin/export/{coded}"), admin.get(f"/join/{coded}"), admin.get(f"/static/{coded}"), admin.get(f"/{coded}"),
        admin.post("/join", data={"token": evil}), admin.get("/admin/answers", params={"rater": evil, "text": evil}),
        admin.post("/admin/invite", data={"csrf": csrf_of(found, admin), "label": evil}),
        admin.post("/admin/pause", data={"csrf": csrf_of(found, admin), "subject": evil}),
        admin.get("/", headers={"x-forwarded-host": "evil.example", "x-forwarded-prefix": evil.replace("\r\n", " ")}),
    ]  # fmt: skip
    for reply in replies:
        assert reply.status_code < 500
        assert "set-cookie" not in reply.headers
        assert all("\r" not in value and "\n" not in value and "evil" not in value for value in reply.headers.values())


def test_no_path_leads_out_of_the_static_files_or_the_export(found: Study) -> None:
    """Over a raw connection: clients tidy such addresses up before they send them."""
    admin = joined(found, "admin")
    address = Address(port=0)
    app = create_app(found, hosts=address.hosts())
    app.limit = app.address_limit = RateLimit(1e6, 10**6)
    targets = ("app.py", "templates/base.html.j2", "../../etc/passwd", "feedback.sqlite", "study.py")
    steps = (
        "../",
        "..%2f",
        "%2e%2e/",
        "%2e%2e%2f",
        "..%252f",
        "..\\",
        "..%5c",
        "%c0%ae%c0%ae/",
        "....//",
        "/",
        "//",
        "file:///",
        "%00",
    )
    with PageServer(app, address) as server:
        line = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=LONG)
        for base in ("/static/", "/admin/export/"):
            for step in steps:
                for target in targets:
                    for path in (base + step + target, base + step * 6 + target, base + "page.css" + step + target):
                        line.putrequest("GET", path, skip_accept_encoding=True)
                        line.putheader("Cookie", f"{found.cookie}={admin.cookies[found.cookie]}")
                        line.endheaders()
                        reply = line.getresponse()
                        body = reply.read()
                        assert reply.status in (400, 404), path
                        assert not re.search(rb"root:|SQLite format|import |\{%", body), path
        line.close()
    for name in STATIC:
        assert "/" not in name


def test_what_an_address_or_a_form_says_is_never_html_in_the_reply(found: Study) -> None:
    """Reflected scripts; what models and raters wrote is fuzzed in test_web_security.py."""
    rater, admin = patient(joined(found)), patient(joined(found, "admin"))
    evil, coded = "<script>alert(1)</script>", "%3Cscript%3Ealert(1)%3C%2Fscript%3E"
    replies = [
        *(who.get(path) for who in (rater, admin) for path in (f"/{coded}", f"/static/{coded}", f"/join/{coded}")),
        rater.get(f"/rate/{coded}/text/{coded}"), admin.get(f"/admin/export/{coded}"),
        admin.get("/admin/answers", params=dict.fromkeys(FILTERS, evil)),
    ]  # fmt: skip
    for said in (evil, "skip"):
        form = {"csrf": csrf_of(found, rater), "answer": said, "query_type": said}
        replies.append(rater.post(f"/rate/{coded.replace('%2F', '')}", data=form))
    for action in ("pause", "revoke", "invite"):
        form = {"csrf": csrf_of(found, admin), "subject": evil, "role": evil, "uses": evil}
        replies.append(admin.post(f"/admin/{action}", data=form))
    for reply in replies:
        assert "<script>alert" not in reply.text, reply.request.url
        assert reply.headers["x-content-type-options"] == "nosniff"


# --- A05 Misconfiguration: headers, limits, errors


def test_every_reply_of_every_route_has_the_headers_also_of_errors(found: Study) -> None:
    rater, admin = (patient(joined(found, role, raise_server_exceptions=False)) for role in ("rater", "admin"))
    nobody = patient(client(found, raise_server_exceptions=False))
    replies = []
    listed = every_route(nobody)

    def ask(who: Any) -> None:
        for method, path in [*listed, ("GET", "/nowhere"), ("DELETE", "/rate"), ("POST", "/healthz")]:
            if path != "/leave":
                replies.append(who.request(method, filled(path), headers=JSON if len(replies) % 2 else None))

    for who in (nobody, rater, admin):
        ask(who)
    with store_down(found):
        ask(rater)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(found.people), "person_of", lambda *_: 1 / 0)
        ask(rater)
    replies.append(rater.get("/rate", headers={"host": ""}))
    replies.append(rater.post("/next", content=b"x" * (2 << 20)))
    rater.app.limit = RateLimit(1, 1, clock=lambda: 0.0)
    replies += [rater.get("/rate"), rater.get("/rate")]
    statuses = {reply.status_code for reply in replies}
    assert {200, 303, 401, 403, 404, 405, 413, 415, 429, 500, 503} <= statuses
    for reply in replies:
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "same-origin"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert not {"server", "x-powered-by", "access-control-allow-origin"} & set(reply.headers)


def test_errors_tell_strangers_nothing(found: Study) -> None:
    """No trace, no path, no host, no version, no word of the database's own."""
    rater = patient(joined(found, raise_server_exceptions=False))
    hidden = {"csrf": csrf_of(found, rater)}
    replies = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(found.queue), "next", lambda *_a, **_k: Path("/secret/place").read_text())
        replies += [rater.get("/rate"), rater.get("/rate", headers=JSON), rater.post("/next", data=hidden)]
    assert [reply.status_code for reply in replies] == [500] * 3
    with store_down(found):
        down = [rater.get("/rate"), rater.post("/rate/x", data={**hidden, "answer": "skip"}, headers=JSON)]
    assert [reply.status_code for reply in down] == [503] * 2
    for reply in down:
        assert "Everything that was stored before is still there" in reply.text.replace("\n", " ")
        assert int(reply.headers["retry-after"]) >= 1
    odd = [
        rater.get("/rate/x/text/abc"),
        rater.get("/nowhere"),
        rater.put("/rate"),
        rater.get("/rate/x/text/" + "9" * 5000),
    ]
    assert [reply.status_code for reply in odd] == [404, 404, 405, 404]
    for reply in (*replies, *down, *odd):
        for word in (
            "Traceback",
            "secret",
            str(found.store.place),
            ".py",
            "sqlite",
            "fastapi",
            "pydantic",
            "int_parsing",
            "disk",
        ):
            assert word.lower() not in reply.text.lower(), (word, reply.text)


def test_forwarded_headers_make_no_links(found: Study) -> None:
    """An invitation's link is made from the page's public address, or from a host that the page answers to."""
    admin = patient(joined(found, "admin"))
    said = {"csrf": csrf_of(found, admin)}
    for headers in (
        {"x-forwarded-host": "evil.example"},
        {"forwarded": "host=evil.example"},
        {"x-host": "evil.example"},
    ):
        page = admin.post("/admin/invite", data=said, headers=headers).text
        assert "evil" not in page
        assert "http://testserver/join/" in page
    assert admin.post("/admin/invite", data=said, headers={"host": "evil.example"}).status_code == 421


def test_requests_have_a_size(found: Study) -> None:
    rater = patient(joined(found))
    said = {"csrf": csrf_of(found, rater)}
    for length in ("-1", "x", "1e3", "99999999999999999999", str((1 << 20) + 1)):
        reply = rater.post("/next", content=b"", headers={"content-length": length})
        assert reply.status_code == 413, length
    many = {f"f{i}": "x" for i in range(600)}
    assert rater.post("/next", data={**said, **many}).status_code == 400
    address = Address(port=0)
    with PageServer(create_app(found, hosts=address.hosts()), address) as server:
        line = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=LONG)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            line.request("GET", "/healthz", headers={"x": "y" * 1_000_000})
            assert line.getresponse().status in (400, 431)
        line.close()
        line.request("GET", "/healthz")
        assert line.getresponse().status == 200
        line.close()


def test_limits_are_each_session_s_own_and_cannot_be_shed(found: Study) -> None:
    hasty, calm = joined(found), joined(found)
    calm.app.limit = hasty.app.limit = RateLimit(per_second=1, burst=5, clock=lambda: 0.0)
    codes = [hasty.get("/guidelines", headers={"x-forwarded-for": f"10.0.0.{i}"}).status_code for i in range(8)]
    assert codes == [200] * 5 + [429] * 3
    assert calm.get("/guidelines").status_code == 200
    guesser = client(found)
    guesser.app.join_limit = RateLimit(per_second=1, burst=5, clock=lambda: 0.0)
    codes = []
    for number in range(8):
        guesser.cookies.set(found.cookie, f"{number}")  # another session each time is no way around it
        codes.append(guesser.post("/join", data={"token": "x"}).status_code)
    assert codes == [409] * 5 + [429] * 3


def test_hidden_fields_are_all_that_a_form_carries(found: Study) -> None:
    """No session, no name, no model in a page's forms: what is copied out of a page signs nobody in."""
    rater = patient(joined(found))
    _, hidden, page = question(rater)
    assert set(hidden) == set(fields(page)) == {"csrf", "query_type", "shown"} | (set(hidden) & {"k"})
    assert rater.cookies[found.cookie] not in page
    assert client(found).post("/next", data=hidden).status_code == 401


def test_a_small_reply_on_a_kept_connection_is_not_held_back() -> None:
    """Each would wait 40 ms for the other side's delayed acknowledgement if small packets were collected."""
    no_delay: list[int] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        # Of uvicorn's object behind `receive`: how long a reply takes would depend on how busy the machine is.
        connection = receive.__self__.transport.get_extra_info("socket")
        no_delay.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    with PageServer(app, Address(port=0)) as server:
        line = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=LONG)
        for _ in range(2):
            line.request("GET", "/")
            assert line.getresponse().read() == b"ok"
        line.close()
    assert no_delay == [1, 1]
