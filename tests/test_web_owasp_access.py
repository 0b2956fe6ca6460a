"""The rating page against the OWASP basics: who may do what. Access, tokens, forged forms, sessions; one test an item."""

from __future__ import annotations

import hmac
import http.client
import logging
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from waiting import LONG
from web_attack import JSON, contents, csrf_of, every_route, filled, patient, store_down
from web_study import answer, client, joined, pairs, question, study

from rlhf_gym.feedback.exchange.formats import WRITTEN
from rlhf_gym.study import people as people_module
from rlhf_gym.study.people import People
from rlhf_gym.web import security
from rlhf_gym.web.app import create_app
from rlhf_gym.web.security import csrf_token
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.study import Study

PUBLIC = {("GET", "/healthz"), ("GET", "/static/{name}"), ("GET", "/join/{token}"), ("POST", "/join")}
"""All that somebody without an invitation may ask for. Every other route, whatever is added, must want to know who asks."""


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Study]:
    with study(tmp_path, pairs(30)) as opened:
        yield opened


@pytest.fixture
def anywhere(store_place: str) -> Iterator[Study]:
    """The same in SQLite and in PostgreSQL."""
    with study(store_place, pairs(30)) as opened:
        yield opened


# --- A01 Broken access control


def test_every_route_wants_to_know_who_asks(found: Study) -> None:
    somebody = patient(client(found))
    listed = every_route(somebody)
    assert {*PUBLIC} <= {*listed}
    for method, path in listed:
        if (method, path) not in PUBLIC:
            for headers in ({}, JSON):
                reply = somebody.request(
                    method, filled(path), data={"csrf": "x"} if method == "POST" else None, headers=headers
                )
                assert reply.status_code == 401, (method, path)


def test_every_page_of_the_administrator_is_closed_to_raters(found: Study) -> None:
    rater = patient(joined(found))
    before = contents(found)
    closed = [(method, path) for method, path in every_route(rater) if path.startswith("/admin")]
    assert len(closed) >= 8
    for method, path in closed:
        for name in ("x", *WRITTEN):
            data = {"csrf": csrf_of(found, rater), "subject": found.people.people()[0].name}
            reply = rater.request(method, path.replace("{name}", name), data=data if method == "POST" else None)
            assert reply.status_code == 403, (method, path)
    assert contents(found) == before


def test_no_rater_reads_answers_or_undoes_for_another(found: Study) -> None:
    one, other = patient(joined(found)), patient(joined(found))
    action, hidden, _ = question(one)
    foreign = {**hidden, "csrf": csrf_of(found, other), "answer": "a3"}
    assert other.post(action, data=foreign).status_code == 409
    assert other.get(f"{action}/text/0").status_code == 404
    assert one.post(action, data={**hidden, "answer": "a3"}).status_code == 303
    assert other.post(action, data=foreign).status_code == 409  # nor is it told that it is answered
    assert other.post("/undo", data=foreign, headers=JSON).json() == {"reopened": None}
    [kept] = found.store.judgements()
    assert kept.rater == found.people.people()[0].name
    for path in (f"/admin/answers?rater={kept.rater}", "/admin/export/native"):
        assert other.get(path).status_code == 403


def test_an_invitation_that_is_revoked_expired_or_used_opens_nothing(
    found: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoked, used, expired, good = (found.people.invite(label=name, days=2) for name in "ruxg")
    found.people.revoke(next(one.id for one in found.people.invitations() if one.label == "r"))
    assert client(found).post("/join", data={"token": used}).status_code == 303

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=3)

    pages = {}
    for name, token in {"revoked": revoked, "used": used, "expired": expired, "guess": "x" * 32}.items():
        somebody = client(found)
        with monkeypatch.context() as patched:
            if name == "expired":
                patched.setattr(people_module, "datetime", Later)
            reply = somebody.post("/join", data={"token": token})
        assert reply.status_code == 409, name
        assert "set-cookie" not in reply.headers
        assert somebody.get("/rate").status_code == 401
        pages[name] = (reply.text, somebody.get(f"/join/{token}").text.replace(token, ""))
    # Whoever guesses is not told whether there ever was such an invitation.
    assert len(set(pages.values())) == 1
    assert client(found).post("/join", data={"token": good}).status_code == 303


# --- A02 Cryptographic failures: tokens


def test_the_database_never_sees_a_token_only_its_hash(anywhere: Study) -> None:
    """Not at rest, and not in a statement that a server might log."""
    found, seen = anywhere, []
    engine = found.store.database._engine
    event.listen(engine, "before_cursor_execute", lambda _c, _k, said, given, *_: seen.append(f"{said} {given}"))
    admin = patient(joined(found, "admin"))
    page = admin.post("/admin/invite", data={"csrf": csrf_of(found, admin), "uses": "1", "days": "1"}).text
    link = re.search(r"/join/([\w-]+)</code>", page)
    assert link
    rater = patient(client(found))
    rater.post("/join", data={"token": link[1]})
    question(rater)
    answer(rater, "a2")
    secret = [link[1], rater.cookies[found.cookie], admin.cookies[found.cookie], csrf_of(found, rater)]
    assert all(len(token) >= 32 and len(set(token)) > 10 for token in secret)
    rater.post("/leave", data={"csrf": csrf_of(found, rater)})
    assert len(seen) > 20
    assert not any(token in said for token in secret for said in seen)
    assert not any(token in str(contents(found)) for token in secret)


def test_tokens_are_compared_in_constant_time(found: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Watched:
        new, compare_digest = staticmethod(hmac.new), staticmethod(compare)

    monkeypatch.setattr(security, "hmac", Watched)
    rater = patient(joined(found))
    for given in ("", "x", csrf_of(found, rater)[:-1], "é"):
        assert rater.post("/next", data={"csrf": given}).status_code == 403
    assert rater.post("/next", data={"csrf": csrf_of(found, rater)}).status_code == 200
    assert [other for _, other in compared] == [
        b"",
        b"x",
        csrf_of(found, rater)[:-1].encode(),
        "é".encode(),
        compared[-1][0],
    ]


def test_no_log_holds_a_token(
    found: Study, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the wordiest level, over the real server, with errors on the way."""
    caplog.set_level(logging.DEBUG)
    token = found.people.invite()
    address = Address(port=0)
    app = create_app(found, hosts=address.hosts())
    with PageServer(app, address) as server:

        def ask(method: str, path: str, body: str | None = None, **headers: str) -> Any:
            if body is not None:
                headers["content-type"] = "application/x-www-form-urlencoded"
            line = http.client.HTTPConnection("127.0.0.1", server.address.port, timeout=LONG)
            line.request(method, path, body, headers)
            reply = line.getresponse()
            reply.read()
            line.close()
            return reply

        assert ask("GET", f"/join/{token}").status == 200
        reply = ask("POST", "/join", f"token={token}")
        cookie = reply.getheader("set-cookie").partition(";")[0]
        session = cookie.partition("=")[2]
        csrf = csrf_token(session)
        assert ask("GET", "/rate", cookie=cookie).status == 200
        assert ask("POST", "/rate/x", f"csrf={csrf}&answer=a2&query_type=pair", cookie=cookie).status == 409
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(type(found.queue), "next", lambda *_a, **_k: 1 / 0)
            assert ask("POST", "/next", f"csrf={csrf}", cookie=cookie).status == 500
        with store_down(found):
            assert ask("POST", "/next", f"csrf={csrf}", cookie=cookie).status == 503
    logged = caplog.text + "".join(capfd.readouterr())
    assert "ZeroDivisionError" in logged  # whoever runs the study learns of it
    assert "disk (or quota) is full" in logged
    assert not any(secret in logged for secret in (token, session, csrf))


# --- CSRF


def test_every_route_that_changes_something_wants_our_own_form(found: Study) -> None:
    admin, rater = patient(joined(found, "admin")), patient(joined(found))
    before = contents(found)
    changing = [(method, path) for method, path in every_route(admin) if method != "GET"]
    assert {method for method, _ in changing} == {"POST"}
    assert {path for _, path in changing} >= {
        "/rate/{assignment}",
        "/undo",
        "/next",
        "/leave",
        "/join",
        "/admin/forget",
    }
    for who in (admin, rater):
        own = {"csrf": csrf_of(found, who), "subject": found.people.people()[1].name, "token": found.people.invite()}
        before = contents(found)
        for _, path in changing:
            for headers in (
                {"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"},
                {"origin": "http://testserver", "sec-fetch-site": "same-site"},
            ):  # fmt: skip
                assert who.post(filled(path), data=own, headers=headers).status_code == 403, path
            if path != "/join":  # nobody is signed in there yet: only where the form comes from can be asked
                for token in ("", "x", csrf_token("another"), csrf_of(found, rater if who is admin else admin)):
                    assert who.post(filled(path), data={**own, "csrf": token}).status_code == 403, path
                assert who.post(filled(path), data={k: v for k, v in own.items() if k != "csrf"}).status_code == 403, (
                    path
                )
        assert contents(found) == before


# --- A07 Sessions


def test_a_planted_session_never_becomes_anybody_s(found: Study) -> None:
    planted = "planted-by-somebody-else"
    victim = client(found, cookies={found.cookie: planted})
    assert victim.post("/join", data={"token": found.people.invite()}).status_code == 303
    given = victim.cookies.get(found.cookie, domain="testserver.local")
    assert given != planted
    assert client(found, cookies={found.cookie: given}).get("/rate").status_code == 200
    assert client(found, cookies={found.cookie: planted}).get("/rate").status_code == 401
    # A session is no address's either: only a cookie carries it.
    for path in (f"/rate?{found.cookie}={given}", f"/rate;{found.cookie}={given}"):
        assert client(found).get(path).status_code in (401, 404)


def test_leaving_ends_the_session_on_the_server_and_in_the_browser(found: Study) -> None:
    rater, other = joined(found), joined(found)
    session = rater.cookies[found.cookie]
    kept, copied = question(rater)[1], client(found, cookies={found.cookie: session})
    reply = rater.post("/leave", data=kept)
    cleared = reply.headers["set-cookie"].lower()
    assert f'{found.cookie}=""' in cleared
    assert "max-age=0" in cleared
    assert "httponly" in cleared
    for path in ("/rate", "/guidelines", "/"):
        assert copied.get(path).status_code == 401
    assert copied.post("/next", data=kept).status_code == 401
    assert other.get("/rate").status_code == 200
    name = found.people.people()[1].name
    found.people.forget(name)
    assert other.get("/rate").status_code == 401


def test_the_cookie_s_flags(found: Study) -> None:
    for base, secure in (("http://testserver", False), ("https://testserver", True)):
        somebody = client(found, base_url=base)
        said = somebody.post("/join", data={"token": found.people.invite()}).headers["set-cookie"]
        flags = {part.strip().lower() for part in said.split(";")[1:]}
        assert {"httponly", "samesite=lax", "path=/"} <= flags
        assert ("secure" in flags) == secure
        assert not any(flag.startswith("domain") for flag in flags)  # this host alone, none of its siblings
        cleared = somebody.post("/leave", data={"csrf": csrf_token(said.partition("=")[2].partition(";")[0])})
        assert ("secure" in cleared.headers["set-cookie"].lower()) == secure


def test_two_studies_on_one_host_leave_each_other_s_raters_signed_in(tmp_path: Path) -> None:
    """Browsers keep cookies by host, whatever the port."""
    for name in "ab":
        (tmp_path / name).mkdir()
    with study(tmp_path / "a", pairs(2)) as one, study(tmp_path / "b", pairs(2)) as other:
        assert one.cookie != other.cookie
        jar: dict[str, str] = {}
        for found in (one, other):
            somebody = client(found, cookies=jar)
            somebody.post("/join", data={"token": found.people.invite()})
            jar |= {c.name: c.value for c in somebody.cookies.jar}
        for found in (one, other):
            assert client(found, cookies=jar).get("/rate").status_code == 200
        # The same study, opened again (on another port, say), knows its raters still.
        assert Study(one.store, People(one.store), one.queue).cookie == one.cookie
        somebody = client(one, cookies=jar)
        assert somebody.post("/leave", data={"csrf": csrf_token(jar[one.cookie])}).status_code == 200
        assert client(other, cookies=jar).get("/rate").status_code == 200
