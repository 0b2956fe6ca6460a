"""Links to the page: opened from elsewhere, in two windows, by programs, and after the page was started again."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from web_attack import csrf_of
from web_study import client, joined, pairs, study

from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.study.people import People
from rlhf_gym.web.server import Address
from rlhf_gym.web.serving import Page, serving

FROM_MAIL = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "referer": "https://mail.example/"}


def test_a_link_from_another_site_knows_who_is_signed_in(tmp_path: Path) -> None:
    with study(tmp_path, pairs(3)) as found:
        single, group = found.people.invite(), found.people.invite(uses=5)
        somebody, stranger = client(found), client(found)
        said = somebody.post("/join", data={"token": single}).headers["set-cookie"].lower()
        assert (
            "samesite=lax" in said
        )  # browsers send it along when a link elsewhere is clicked, and with no other request
        [person] = found.people.people()
        page = somebody.get(f"/join/{single}", headers=FROM_MAIL).text
        assert f"You take part already, as {person.name}" in page
        assert "Begin as" not in page  # the link lets nobody else in
        assert "Begin as somebody else" in somebody.get(f"/join/{group}", headers=FROM_MAIL).text
        # Both windows showed `Begin`, and both were clicked: that is no second rater, and uses nothing up.
        for token in (single, group):
            reply = somebody.post("/join", data={"token": token})
            assert (reply.status_code, reply.headers["location"]) == (303, "/")
            assert "set-cookie" not in reply.headers
        assert found.people.people() == [person]
        # Somebody else at the same computer says so; the first one's session ends with their cookie.
        former = somebody.cookies[found.cookie]
        assert somebody.post("/join", data={"token": group, "another": "yes"}).status_code == 303
        assert len(found.people.people()) == 2
        assert client(found, cookies={found.cookie: former}).get("/rate").status_code == 401
        # Another site still cannot post, whatever browsers send along.
        before = found.people.invitations()
        forged = {"token": group, "another": "yes", "csrf": csrf_of(found, somebody)}
        for path in ("/join", "/leave", "/next", "/undo"):
            assert somebody.post(path, data=forged, headers=FROM_MAIL).status_code == 403
            assert somebody.post(path, data=forged, headers={"origin": "https://mail.example"}).status_code == 403
        assert found.people.invitations() == before
        assert stranger.get("/rate", headers=FROM_MAIL).status_code == 401


def test_a_rater_is_not_made_administrator_without_being_told(tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found:
        rater, token = joined(found), found.people.invite("admin")
        page = rater.get(f"/join/{token}").text
        assert "This link is for an administrator." in page
        assert "Begin as an administrator" in page
        assert rater.post("/join", data={"token": token}).status_code == 303
        assert rater.get("/admin").status_code == 403
        assert rater.post("/join", data={"token": token, "another": "yes"}).status_code == 303
        assert rater.get("/admin").status_code == 200


def test_programs_that_look_at_a_link_do_not_use_it_up(tmp_path: Path) -> None:
    with study(tmp_path, pairs(1)) as found:
        token = found.people.invite()
        before = found.people.invitations()
        for method, agent in (("GET", "Slackbot-LinkExpanding 1.0"), ("HEAD", "Mozilla/5.0"), ("GET", "Mozilla/5.0")):
            reply = client(found).request(
                method, f"/join/{token}", headers={"user-agent": agent, "sec-purpose": "prefetch"}
            )
            assert reply.status_code == 200
            assert "set-cookie" not in reply.headers
        assert found.people.invitations() == before
        assert client(found).post("/join", data={"token": token}).status_code == 303


def started(store: Path) -> tuple[list[str], Any]:
    """The links that a page prints, and the store's open invitations after that."""
    with FeedbackStore(store) as opened:
        people = People(opened)
        page = Page("http://x", opened, None, people, None)  # type: ignore[arg-type]
        links = [page.link(role).rpartition("/")[2] for role in ("rater", "admin")]
        return links, [(one.role, one.uses) for one in people.invitations() if one.open]


def test_every_start_prints_the_same_links_while_they_let_somebody_in(tmp_path: Path) -> None:
    store = tmp_path / "feedback.sqlite"
    (rater, admin), opened = started(store)
    assert sorted(opened) == [("admin", 1), ("rater", 1000)]
    assert started(store) == ([rater, admin], opened)
    kept = tmp_path / "feedback.sqlite-links.json"
    assert (
        stat.S_IMODE(kept.stat().st_mode) == 0o600
    )  # the database has hashes only, and these are the links themselves
    with FeedbackStore(store) as found:
        People(found).accept(admin)
        People(found).accept(rater)
    (same, other), opened = started(store)
    assert (same, sorted(opened)) == (rater, [("admin", 1), ("rater", 1000)])
    assert other != admin  # used: a new one, and still one that is open
    with FeedbackStore(store) as found:
        people = People(found)
        people.revoke(next(one.id for one in people.invitations() if one.role == "rater"))
    assert started(store)[0][0] != rater
    kept.write_text("no JSON")
    assert started(store)[0][1] != other
    assert set(json.loads(kept.read_text())) == {"rater", "admin"}
    assert list(tmp_path.glob("*.json*")) == [kept]


def test_links_that_cannot_be_kept_are_printed_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "feedback.sqlite-links.json").mkdir()
    with serving(tmp_path / "feedback.sqlite", address=Address(port=0)) as page:
        lines = "\n".join(page.lines())
    assert lines.count("/join/") == 2
    assert "the next start will print other links" in caplog.text
