"""The store, people, queue, settings and templates that every page works with."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.store import SetAside
from rlhf_gym.study.leases import Assignment
from rlhf_gym.study.people import People, Person
from rlhf_gym.study.queue import Queue
from rlhf_gym.web.cards import card_of
from rlhf_gym.web.markup import coded, markdown_html
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.security import cookie_name, csrf_token

T = TypeVar("T")
_log = logging.getLogger(__name__)

_SCRIPT = "text/javascript; charset=utf-8"
STATIC = {"page.css": "text/css; charset=utf-8", "controls.js": _SCRIPT, "rate.js": _SCRIPT, "admin.js": _SCRIPT}
WORKERS = 16
"""Threads that may write: the store has one writer at a time."""
PATIENCE = 10.0
"""Seconds to wait for a store that is locked; then a rater is told, and the page's script tries again."""


@dataclass(frozen=True)
class Study:
    """One store, served.

    Attributes:
        store: queries and judgements.
        people: raters, invitations, sessions.
        queue: hands out the queries.
        settings: the pages' look.
        run: the run directory that the store belongs to, if one does.
    """

    store: FeedbackStore
    people: People
    queue: Queue
    settings: PageSettings = field(default_factory=PageSettings)
    run: Path | None = None

    async def working(self, work: Callable[[], T]) -> T:
        """Run what may have to wait for its turn to write in the store, in a thread.

        They are threads of their own: however many raters wait for a database that is locked, pages that only read, and the
        server itself, go on.

        Args:
            work: takes nothing; what it returns or raises is returned or raised here.

        Raises:
            FeedbackError: no thread was free for as long as a store may stay locked; the same may be tried again.
        """
        asked = time.monotonic()

        def begin() -> T:
            waited = time.monotonic() - asked
            if waited > PATIENCE:  # whoever was before it has just found the store locked
                late = TimeoutError(f"{waited:.0f} s")
                raise FeedbackError(f"too many waited to write in {self.store.place} for too long ({late})") from late
            return work()

        return await asyncio.get_running_loop().run_in_executor(self._workers, begin)

    def stop(self) -> None:
        """Wait for what is being written; what has not begun is given up. Nobody was told that it is stored."""
        self._workers.shutdown(cancel_futures=True)

    @cached_property
    def _workers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(WORKERS, thread_name_prefix="rating page")

    def set_aside(self, queries: int) -> list[SetAside]:
        """The queries that no page can show. All queries are read, so again only when their number changes.

        Args:
            queries: number of queries in the store.
        """
        unreadable = self._unreadable(queries)
        return list({one.id: one for one in (*unreadable, *self.queue.set_aside_by_page())}.values())

    @cached_property
    def _unreadable(self) -> Callable[[int], list[SetAside]]:
        return lru_cache(maxsize=1)(lambda queries: self.store.set_aside())

    @cached_property
    def cookie(self) -> str:
        """The name of the session's cookie: this study's own, so that two studies on one host leave each other's alone."""
        return cookie_name(self.people.study())

    def page(self, name: str, **values: Any) -> str:
        """Render a template as HTML.

        Args:
            name: the template's file name.
            values: what the template uses.
        """
        return _templates().get_template(name).render(settings=self.settings, version=version(), **values)

    def message(
        self, heading: str, paragraphs: Sequence[str], *, form: Mapping[str, Any] | None = None, guidelines: bool = False,
        link: tuple[str, str] | None = None, refresh: int = 0,
    ) -> str:  # fmt: skip
        """A page with a heading, some text and at most one form.

        Args:
            heading: its heading.
            paragraphs: its text.
            form: one button: its ``action``, its hidden ``fields``, its label (``button``) and class (``css``).
            guidelines: True shows the guidelines, too.
            link: a link's target and its label.
            refresh: seconds until the page reloads; 0: never.
        """
        return self.page(
            "message.html.j2", heading=heading, paragraphs=paragraphs, form=form, link=link, refresh=refresh,
            guidelines=self.guidelines() if guidelines else None,
        )  # fmt: skip

    def card(self, assignment: Assignment, session: str) -> Markup:
        """An assignment's card as HTML.

        Args:
            assignment: the question in the rater's hands.
            session: the session's token.
        """
        return Markup(self.page("card.html.j2", card=card_of(assignment, self.settings), csrf=csrf_token(session)))

    def cards(
        self, rater: str, session: str, assignments: Sequence[Assignment], *, have: Collection[str] = ()
    ) -> dict[str, Markup | None]:
        """The cards of the questions in a rater's hands, by the questions' ids; None for those that the page has.

        A question that no page can show, whatever is stored there, is set aside and replaced by the next: raters go on.

        Args:
            rater: the rater.
            session: the session's token.
            assignments: the questions.
            have: the ids of those that the rater's page shows already.
        """
        found: dict[str, Markup | None] = {}
        aside: set[str] = set()
        while True:
            bad = []
            for assignment in assignments:
                try:
                    found[assignment.id] = None if assignment.id in have else self.card(assignment, session)
                except Exception as error:
                    trace = not isinstance(error, FeedbackError)
                    _log.error(
                        "query %s cannot be shown and is set aside: %s", assignment.query.id, error, exc_info=trace
                    )
                    bad.append(assignment.query.id)
                    self.queue.set_aside(assignment.query.id, f"{type(error).__name__}: {error}")
            if not bad or aside.intersection(bad):
                return found
            aside.update(bad)
            assignments = self.queue.next(rater, count=len(assignments))

    def progress(self, person: Person) -> dict[str, Any]:
        """The rater's progress, in numbers and in words."""
        count = self.queue.counts(person.name)
        words = f"{count.answered} answered · {count.waiting} to go"
        return {"counts": words, "answered": count.answered, "total": count.answered + count.waiting}

    def rating_page(self, person: Person, session: str) -> str:
        """The whole rating page.

        Args:
            person: the person who sees the page.
            session: the session's token.
        """
        heading, words = self.settings.waiting
        cards = list(self.cards(person.name, session, self.queue.next(person.name, count=self.settings.held)).values())
        return self.page(
            "rate.html.j2", person=person, csrf=csrf_token(session), cards=cards, guidelines=self.guidelines(),
            waiting=Markup(self.page("waiting.html.j2", heading=heading, words=words)), **self.progress(person),
        )  # fmt: skip

    def guidelines(self) -> Markup:
        """The guidelines as HTML."""
        return markdown_html(self.settings.guidelines)


@lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _asset(f"templates/{name}").decode()), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False, finalize=_shown,
    )  # fmt: skip


def _shown(value: Any) -> Any:
    """Show hidden characters in whatever a template prints (a name, a note, a search); safe HTML stays as it is."""
    return coded(value) if type(value) is str else value


def static(name: str) -> bytes:
    """A file of the page; its name must be one of :data:`STATIC`."""
    return _asset(f"static/{name}")


@lru_cache(maxsize=1)
def version() -> str:
    """Changes whenever a file of the page does: part of the files' addresses, so that no browser uses an old one."""
    return hashlib.sha256(b"".join(static(name) for name in STATIC)).hexdigest()[:12]


@lru_cache(maxsize=32)
def _asset(name: str) -> bytes:
    return resources.files("rlhf_gym.web").joinpath(name).read_bytes()
