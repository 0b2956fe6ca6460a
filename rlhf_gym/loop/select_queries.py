"""Chooses the queries of a round that are put to raters, whoever they are (``rater.select``, ``rater.labels``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.feedback.attributes import weighted
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.lm.chat_template import Messages, prompt_messages
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.questions import BY_ENSEMBLE, highest, k_center, labels_of_rounds
from rlhf_gym.loop.whole_files import read_json, write_json
from rlhf_gym.reward_model import Features, FitConfig, RewardModel
from rlhf_gym.reward_model.head_ensemble import fit_heads, pair_probabilities
from rlhf_gym.tasks.samples import Sample

Array = NDArray[np.float64]

HEADS = 8
"""Members of the ensemble."""
SELECTED_FILE = "selected.json"


def select_queries(
    context: RunContext, number: int, queries: Sequence[Query], samples: Sequence[Sample], store: FeedbackStore
) -> list[Query]:
    """Choose a round's queries among all that its candidates make, and write the choice to ``round-N/selected.json``.

    A choice that is written stands, whatever has been answered since: a resumed run asks the same questions. Without earlier
    answers there is no ensemble, and without an earlier policy nothing is fresh: then the choice is random.

    Args:
        context: the run.
        number: the round, from 1.
        queries: all queries of the round, in order.
        samples: the round's candidates; each query has the same number of them, in order.
        store: the run's store.

    Returns:
        The chosen queries in order, with their places among themselves; all of them where ``rater.labels`` is null.
    """
    settings = context.config.rater
    if settings.labels is None:
        return list(queries)
    file = context.run.round(number) / SELECTED_FILE
    if (written := read_json(file)) is None:
        wanted = labels_of_rounds(settings.labels, context.config.run.rounds, settings.schedule)[number - 1]
        by, places = _choose(context, number, queries, samples, store, wanted)
        written = {"select": by, "of": len(queries), "queries": places}
        write_json(file, written)
        instead = "" if by == settings.select else f" (there is nothing for {settings.select} to go by yet)"
        context.progress.say(
            f"round {number}: {len(places)} of {len(queries)} queries are asked, chosen by {by}{instead}"
        )
    return [replace(queries[place], index=index, id="") for index, place in enumerate(written["queries"])]


def _choose(
    context: RunContext,
    number: int,
    queries: Sequence[Query],
    samples: Sequence[Sample],
    store: FeedbackStore,
    wanted: int,
) -> tuple[str, list[int]]:
    """What the choice went by, and the places of the queries."""
    select, rng = context.config.rater.select, np.random.default_rng((context.seed(number, "label"), 1))
    if select == "fresh" and number > 1:
        return select, highest(_freshness(context, number, samples).reshape(len(queries), -1).mean(axis=1), wanted, rng)
    if select == "k_center":
        asked = store.queries()
        points = _points(context, [*queries, *asked])
        return select, k_center(points[: len(queries)], wanted, points[len(queries) :], rng)
    if select in BY_ENSEMBLE:
        answers = weighted(store.answers(to_learn=True), context.config.reward_model.settings["attribute_weights"])
        preferences = [p for p in preferences_of(answers) if p.chosen != p.rejected]
        if any(not p.tie for p in preferences):
            scores = _ensemble_scores(context, number, queries, preferences)
            return select, highest(BY_ENSEMBLE[select](pair_probabilities(scores)), wanted, rng)
    return "random", sorted(rng.choice(len(queries), wanted, replace=False).tolist())


def _freshness(context: RunContext, number: int, samples: Sequence[Sample]) -> Array:
    """The log-probability of each candidate by the policy that wrote it, less that by the policy of the round before it."""
    prompts, responses = [s.prompt_ids for s in samples], [s.response_ids for s in samples]
    now, before = (
        response_log_probs(context.policy(n), prompts, responses, context.sampling, context.limits)
        for n in (number - 1, number - 2)
    )
    return np.array([float(a.sum() - b.sum()) for a, b in zip(now, before, strict=True)])


def _features(context: RunContext) -> Features:
    """Features of texts by the frozen reference, read as the run's reward model reads them."""
    trunk = context.reference.frozen_copy()
    config = FitConfig(**context.config.reward_model.settings, seed=context.seed(0, "fit")).decided(trunk)
    model = RewardModel(trunk, readout=config.readout(trunk), seed=config.seed)
    return Features(model, precision=config.precision, tokens_per_batch=config.tokens_per_batch)


def _points(context: RunContext, queries: Sequence[Query]) -> Array:
    """A point ``[D]`` for each query: the mean of its candidates' features, each unit of standard deviation 1."""
    features = _features(context)
    rows = features.rows(_texts(queries))
    place = dict(zip(_texts(queries), rows, strict=True))
    mean, std = features.spread(rows)
    return np.stack(
        [
            ((features[[place[q.prompt, r] for r in q.responses]] - mean) / std).mean(dim=0).cpu().double().numpy()
            for q in queries
        ]
    )


def _ensemble_scores(
    context: RunContext, number: int, queries: Sequence[Query], preferences: Sequence[Preference]
) -> Array:
    """Scores ``[members, Q, k]`` of the queries' responses by heads that are fitted to all preferences so far."""
    features = _features(context)
    learned = {(p.prompt, response): p.messages for p in preferences for response in (p.chosen, p.rejected)}
    rows = features.rows({**learned, **_texts(queries)})
    place = dict(zip({**learned, **_texts(queries)}, rows, strict=True))
    _, std = features.spread(rows)
    chosen, rejected = (
        features[[place[p.prompt, response] for p, response in sides]].cpu() / std.cpu()
        for sides in ([(p, p.chosen) for p in preferences], [(p, p.rejected) for p in preferences])
    )
    heads = fit_heads(
        chosen - rejected, torch.tensor([p.tie for p in preferences]), HEADS, seed=context.seed(number, "label")
    )
    asked = [place[q.prompt, response] for q in queries for response in q.responses]
    scores = heads @ (features[asked].cpu() / std.cpu()).double().T
    return scores.reshape(len(heads), len(queries), -1).numpy()


def _texts(queries: Sequence[Query]) -> dict[tuple[str, str], Messages | None]:
    return {
        (query.prompt, response): prompt_messages(query.columns) for query in queries for response in query.responses
    }
