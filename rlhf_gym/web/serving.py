"""A store or a run, served: opens it, makes invitations, starts the server, and takes all of it down again."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.study.people import People, Role
from rlhf_gym.study.queue import Queue
from rlhf_gym.web.page_settings import PageSettings
from rlhf_gym.web.printed_links import printed_token
from rlhf_gym.web.server import LOOPBACK, Address, PageServer, require_web

RATERS_A_LINK = 1000
"""The number of people that one printed link lets in; links for single people are made on the administration page."""


@dataclass(frozen=True)
class Page:
    """A page that is being served.

    Attributes:
        url: its address.
        store: the store whose queries it serves.
        queue: hands out the queries.
        people: raters and invitations.
        server: the running web server.
    """

    url: str
    store: FeedbackStore
    queue: Queue
    people: People
    server: PageServer

    def link(self, role: Role) -> str:
        """The link to print: the one of the last start, or a new one where that lets nobody in any more.

        Args:
            role: ``"rater"`` (a link that many may use) or ``"admin"`` (a link for one).
        """
        uses = 1 if role == "admin" else RATERS_A_LINK
        return f"{self.url}/join/{printed_token(self.store, self.people, role, uses=uses)}"

    def lines(self) -> list[str]:
        """The lines to print for whoever started the page."""
        told = [
            f"rating page at {self.url}",
            f"  raters:         {self.link('rater')}",
            f"  administrator:  {self.link('admin')}",
        ]
        address = self.server.address
        if address.host not in LOOPBACK and not self.url.startswith("https://"):
            told.append(
                "other machines can reach it, and plain HTTP hides nothing: put a TLS proxy in front, and give --url https://..."
            )
        return told


@contextmanager
def serving(
    store: str | os.PathLike[str],
    *,
    queue: QueueSettings | None = None,
    page: PageSettings | None = None,
    address: Address | None = None,
    run: Path | None = None,
    offered: Collection[str] | None = None,
) -> Iterator[Page]:
    """Serve a store while the block runs.

    Args:
        store: file or URL.
        queue: overlap, leases, check questions.
        page: settings of the page.
        address: the address to listen on.
        run: the run directory that the store belongs to, if one does: its reward models stand on the administration page.
        offered: only these queries are handed out, and what is offered later; None: all, as they come.

    Raises:
        ConfigError: the page's libraries are missing, or nothing can listen there.
        FeedbackError: the store cannot be opened.
    """
    require_web()
    from rlhf_gym.web.app import create_app
    from rlhf_gym.web.study import PATIENCE, Study

    address = address or Address()
    with FeedbackStore(store, timeout=PATIENCE) as opened:
        study = Study(opened, People(opened), Queue(opened, queue, offered=offered), page or PageSettings(), run)
        try:
            with PageServer(create_app(study, hosts=address.hosts()), address) as server:
                yield Page(server.url, opened, study.queue, study.people, server)
        finally:
            study.stop()
