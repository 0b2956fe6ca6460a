"""A person in the browser as the user in a conversation: rates each answer of the model, and writes the next message.

Each answer is a rating query with the conversation above it and a field for the next message, so that all the rating page
has (invitations, leases, a store that loses nothing, exports) holds for conversations, too.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.tasks.chat import Messages, render_messages
from rlhf_gym.tasks.users import UserReply
from rlhf_gym.web.page_rater import WebRater
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.server import Address, require_web
from rlhf_gym.web.serving import Page, serving

GUIDELINES = """\
You talk to a language model. Read its last answer, say how good it is, and write your next message, as you would to somebody
who helps you. Leave the field empty when you have nothing more to say: the conversation then ends.
"""
STORE = "conversations.sqlite"
"""The feedback store where none is given, in the current folder."""
WAITING = (
    "The model has not answered yet",
    "Its next answer appears here by itself; you may also come back later.",
)
LEASE = 300.0
Talk = tuple[tuple[str, str], ...]
"""The roles and texts of a conversation so far."""


class WebUser:
    """People on a rating page, who talk to the policy and rate its answers.

    The page is served from the first message on, and until :meth:`close`; its links are printed. Conversations of several slots
    wait at the same time, and several people share them: whoever is free gets the next one that begins, one at a time. It stays
    theirs; where they leave it, it is offered to anybody after one lease.

    Args:
        store: the feedback store that keeps ratings and replies: a file or a URL. None: ``conversations.sqlite``.
        host: address to listen on.
        port: port; 0 takes a free one.
        url: public address where a proxy stands in front.
        title: the page's title.
        guidelines: Markdown for whoever answers.
        scale: ratings go from 1 to this.
        lease: seconds that an answer is kept for the person who has it; None: 300, or half of the timeout where that is less.
        timeout: seconds to wait for an answer; None waits for ever.
        say: prints a line of the links.

    Raises:
        ConfigError: the page's libraries are missing, or a setting is out of its range.
    """

    slow = True  # other slots are decoded while it is waited for

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8722,
        url: str = "",
        title: str = "Talk to the model",
        guidelines: str = GUIDELINES,
        scale: int = 7,
        lease: float | None = None,
        timeout: float | None = None,
        say: Callable[[str], Any] = print,
    ) -> None:
        require_web()
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"a web user's timeout must be above 0 seconds, got {timeout!r}")
        self.store = store or STORE
        self.address = Address(host, port, url)
        # One at a time: what somebody held beside it would wait although others are free.
        self.settings = PageSettings(title=title, guidelines=guidelines, scale=scale, url=url, held=1, waiting=WAITING)
        self.queue = QueueSettings(lease_seconds=min(LEASE, (timeout or LEASE * 2) / 2) if lease is None else lease)
        self.timeout = timeout
        self._say = say
        self._lock = threading.Lock()
        self._open: ExitStack | None = None
        self._page: Page | None = None
        # Of each conversation that goes on, as far as it has come, the person in it; of equal ones several.
        self._people: dict[Talk, list[str]] = {}

    @property
    def page(self) -> Page:
        """The page, served from now on.

        Raises:
            ConfigError: nothing can listen there.
        """
        with self._lock:
            if self._page is None:
                stack = ExitStack()
                served = serving(self.store, queue=self.queue, page=self.settings, address=self.address, offered=())
                try:
                    self._page = stack.enter_context(served)
                except ConfigError as error:
                    raise ConfigError(
                        f"{error}. Several environments share one page where they are given one user, user = WebUser(...)"
                    ) from error
                self._open = stack
                _withdraw_unanswered(self._page.store)
                for line in self._page.lines():
                    self._say(line)
            return self._page

    def __deepcopy__(self, memo: dict[int, Any]) -> WebUser:
        """Itself: copies of an environment share the page."""
        return self

    def close(self) -> None:
        """Stop serving the page; all answers are in the store."""
        with self._lock:
            if self._open is not None:
                self._open.close()
            self._open = self._page = None

    def __call__(self, messages: Messages, rng: np.random.Generator) -> UserReply:
        """The person's next message and rating; no message ends the conversation, and so does a question that is skipped.

        Args:
            messages: the conversation; it ends with the assistant's message.
            rng: not used.

        Raises:
            ConfigError: nobody has answered in time.
        """
        answer = self._ask(messages, reply=True)
        said = answer.details.get("reply")
        if not isinstance(said, str):
            return UserReply(None, _rating(answer))
        with self._lock:
            self._people.setdefault(_talk([*messages, {"role": "user", "content": said}]), []).append(answer.rater)
        return UserReply(said, _rating(answer))

    def rate(self, messages: Messages, rng: np.random.Generator) -> float | None:
        """The person's rating of a last answer, to which nothing is replied.

        Args:
            messages: the conversation; it ends with the assistant's message.
            rng: not used.

        Raises:
            ConfigError: nobody has answered in time.
        """
        return _rating(self._ask(messages, reply=False))

    def _ask(self, messages: Messages, *, reply: bool) -> Judgement:
        page = self.page
        before = [dict(m) for m in messages[:-1]]
        query = Query(
            prompt=render_messages(before), responses=(messages[-1]["content"],), query_type="rating",
            columns={"messages": before, "reply": reply},
            id=secrets.token_hex(16),  # the same words in another conversation are another question
        )  # fmt: skip
        page.store.add_queries([query])
        with self._lock:
            people = self._people.pop(_talk(before), [])
            page.queue.offer([query.id], people.pop(0) if people else None)
            if people:
                self._people[_talk(before)] = people
        rater = WebRater(page.store, page.queue)
        found: list[Judgement] = []
        try:
            found = rater.collect(rater.submit([query]), self.timeout)
        finally:
            if (
                not found or found[0].skipped
            ):  # nobody else needs to answer: the conversation does not wait for it any more
                page.store.withdraw(query.id, reason="the conversation has ended", actor="conversation")
        if not found:
            raise ConfigError(
                f"nobody answered on the rating page within {self.timeout:g} seconds; give the user more (timeout=...)"
            )
        return found[0]


def _talk(messages: Messages) -> Talk:
    return tuple((m["role"], m["content"]) for m in messages)


def _withdraw_unanswered(store: FeedbackStore) -> None:
    """Withdraw what a program that was interrupted has asked: its conversations wait for no answer any more."""
    answered = {judgement.query_id for judgement in store.judgements()}
    for query in store.queries():
        if "reply" in query.columns and query.id not in answered:
            store.withdraw(query.id, reason="the program was interrupted", actor="conversation")


def _rating(answer: Judgement) -> float | None:
    """The first attribute's value of the one response; None where the question was skipped."""
    return next((values[0] for values in (answer.ratings or {}).values()), None)
