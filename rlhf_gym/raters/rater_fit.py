"""The maximum-likelihood fit of a simulated rater's parameters to answers, with its uncertainty and its predictions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.calibration import calibration, expected_ece
from rlhf_gym.feedback.preferences import judged_pairs
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.raters.answer_likelihood import FITTED, Answers, maximise, orders_of, probabilities
from rlhf_gym.raters.fitted import FittedRater
from rlhf_gym.reward_model.evaluation import clustered_standard_error

Array = NDArray[np.float64]

FEWEST = 20
"""Answers that a rater is fitted to, at least."""
_KNOBS = (*FITTED, "skip_rate")


def fit_rater(
    answers: Sequence[tuple[Query, Judgement]],
    rewards: Sequence[Array],
    *,
    reward_name: str = "reward",
    skips: int = 0,
    resamples: int = 100,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> FittedRater:
    """Estimate a simulated rater's parameters from answers, by maximum likelihood.

    Args:
        answers: judgements with their queries; ratings, thumbs and edits are left out and counted.
        rewards: for each the finite rewards ``[k]`` of the query's responses.
        reward_name: names the reward in the result.
        skips: skipped queries besides.
        resamples: bootstrap samples of prompts for the intervals, at least 2.
        seed: of the folds and the bootstrap.
        on_progress: called with the fits done and all.

    Raises:
        FeedbackError: too few answers that the model covers, or the reward tells no responses apart.
    """
    covered = [i for i, (query, said) in enumerate(answers) if orders_of(query, said)]
    left_out = {"answers that order no responses": len(answers) - len(covered)} if len(covered) < len(answers) else {}
    if len(covered) < FEWEST or len({answers[i][0].prompt for i in covered}) < 2:
        raise FeedbackError(
            f"a rater is fitted to at least {FEWEST} answers to pair, best or ranking queries about at least 2 prompts; got "
            f"{len(covered)} about {len({answers[i][0].prompt for i in covered})}"
            + (f" ({len(answers) - len(covered)} others order no responses)" if left_out else "")
        )
    answers, rewards = [answers[i] for i in covered], [rewards[i] for i in covered]
    if all(said.tie for _, said in answers):
        raise FeedbackError("all answers are ties: nothing says how rational the rater is")
    if max(float(np.ptp(values)) for values in rewards) == 0:
        raise FeedbackError(f"the reward {reward_name!r} scores all responses of a query alike: give another --reward")
    data, rng = Answers.of(answers, rewards), np.random.default_rng(seed)
    names = sorted(set(data.prompts))
    place = {name: i for i, name in enumerate(names)}
    cluster = torch.tensor([place[prompt] for prompt in data.prompts])
    folds = min(5, len(names))
    total, done = 1 + folds + resamples, 0

    def progress() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    best = maximise(data)
    progress()
    held, fold = np.zeros((len(data), len(FITTED))), rng.permutation(len(names)) % folds
    of_answer = torch.from_numpy(fold)[cluster]
    for number in range(folds):
        held[(of_answer == number).numpy()] = maximise(data, (of_answer != number).double(), best)
        progress()
    draws = np.zeros((resamples, len(_KNOBS)))
    for row in range(resamples):
        counts = torch.from_numpy(np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))).double()
        found = maximise(data, counts[cluster], best)
        share = rng.binomial(len(data) + skips, skips / (len(data) + skips)) / (len(data) + skips)
        draws[row] = _with_skips(found, share)
        progress()
    estimate = _with_skips(best, skips / (len(data) + skips))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    # Near the bound of a rate the likelihood is flat, and resamples stop just short of it.
    low, high = np.minimum(low, estimate), np.maximum(high, estimate)
    everything = np.concatenate(rewards)
    return FittedRater(
        knobs=dict(zip(_KNOBS, map(float, estimate), strict=True)),
        intervals={name: (float(a), float(b)) for name, a, b in zip(_KNOBS, low, high, strict=True)},
        reward=reward_name,
        reward_mean=float(everything.mean()),
        reward_std=float(everything.std()),
        n_answers=len(data),
        n_prompts=len(names),
        n_raters=len({said.rater for _, said in answers}),
        left_out=left_out,
        **_predictions(answers, rewards, data, held, best),
    )


def _with_skips(found: Array, share: float) -> Array:
    """Parameters given an answer, and the share of skips, as the rater's own: a lapse comes before a skip.

    Args:
        found: ``[6]``, the parameters :data:`FITTED`; the lapse rate is that among answers.
        share: share of queries skipped.
    """
    values = np.append(found, 0.0)
    values[FITTED.index("lapse_rate")] *= 1 - share
    values[-1] = min(share / max(1 - values[FITTED.index("lapse_rate")], 1e-9), 1.0)
    return values


def _predictions(
    answers: Sequence[tuple[Query, Judgement]], rewards: Sequence[Array], data: Answers, held: Array, best: Array
) -> dict[str, Any]:
    """How well held-out answers are predicted, as fields of :class:`FittedRater`."""
    default = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    decided = ~data.tie
    by_fitted = torch.zeros(len(data), dtype=torch.float64)
    for values in np.unique(held, axis=0):
        rows = torch.from_numpy((held == values).all(axis=1))
        given, some = probabilities(data, torch.from_numpy(values))
        by_fitted = torch.where(rows, (given / some).clamp_min(1e-12).log(), by_fitted)
    by_default = probabilities(data, default)[0].clamp_min(1e-12).log()
    by_coin = torch.where(decided, data.blind, 1.0).log()
    log_odds, verdicts, predicted = _comparisons(answers, rewards, held, best)
    bins, ece = calibration(log_odds)
    same = [(a == b) for given in verdicts.values() for i, a in enumerate(given) for b in given[:i]]
    twins = [
        predicted[key] ** 2 + (1 - predicted[key]) ** 2
        for key, given in verdicts.items()
        for _ in range(len(given) * (len(given) - 1) // 2)
    ]
    return {
        "log_likelihood": {
            "fitted": float(by_fitted[decided].mean()),
            "default": float(by_default[decided].mean()),
            "coin": float(by_coin[decided].mean()),
        },
        "gain_standard_error": clustered_standard_error(
            (by_fitted - by_coin)[decided].numpy(),
            [p for p, counts in zip(data.prompts, decided, strict=True) if counts],
        ),
        "calibration": bins,
        "ece": ece,
        "ece_floor": expected_ece(log_odds),
        "agreement": sum(same) / len(same) if same else None,
        "agreement_predicted": sum(twins) / len(twins) if twins else None,
    }


def _comparisons(
    answers: Sequence[tuple[Query, Judgement]], rewards: Sequence[Array], held: Array, best: Array
) -> tuple[Array, dict[tuple[str, int, int], list[bool]], dict[tuple[str, int, int], float]]:
    """Of every two responses that an answer orders: the held-out log-odds of the preferred one; the verdicts; P(first)."""
    log_odds: list[float] = []
    verdicts: dict[tuple[str, int, int], list[bool]] = defaultdict(list)
    predicted: dict[tuple[str, int, int], float] = {}
    for (query, said), values, parameters in zip(answers, rewards, held, strict=True):
        for better, worse, _, tie in judged_pairs(query, said):
            if tie:
                continue
            probability = _preferred(query, said, values, parameters, better, worse)
            log_odds.append(math.log(probability / (1 - probability)))
            a, b = sorted((better, worse))
            verdicts[query.id, a, b].append(better == a)
            predicted[query.id, a, b] = _preferred(query, said, values, best, a, b)
    return np.array(log_odds), verdicts, predicted


def _preferred(query: Query, said: Judgement, rewards: Array, parameters: Array, a: int, b: int) -> float:
    """P(response a is preferred to b | neither a skip nor a tie)."""
    beta, position, length, error, lapse, theta = parameters
    size, shown = len(query.responses), list(said.order_shown)
    place = {i: 1 - shown.index(i) / (size - 1) if shown else 0.5 for i in (a, b)}
    words = {i: len(query.responses[i].split()) for i in (a, b)}
    felt = {i: beta * (rewards[i] + position * place[i] + length * words[i]) for i in (a, b)}
    width = math.log(theta) if query.query_type == "pair" else 0.0
    first, second = (1 / (1 + math.exp(min(width - gap, 700.0))) for gap in (felt[a] - felt[b], felt[b] - felt[a]))
    seen = error * 0.5 + (1 - error) * first, error * 0.5 + (1 - error) * second
    early = float(place[a] > place[b]) if shown else 0.5
    chosen, other = lapse * early + (1 - lapse) * seen[0], lapse * (1 - early) + (1 - lapse) * seen[1]
    return float(min(max(chosen / (chosen + other), 1e-6), 1 - 1e-6))
