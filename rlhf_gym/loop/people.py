"""People in the loop: the rating page that a run serves, who answers what, and the line that shows how far they are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf_gym.feedback.queries import Query, content_id
from rlhf_gym.loop.config import Config, PeopleConfig
from rlhf_gym.study.checks import check_questions

if TYPE_CHECKING:
    from rlhf_gym.loop.context import RunContext
    from rlhf_gym.loop.progress import Bar
    from rlhf_gym.study.leases import QueueSettings
    from rlhf_gym.web.settings import PageSettings

_PACE_OVER = 300.0  # seconds that the pace is of: whoever looks wants to know how it goes now
_SAY_EVERY = 60.0  # seconds between two lines where there is no terminal


def wanted(config: Config) -> bool:
    """True if people answer on a page at all."""
    return config.reward_model.enabled and (config.rater.name == "web" or config.people.share > 0)


def check_people(config: Config) -> None:
    """Find out before any work starts whether the page can be served.

    Raises:
        ConfigError: its libraries are missing, or a setting cannot be.
    """
    if not wanted(config):
        return
    from rlhf_gym.web.server import require_web

    require_web()
    page_settings(config.people)
    queue_settings(config)
    check_questions(config.people.check_questions)


def page_settings(config: PeopleConfig) -> PageSettings:
    """The page's settings out of a run's configuration."""
    from rlhf_gym.web.settings import PageSettings, guidelines_from

    return PageSettings(
        title=config.title, guidelines=guidelines_from(config.guidelines), text=config.text, url=config.url,
        attributes=config.attributes,
    )  # fmt: skip


def queue_settings(config: Config) -> QueueSettings:
    """The queue's settings out of a run's configuration."""
    from rlhf_gym.study.leases import QueueSettings

    people = config.people
    return QueueSettings(
        overlap=people.overlap, lease_seconds=people.lease, check_share=people.check_share,
        repeat_share=people.repeat_share, practice=people.practice, seed=config.run.seed,
    )  # fmt: skip


def for_people(query: Query, config: Config) -> bool:
    """True if people answer a query; it depends on the query and the settings only, so that a resumed run agrees."""
    if config.rater.name == "web":
        return query.round > config.people.warm_up
    return int(content_id("people", query.id), 16) < config.people.share * 2.0**128


@contextmanager
def people_page(context: RunContext) -> Iterator[RunContext]:
    """The workbench with the page's rater while the page is served, where the configuration wants one.

    The page stays up from the first round to the end, so that raters may go on while the policy is trained.

    Raises:
        ConfigError: nothing can listen at that address.
    """
    config = context.config
    if not wanted(config):
        yield context
        return
    from rlhf_gym.web.rater import WebRater
    from rlhf_gym.web.server import Address
    from rlhf_gym.web.serving import serving

    people = config.people
    with serving(
        context.run.store_file,
        queue=queue_settings(config),
        page=page_settings(people),
        address=Address(people.host, people.port, people.url),
        run=context.run.path,
        offered=(),
    ) as page:
        page.store.add_queries(check_questions(people.check_questions))
        rater = WebRater(page.store, page.queue, overlap=people.overlap)
        rater.submit([query for query in page.store.queries() if for_people(query, config)])
        for line in page.lines():
            context.progress.say(line)
        yield replace(context, people=rater)


class Turnout:
    """Shows people's progress: on the bar and, where there is no terminal, as a line now and then.

    Args:
        bar: the stage's.
        say: prints a line.
        before: queries of the stage that others have answered.
        plain: no terminal: print lines.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        bar: Bar,
        say: Callable[[str], None],
        before: int,
        *,
        plain: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bar = bar
        self._say = say
        self._before = before
        self._plain = plain
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._said = (-_SAY_EVERY, -1)

    def __call__(self, done: int, total: int) -> None:
        """``done`` of the people's ``total`` queries are answered: called when answers came, and while none come."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _PACE_OVER:
            self._seen.popleft()
        began, at_first = self._seen[0]
        pace = (done - at_first) / (now - began) * 60 if now > began else 0.0
        note = f"{pace:.1f} a minute" if pace else "waiting for people"
        self._bar.update(self._before + done, note)
        last, told = self._said
        if self._plain and done != told and (now - last >= _SAY_EVERY or done == total):
            self._said = (now, done)
            self._say(f"people have answered {done} of {total} queries ({note})")


def split(queries: Sequence[Query], config: Config) -> tuple[list[Query], list[Query]]:
    """The queries for people, and those for the other rater."""
    people = [query for query in queries if for_people(query, config)]
    chosen = {query.id for query in people}
    return people, [query for query in queries if query.id not in chosen]
