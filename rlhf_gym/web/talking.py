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


class WebUser:
    """People on a rating page, who talk to the policy and rate its answers.

    The page is served from the first message on, and until :meth:`close`; its links are printed. Conversations of several slots
    wait at the same time; whoever is on the page gets the next answer.

    Args:
        store: the feedback store that keeps ratings and replies: a file or a URL. None: ``conversations.sqlite``.
        host: address to listen on.
        port: port; 0 takes a free one.
        url: public address where a proxy stands in front.
        title: the page's title.
        guidelines: Markdown for whoever answers.
        scale: ratings go from 1 to this.
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
        timeout: float | None = None,
        say: Callable[[str], Any] = print,
    ) -> None:
        require_web()
        if timeout is not None and not timeout > 0:
            raise ConfigError(f"a web user's timeout must be above 0 seconds, got {timeout!r}")
        self.store = store or STORE
        self.address = Address(host, port, url)
        self.settings = PageSettings(title=title, guidelines=guidelines, scale=scale, url=url)
        self.timeout = timeout
        self._say = say
        self._lock = threading.Lock()
        self._open: ExitStack | None = None
        self._page: Page | None = None

    @property
    def page(self) -> Page:
        """The page, served from now on."""
        with self._lock:
            if self._page is None:
                stack = ExitStack()
                self._page = stack.enter_context(
                    serving(self.store, page=self.settings, address=self.address, offered=())
                )
                self._open = stack
                _withdraw_unanswered(self._page.store)
                for line in self._page.lines():
                    self._say(line)
            return self._page

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
        return UserReply(said if isinstance(said, str) else None, _rating(answer))

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


def _withdraw_unanswered(store: FeedbackStore) -> None:
    """Withdraw what a program that was interrupted has asked: its conversations wait for no answer any more."""
    answered = {judgement.query_id for judgement in store.judgements()}
    for query in store.queries():
        if "reply" in query.columns and query.id not in answered:
            store.withdraw(query.id, reason="the program was interrupted", actor="conversation")


def _rating(answer: Judgement) -> float | None:
    """The first attribute's value of the one response; None where the question was skipped."""
    return next((values[0] for values in (answer.ratings or {}).values()), None)
