"""Stage 2: raters answer queries about the candidates; each batch of judgements is stored before the next is asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from rlhf_gym.envs.talk_scoring import EnvironmentReward
from rlhf_gym.feedback import FeedbackStore, Query, QueryType
from rlhf_gym.feedback.queries import content_id
from rlhf_gym.judge import JudgeRater
from rlhf_gym.loop.candidates import read_samples
from rlhf_gym.loop.config import Config
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.progress import Bar
from rlhf_gym.loop.rater_catalogue import find_rater
from rlhf_gym.loop.select_queries import select_queries
from rlhf_gym.raters import ask
from rlhf_gym.raters.terminal import TerminalRater
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, score
from rlhf_gym.tasks.samples import Sample, columns_of

_PACE_OVER = 300.0  # seconds over which the shown pace is averaged
_SAY_EVERY = 60.0  # seconds between two lines where there is no terminal


def label(context: RunContext, number: int) -> None:
    """Put a round's queries to the rater; those with an answer in the store are not put again.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        FeedbackError: the rater cannot go on, or the store cannot be written; judgements so far are stored.
    """
    config = context.config
    samples = read_samples(context, number)
    if context.task.conversation is not None:  # what its environment paid is known of these conversations alone
        context = replace(context, gold=paid_before(context, {1, number}))
    queries = queries_of(samples, config.sampling.candidates, config.rater.query_type, number)
    with FeedbackStore(context.run.store_file) as store:
        queries = select_queries(context, number, queries, samples, store)
        if config.rater.name == "terminal":
            # One person at the keyboard: no bar in between, and the whole round at once, so that undo reaches back.
            ask(TerminalRater(store=store, seed=config.run.seed), queries, store)
        else:
            _label(context, number, queries, store)
        count = store.count(number)
    if count.skipped or count.ties:
        context.progress.say(f"{count.skipped} of {count.queries} queries were skipped, {count.ties} called a tie")


def paid_before(context: RunContext, rounds: Iterable[int]) -> EnvironmentReward:
    """What the environments paid in the candidates of some rounds, as a reward of these conversations.

    Args:
        context: a run whose task is a conversation.
        rounds: their numbers; of a round without candidates nothing is known.
    """
    there = [number for number in rounds if (context.run.round(number) / "samples.jsonl").exists()]
    played = [sample for number in there for sample in read_samples(context, number)]
    return EnvironmentReward({(str(s.prompt.columns["opening"]), s.response): s.paid for s in played})


def _label(context: RunContext, number: int, queries: list[Query], store: FeedbackStore) -> None:
    """Put their share of the queries to people, all at once; the other rater answers the rest meanwhile, batch by batch."""
    settings = context.config.rater
    people, others = split_queries(queries, context.config) if context.people else ([], queries)
    with context.progress.stage(f"round {number} labels", len(queries)) as bar:
        if context.people:
            store.add_queries(people)
            context.people.submit(people)
        if others:
            named = replace(settings, name="simulated") if settings.name == "web" else settings  # the warm-up
            rater = find_rater(named, context.gold, partial(reference_rewards, context), context.seed(number, "label"))
            # In batches, so that a simulated rater's answers, too, are stored and shown as they come.
            for begin in range(0, len(others), settings.batch_size):
                batch = others[begin : begin + settings.batch_size]
                with frozen(context.gold):  # a rater's answer does not depend on what was judged before
                    ask(rater, batch, store, on_progress=lambda done, _, begin=begin: bar.update(begin + done))  # type: ignore[misc]
            if isinstance(rater, JudgeRater):
                context.progress.say(str(rater))
        if context.people and people:
            turnout = Turnout(bar, context.progress.say, len(others), plain=not context.progress.console.is_terminal)
            ask(context.people, people, store, quota=context.config.people.quota, on_progress=turnout)


def queries_of(samples: list[Sample], candidates: int, query_type: QueryType, number: int) -> list[Query]:
    """Make one query for each prompt; for pairs, one for each two candidates; for thumbs and edits, one for each candidate.

    Args:
        samples: the round's samples, ``candidates`` for each prompt, prompt by prompt.
        candidates: responses to each prompt.
        query_type: type of all queries.
        number: the round.
    """
    writer = "reference" if number == 1 else f"round-{number - 1}"
    size = {"pair": 2, "thumbs": 1, "edit": 1}.get(query_type, candidates)
    groups = [samples[i : i + size] for i in range(0, len(samples), size)]
    return [
        Query(
            prompt=group[0].prompt.text, responses=tuple(s.response for s in group), query_type=query_type,
            columns=group[0].prompt.columns, model_versions=(writer,) * size, round=number, index=index,
        )
        for index, group in enumerate(groups)
    ]  # fmt: skip


def reference_rewards(context: RunContext, reward: Reward) -> np.ndarray:
    """Scores ``[prompts, candidates]`` of the reference's samples (round 1), to which raters are scaled.

    A prompt is left out if the reward failed on one of its candidates and is set to skip failures.

    Args:
        context: the run.
        reward: the gold reward, or what raters differ about.
    """
    samples = read_samples(context, 1)
    columns = columns_of([s.prompt for s in samples])
    texts, responses = [s.prompt.text for s in samples], [s.response for s in samples]
    with frozen(reward):
        scored = score(reward, texts, responses, columns, may_skip=True)
    shape = (-1, context.config.sampling.candidates)
    return scored.values.reshape(shape)[scored.kept.reshape(shape).all(axis=1)]


def for_people(query: Query, config: Config) -> bool:
    """True for a query that people answer. Only the query and the settings decide, so that a resumed run agrees.

    Args:
        query: any query of the run.
        config: the run's configuration.
    """
    if config.rater.name == "web":
        return query.round > config.people.warm_up
    return int(content_id("people", query.id), 16) < config.people.share * 2.0**128


def split_queries(queries: Sequence[Query], config: Config) -> tuple[list[Query], list[Query]]:
    """Split queries into those for people and those for the other rater.

    Args:
        queries: queries of any rounds.
        config: the run's configuration.
    """
    people = [query for query in queries if for_people(query, config)]
    chosen = {query.id for query in people}
    return people, [query for query in queries if query.id not in chosen]


class Turnout:
    """Shows how many queries people have answered: on the bar and, without a terminal, in a line now and then.

    Args:
        bar: the stage's bar.
        say: prints a line.
        before: queries of the stage that others have answered.
        plain: there is no terminal: print lines.
        clock: gives the time in seconds.
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
        """Update the display; called whenever answers have come, and regularly while none come.

        Args:
            done: queries that people have answered.
            total: queries that are put to people.
        """
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
