"""The measurement of a contender: all answer the same prompts, with the same random numbers, and are judged alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.bench.contender import Bench, Trained
from rlhf_gym.errors import RewardError
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.response_kl import response_log_ratios
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, score
from rlhf_gym.rewards.token_values import IDS, wants_token_ids
from rlhf_gym.text import distinct_2

SAMPLES = 6
"""Responses that are kept of each run, for the report."""

Floats = NDArray[np.float64]


def measure(bench: Bench, trained: Trained) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a contender on the prompts held out.

    ``reward`` is the mean of the gold reward, ``kl`` nats a response, from the distribution that responses are drawn from to
    the start model's own; ``win_rate`` compares with the start model's responses to the same prompts from the same noise, ties
    half. ``gap`` is the gain by the reward model minus the gain by gold, in standard deviations of the start model's scores.
    ``perplexity`` is per token under the start model, ``distinct_2`` the share of distinct word pairs. A metric that cannot be
    had is None.

    Args:
        bench: the run.
        trained: what the contender has made of its budget.

    Returns:
        The metrics by name, and some prompts with responses.

    Raises:
        RewardError: the gold reward failed on every prompt.
    """
    context = bench.context
    prompts = list(bench.task.held_out)
    ids = bench.ids(prompts)
    seed = context.seed(0, "evaluate")
    before = _sampled(bench, context.reference, ids, seed)
    if trained.policy is not None:
        after = before if trained.policy is context.reference else _sampled(bench, trained.policy, ids, seed)
    elif trained.respond is not None:
        after = trained.respond(prompts, seed)
    else:
        raise TypeError("a contender gave neither a policy nor a function that responds")
    texts, columns = [prompt.text for prompt in prompts], bench.columns(prompts)

    def scores(reward: Reward, generations: Sequence[Generation]) -> Floats:
        given = {**columns, IDS: [g.ids for g in generations]} if wants_token_ids(reward) else columns
        with frozen(reward):
            batch = score(reward, texts, [g.text for g in generations], given, may_skip=True)
        return np.where(batch.kept, batch.values, np.nan)

    old, new = scores(context.gold, before), scores(context.gold, after)
    kept = np.isfinite(old) & np.isfinite(new)
    if not kept.any():
        raise RewardError(f"the gold reward failed on every one of the {len(prompts)} prompts")
    metrics: dict[str, Any] = {
        "n_prompts": int(kept.sum()),
        "reward": float(new[kept].mean()),
        "reward_se": _standard_error(new[kept]),
        "win_rate": float(((new > old) + 0.5 * (new == old))[kept].mean()),
        "perplexity": _perplexity(bench, ids, after),
        "distinct_2": distinct_2([g.text for g in after]),
        "length": float(np.mean([len(g.ids) for g in after])),
        "ended": float(np.mean([g.ended for g in after])),
        "kl": trained.kl,
        "kl_se": None,
    }
    metrics |= {f"metric_{name}": _mean(scores(reward, after)) for name, reward in bench.task.metrics.items()}
    if trained.policy is not None:
        answers = [response.ids for response in after]
        kls = response_log_ratios(trained.policy, context.reference, ids, answers, context.sampling, context.limits)
        metrics |= {"kl": float(kls.mean()), "kl_se": _standard_error(kls)}
    if context.config.reward_model.enabled:
        proxy = bench.reward
        proxy_old, proxy_new = scores(proxy, before), scores(proxy, after)
        metrics |= {"proxy": _mean(proxy_new), "gap": _gap(proxy_old, proxy_new, old, new)}
    samples = [
        {"prompt": texts[i], "response": after[i].text, "reward": float(new[i]) if kept[i] else None}
        for i in range(min(SAMPLES, len(prompts)))
    ]
    return metrics, samples


def _sampled(bench: Bench, model: LanguageModel, ids: Sequence[Sequence[int]], seed: int) -> list[Generation]:
    context = bench.context
    return generate(
        model, ids, context.limits, sampling=context.sampling, stop=bench.task.stop, seed=seed,
        batch_size=context.config.sampling.batch_size,
    )  # fmt: skip


def _perplexity(bench: Bench, ids: Sequence[Sequence[int]], responses: Sequence[Generation]) -> float | None:
    context, answers = bench.context, [response.ids for response in responses]
    logs = response_log_probs(context.reference, ids, answers, Sampling(), context.limits)
    mean = -sum(float(x.double().sum()) for x in logs) / sum(len(x) for x in logs)
    return math.exp(mean) if mean < 700 else None


def _gap(proxy_old: Floats, proxy_new: Floats, gold_old: Floats, gold_new: Floats) -> float | None:
    """The over-optimisation gap (Gao et al. 2022): both rewards standardised on the start model's responses."""
    gains = []
    for old, new in ((proxy_old, proxy_new), (gold_old, gold_new)):
        deviation = float(np.nanstd(old, ddof=1)) if np.isfinite(old).sum() > 1 else 0.0
        if deviation == 0:
            return None
        gains.append((float(np.nanmean(new)) - float(np.nanmean(old))) / deviation)
    return gains[0] - gains[1]


def _mean(values: Floats) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _standard_error(values: Floats) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
