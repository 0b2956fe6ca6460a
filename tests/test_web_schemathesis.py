"""The rating page against its own schema, over HTTP: right and wrong requests by nobody, raters, administrators.

Whatever is sent, the reply has a status and a type that the schema names, and none is the server's own fault.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web_study import client, pairs, routes, study

from rlhf_gym.feedback import Query
from rlhf_gym.feedback.exchange.formats import WRITTEN
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.web.app import create_app
from rlhf_gym.web.security import POLICY, RateLimit, csrf_token
from rlhf_gym.web.server import Address, PageServer
from rlhf_gym.web.study import STATIC, Study

schemathesis = pytest.importorskip("schemathesis")

QUIET = settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
)
ACCEPT = st.sampled_from(["application/json", "text/html,*/*;q=0.8"])
ANSWERS = st.sampled_from(
    ["a1", "b3", "tie", "bad", "skip", "flag", "best-0", "up", "accept", "correct", "ranking", "x"]
)
FORM = "application/x-www-form-urlencoded"
KINDS = ("application/json", "multipart/form-data; boundary=x", "text/plain", "")


@dataclass
class Caller:
    """Nobody, a rater or an administrator, who signs in again when signed out or forgotten."""

    found: Study
    role: str
    session: str = ""

    def cookies(self) -> dict[str, str]:
        if self.role == "nobody":
            return {}
        if self.found.people.person_of(self.session) is None:
            _, self.session = self.found.people.accept(self.found.people.invite(role=self.role))
        return {self.found.cookie: self.session}

    @property
    def csrf(self) -> str:
        return csrf_token(self.session)


@contextmanager
def served(folder: Path) -> Iterator[tuple[Study, str, Any]]:
    """A study with every form of query, its address, and its schema."""
    texts = ("one", "two", "three")
    columns = {"expected": {"choice": 0}, "explanation": "so", "practice": True}
    queries = [
        *pairs(200),
        Query(prompt="r", responses=texts, query_type="ranking", index=0, round=2),
        Query(prompt="b", responses=texts, query_type="best", index=1, round=2),
        Query(prompt="t", responses=texts[:1], query_type="thumbs", index=2, round=2),
        Query(prompt="e", responses=texts[:1], query_type="edit", index=3, round=2),
        Query(prompt="practice", responses=texts[:2], round=0, columns=columns),
    ]
    with study(folder, queries, queue=QueueSettings(practice=1, overlap=50)) as found:
        app, address = create_app(found), Address(port=0)
        app.limit = app.address_limit = app.join_limit = RateLimit(1e6, 10**6)
        with PageServer(app, address) as server:
            yield found, server.url, schemathesis.openapi.from_dict(app.app.openapi())


def meaningful(case: Any, who: Caller, found: Study, token: str, data: Any) -> None:
    """Put what exists into a request: without it, nothing behind the first check would ever be reached."""
    names = [person.name for person in found.people.people()]
    held: list[str] = []
    if who.role != "nobody":
        person = found.people.person_of(who.session)
        held = [one.id for one in found.queue.next(person.name, count=2)] if person else []
    places = {
        "assignment": held,
        "name": [*STATIC] if case.path.startswith("/static") else [*WRITTEN],
        "token": [token],
    }
    for name in case.path_parameters or {}:
        if places.get(name) and data.draw(st.booleans()):
            case.path_parameters[name] = data.draw(st.sampled_from(places[name]))
    if isinstance(case.body, dict) and data.draw(st.integers(0, 3)):
        case.body["csrf"] = who.csrf
        if "answer" in case.body or case.path.startswith("/rate/"):
            case.body |= {
                "query_type": data.draw(st.sampled_from(["pair", "best", "thumbs"])),
                "answer": data.draw(ANSWERS),
            }
        if case.path == "/join":
            case.body["token"] = token
        if case.path == "/admin/invite" and data.draw(st.booleans()):
            case.body |= {"uses": "2", "days": "3"}
        if case.path.startswith("/admin") and data.draw(st.booleans()):
            ids = [one.id for one in found.people.invitations()[:5]]
            case.body["subject"] = data.draw(st.sampled_from([*names, *ids]))


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_every_reply_is_one_that_the_schema_names(tmp_path: Path, mode: str) -> None:
    import requests
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    # What a form must say depends on who sends it and what is open, which no schema can tell: such forms are refused
    # although they fit; and where the text of a form is lenient (a time that cannot be read), wrong ones are taken.
    ours = ("positive_data_acceptance", "negative_data_rejection", "unsupported_method")
    checks = [check for check in CHECKS.get_all() if check.__name__ not in ours]
    assert {
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    } <= {check.__name__ for check in checks}
    statuses: dict[str, Counter[int]] = {}
    with served(tmp_path) as (found, url, schema), requests.Session() as line:
        everybody = [Caller(found, role) for role in ("nobody", "rater", "admin")]
        token = found.people.invite(uses=10_000)

        def attack(operation: Any) -> None:
            strategy = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))

            @given(case=strategy, who=st.sampled_from(everybody), accept=ACCEPT, data=st.data())
            @QUIET
            def ask(case: Any, who: Caller, accept: str, data: Any) -> None:
                cookies = who.cookies()
                meaningful(case, who, found, token, data)
                reply = case.call(
                    base_url=url, session=line, cookies=cookies, headers={"Accept": accept}, allow_redirects=False
                )
                line.cookies.clear()  # of whoever has just joined
                statuses.setdefault(f"{case.method} {case.path}", Counter())[reply.status_code] += 1
                assert reply.headers["content-security-policy"] == [POLICY]
                case.validate_response(reply, checks=checks)

            ask()

        operations = [result.ok() for result in schema.get_all_operations()]
        for operation in operations:
            # Elsewhere any text will do, so that nothing in a request could be wrong.
            if mode == "positive" or operation.method == "post" or "{slot}" in operation.path:
                attack(operation)
    seen = set().union(*statuses.values())
    assert {401, 403, 404} <= seen
    assert all(status < 500 for status in seen)
    assert mode == "negative" or len(statuses) == len(operations)


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_what_each_route_is_there_for(tmp_path: Path, accept: str) -> None:
    """One request that does its work a route: its reply, too, is what the schema says."""
    import requests

    script = accept == "application/json"
    with served(tmp_path) as (found, url, schema), requests.Session() as line:
        rater, admin = Caller(found, "rater"), Caller(found, "admin")
        done = set()

        def ask(who: Caller, method: str, path: str, status: int, *, form: Any = None, **names: Any) -> None:
            cookies = who.cookies()
            form = {} if form is None else {"body": {"csrf": who.csrf, **form}, "media_type": FORM}
            case = schema[path][method].Case(path_parameters=names, **form)
            headers = {"Accept": accept}
            reply = case.call(base_url=url, session=line, cookies=cookies, headers=headers, allow_redirects=False)
            line.cookies.clear()
            assert reply.status_code == status, (path, reply.text)
            case.validate_response(reply)
            done.add((method, path))

        def held() -> str:
            rater.cookies()
            person = found.people.person_of(rater.session)
            assert person
            return found.queue.next(person.name)[0].id

        for path in ("/", "/healthz", "/guidelines", "/rate"):
            ask(rater, "get", path, 303 if path == "/" else 200)
        ask(rater, "get", "/static/{name}", 200, name="page.css")
        ask(rater, "get", "/static/{name}", 200, name="rate.js")
        ask(rater, "get", "/join/{token}", 200, token="x")
        ask(rater, "get", "/rate/{assignment}/text/{slot}", 200, assignment=held(), slot=1)
        ask(rater, "post", "/join", 303, form={"token": found.people.invite()})
        answer = {"query_type": "pair", "answer": "a2", "seconds": "1.5", "reason": "because"}
        ask(rater, "post", "/rate/{assignment}", 200, form=answer, assignment=held())  # practice: told at once
        ask(rater, "post", "/rate/{assignment}", 200 if script else 303, form=answer, assignment=held())
        ask(rater, "post", "/undo", 200 if script else 303, form={})
        ask(rater, "post", "/next", 200, form={"have": ""})
        name = found.people.people()[0].name
        found.people.pause(name)
        ask(rater, "get", "/rate", 200)
        ask(rater, "post", "/next", 200, form={"have": ""})
        ask(rater, "post", "/leave", 200, form={})
        ask(admin, "get", "/admin", 200)
        ask(admin, "get", "/admin/answers", 200)
        for format_ in WRITTEN:
            ask(admin, "get", "/admin/export/{name}", 200, name=format_)
        ask(admin, "post", "/admin/invite", 200, form={"role": "rater", "uses": "2", "days": "1.5", "label": "Kim"})
        ask(admin, "post", "/admin/revoke", 303, form={"subject": found.people.invitations()[0].id})
        for action in ("pause", "resume", "forget"):
            ask(admin, "post", f"/admin/{action}", 303, form={"subject": name})
        everything = [result.ok() for result in schema.get_all_operations()]
        assert done == {(operation.method, operation.path) for operation in everything}


def test_what_is_no_form_is_refused(tmp_path: Path) -> None:
    import requests

    with served(tmp_path) as (found, url, schema), requests.Session() as line:
        who = Caller(found, "admin")
        operations = [result.ok() for result in schema.get_all_operations()]

        @given(
            operation=st.sampled_from([one for one in operations if one.method == "post"]),
            kind=st.sampled_from(KINDS), body=st.binary(max_size=200), accept=ACCEPT,
        )  # fmt: skip
        @settings(QUIET, max_examples=30)
        def ask(operation: Any, kind: str, body: bytes, accept: str) -> None:
            path = re.sub(r"\{\w+\}", "x", operation.path)
            headers = {"content-type": kind, "accept": accept}
            reply = line.post(url + path, data=body, headers=headers, cookies=who.cookies(), allow_redirects=False)
            assert reply.status_code == 415, (path, kind, reply.text)
            broken = line.post(
                url + path, data=b"\xff%ff=" + body, cookies=who.cookies(), allow_redirects=False,
                headers={"content-type": FORM, "accept": accept},
            )  # fmt: skip
            assert broken.status_code == 400, (path, broken.text)

        ask()
        assert found.store.count().judgements == 0


def test_other_methods_are_refused_with_those_that_are_not(tmp_path: Path) -> None:
    with study(tmp_path, pairs(2)) as found:
        somebody = client(found)
        schema = somebody.app.app.openapi()
        somebody.app.address_limit = RateLimit(1e6, 10**6)
        for path, operations in schema["paths"].items():
            there = re.sub(r"\{slot\}", "0", re.sub(r"\{\w+\}", "x", path).replace("x/text/x", "x/text/0"))
            allowed = {method.upper() for method in operations}
            if path.startswith("/admin/export"):  # an export is a piece of work, and nobody asks for its headers alone
                assert somebody.head(there).status_code == 405, path
            elif "GET" in allowed:  # the guard answers what only asks for the headers
                assert somebody.head(there).status_code == somebody.get(there).status_code, path
            for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - allowed:
                reply = somebody.request(method, there)
                assert reply.status_code == 405, (method, path)
                assert set(reply.headers["allow"].split(", ")) == allowed, (method, path)


def test_the_schema_holds_every_route_and_is_served_to_nobody(tmp_path: Path) -> None:
    with study(tmp_path, pairs(2)) as found:
        somebody = client(found)
        app = somebody.app.app
        schema = app.openapi()
        assert schema is app.openapi()
        described = {(m.upper(), path) for path, operations in schema["paths"].items() for m in operations}
        routed = {(method, route.path) for route in routes(app) for method in route.methods}
        assert described == routed
        assert all("422" not in one["responses"] for path in schema["paths"].values() for one in path.values())
        for path in ("/openapi.json", "/docs", "/redoc", "/docs/oauth2-redirect", "/schema"):
            assert somebody.get(path).status_code == 404
