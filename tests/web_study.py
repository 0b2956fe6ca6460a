"""A small study for tests of the rating page: a store with queries, a client that has joined, and a real server."""

from __future__ import annotations

import re
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_run import command
from waiting import wait_until

from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.study.people import People
from rlhf_gym.study.queue import Queue
from rlhf_gym.web.app import create_app
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.study import Study


def pairs(number: int) -> list[Query]:
    """Pair queries whose first response is always the one written by `secret-model-A`."""
    return [
        Query(
            prompt=f"Prompt {i}", responses=(f"first of {i}", f"second of {i}"), index=i,
            model_versions=("secret-model-A", "secret-model-B"),
        )
        for i in range(number)
    ]  # fmt: skip


@contextmanager
def study(
    folder: Path | str,
    queries: Sequence[Query],
    *,
    queue: QueueSettings | None = None,
    page: PageSettings | None = None,
) -> Iterator[Study]:
    """A study in a folder, or in the store at a given place (a file or a URL)."""
    place = folder / "feedback.sqlite" if isinstance(folder, Path) else folder
    with FeedbackStore(place) as store:
        store.add_queries(queries)
        yield Study(store, People(store), Queue(store, queue), page or PageSettings())


def client(found: Study, *, hosts: Sequence[str] = ("testserver",), **options: Any) -> Any:
    """A client without scripts, in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from starlette.testclient import TestClient
    return TestClient(create_app(found, hosts=hosts), follow_redirects=False, **options)


def joined(found: Study, role: str = "rater", **options: Any) -> Any:
    """A client that has accepted an invitation."""
    somebody = client(found, **options)
    reply = somebody.post("/join", data={"token": found.people.invite(role=role)})
    assert reply.status_code == 303, reply.text
    return somebody


def routes(app: Any) -> list[Any]:
    """Every route of a FastAPI application or router, those of included routers too."""
    found: list[Any] = []
    for route in app.routes:
        if hasattr(route, "methods"):
            found.append(route)
        else:  # newer versions of FastAPI keep an included router in one piece
            found += routes(route.original_router)
    return found


def fields(html: str) -> dict[str, str]:
    """The hidden fields of a page's question."""
    form = html[html.index('class="answer"') : html.index("</article>")]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))


def question(somebody: Any) -> tuple[str, dict[str, str], str]:
    """The open question: where its form goes, its hidden fields, and the page."""
    page = somebody.get("/rate")
    assert page.status_code == 200, page.text
    action = re.search(r'action="(/rate/[^"]+)"', page.text)
    assert action, page.text
    return action[1], fields(page.text), page.text


def answer(somebody: Any, said: str, **more: str) -> Any:
    """Answer the open question by a plain form."""
    action, hidden, _ = question(somebody)
    return somebody.post(action, data={**hidden, "answer": said, **more})


def start_run(folder: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """`rlhf-gym run` in a process of its own, and the link for raters that it prints."""
    log = folder / "log"
    file = log.open("a")
    before = log.stat().st_size
    process = subprocess.Popen(command("run", *arguments), stdout=file, stderr=file, text=True)

    def link() -> re.Match[str] | None:
        return re.search(r"raters: +(\S+)\s", log.read_text()[before:])

    wait_until(lambda: link() or process.poll() is not None, "the run serves its page")
    found = link()
    assert found, log.read_text()
    return process, found[1]
