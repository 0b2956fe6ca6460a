"""The rating page that a run serves while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf_gym.loop.config import Config, PeopleConfig
from rlhf_gym.loop.label import for_people
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.raters import Rater
from rlhf_gym.study.checks import check_questions
from rlhf_gym.study.leases import QueueSettings
from rlhf_gym.web.page_rater import WebRater
from rlhf_gym.web.page_settings import PageSettings, guidelines_from
from rlhf_gym.web.server import Address, require_web
from rlhf_gym.web.serving import serving


class RunPage:
    """The page of a run, as :func:`~rlhf_gym.loop.rounds.run_loop` takes one: ``run_loop(..., page=RunPage())``."""

    def check(self, config: Config) -> None:
        """Check, before any work starts, that the page can be served.

        Raises:
            ConfigError: its libraries are missing, or a setting is out of range.
        """
        require_web()
        page_settings(config.people)
        queue_settings(config)
        check_questions(config.people.check_questions)

    @contextmanager
    def serve(self, config: Config, run: RunDirectory, say: Callable[[str], None]) -> Iterator[Rater]:
        """Serve the page until the block ends, so that raters may go on while the policy is trained.

        Args:
            config: the run's configuration.
            run: its directory, with the feedback store.
            say: prints a line: the page's address and its invitations.

        Raises:
            ConfigError: nothing can listen at that address.
        """
        people = config.people
        with serving(
            run.store_file, queue=queue_settings(config), page=page_settings(people),
            address=Address(people.host, people.port, people.url), run=run.path, offered=(),
        ) as page:  # fmt: skip
            page.store.add_queries(check_questions(people.check_questions))
            rater = WebRater(page.store, page.queue, overlap=people.overlap)
            rater.submit([query for query in page.store.queries() if for_people(query, config)])
            for line in page.lines():
                say(line)
            yield rater


def page_settings(config: PeopleConfig) -> PageSettings:
    """Make the page's settings from a run's configuration."""
    return PageSettings(
        title=config.title, guidelines=guidelines_from(config.guidelines), text=config.text, url=config.url,
        attributes=config.attributes,
    )  # fmt: skip


def queue_settings(config: Config) -> QueueSettings:
    """Make the queue's settings, by which queries are handed out, from a run's configuration."""
    people = config.people
    return QueueSettings(
        overlap=people.overlap, lease_seconds=people.lease, check_share=people.check_share,
        repeat_share=people.repeat_share, practice=people.practice, seed=config.run.seed,
    )  # fmt: skip
