"""Stage 5: the tuned model against the reference, on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rlhf_gym.errors import RewardError
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.run_directory import write_json
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, Scores, score

SCORES = ("gold_before", "gold_after", "proxy_before", "proxy_after")


def evaluate(context: RunContext, number: int) -> None:
    """Write ``round-N/evaluation.json`` and, the same, ``evaluation.json`` at the top.

    Both models answer each held-out prompt once, with the same noise, sampled as in training. "Before" is the reference,
    "after" the policy of this round.

    ==================================  ==========================================================================
    ``win_rate``, ``_low``, ``_high``   share of prompts where the gold reward prefers "after", ties counted half;
                                        95% Wilson interval
    ``ties``                            prompts where both score the same
    ``gold_*``, ``proxy_*``             mean scores; ``gold_difference_se``: standard error of the paired difference
    ``kl``, ``kl_se``                   ``E[log pi - log pi_ref]`` over "after", nats per response
    ``perplexity_*``                    per token under the reference; a measure of fluency
    ``distinct_2_*``                    share of distinct word pairs among all; falls when responses repeat themselves or
                                        one another (Li et al. 2016)
    ``length_*``                        mean response length, tokens
    ``skipped``                         prompts without scores: a reward failed there and is set to skip failures
    ==================================  ==========================================================================

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    prompts = context.task.held_out[: context.config.evaluation.prompts]
    tokenizer = context.reference.tokenizer
    ids = [tokenizer.encode_prompt(p.text) for p in prompts]
    texts = [p.text for p in prompts]
    names = {name: None for p in prompts for name in p.columns}
    columns = {name: [p.columns.get(name) for p in prompts] for name in names}
    policy, proxy = context.policy(number), context.proxy(number)
    with context.progress.stage(f"round {number} evaluation", 2 * len(prompts)) as bar:
        before = _respond(context, context.reference, ids, lambda done: bar.update(done))
        after = _respond(context, policy, ids, lambda done: bar.update(len(prompts) + done))

        def scores(reward: Reward, generations: Sequence[Generation]) -> Scores:
            with frozen(reward):  # "before" and "after" are measured with one and the same reward
                scored = score(reward, texts, [g.text for g in generations], columns, may_skip=True)
            return np.where(scored.kept, scored.values, np.nan)

        gold = scores(context.gold, before), scores(context.gold, after)
        proxies = scores(proxy, before), scores(proxy, after)
        kls = _response_kls(context, policy, ids, after)
        perplexity = [_perplexity(context, ids, generations) for generations in (before, after)]
    every = [*gold, *proxies]
    kept = np.isfinite(every).all(axis=0)
    if not kept.any():
        raise RewardError(f"rewards failed on every one of the {len(prompts)} prompts of the evaluation")
    gold, proxies = (every[0][kept], every[1][kept]), (every[2][kept], every[3][kept])
    n, wins, ties = int(kept.sum()), int((gold[1] > gold[0]).sum()), int((gold[1] == gold[0]).sum())
    low, high = wilson_interval(wins + ties / 2, n)
    metrics: dict[str, Any] = {
        "round": number, "n": n, "skipped": len(prompts) - n,
        "wins": wins, "ties": ties, "win_rate": (wins + ties / 2) / n, "win_rate_low": low,
        "win_rate_high": high, "gold_before": gold[0].mean(), "gold_after": gold[1].mean(),
        "gold_difference_se": _standard_error(gold[1] - gold[0]), "proxy_before": proxies[0].mean(),
        "proxy_after": proxies[1].mean(), "kl": kls.mean(), "kl_se": _standard_error(kls),
        "perplexity_before": perplexity[0], "perplexity_after": perplexity[1],
        "distinct_2_before": distinct_2([g.text for g in before]),
        "distinct_2_after": distinct_2([g.text for g in after]),
        "length_before": np.mean([len(g.ids) for g in before]), "length_after": np.mean([len(g.ids) for g in after]),
        "ended_before": np.mean([g.ended for g in before]), "ended_after": np.mean([g.ended for g in after]),
    }  # fmt: skip
    pairs = [
        {
            "prompt": texts[i], "before": before[i].text, "after": after[i].text,
            **dict(zip(SCORES, (float(values[i]) if np.isfinite(values[i]) else None for values in every), strict=True)),
        }
        for i in range(len(prompts))
    ]  # fmt: skip
    plain = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
    for path in (context.run.round(number) / "evaluation.json", context.run.evaluation_file):
        write_json(path, {**plain, "pairs": pairs})


def _respond(
    context: RunContext, model: LanguageModel, ids: Sequence[Sequence[int]], on_progress: Any
) -> list[Generation]:
    """Generate with one seed for all models and rounds: two equal models give equal responses."""
    return generate(
        model, ids, context.limits, sampling=context.sampling, stop=context.task.stop, seed=context.seed(0, "evaluate"),
        batch_size=context.config.sampling.batch_size, on_progress=on_progress,
    )  # fmt: skip


def _response_kls(
    context: RunContext, policy: LanguageModel, ids: Sequence[Sequence[int]], generations: Sequence[Generation]
) -> Scores:
    """``log pi - log pi_ref`` of each response, under the distributions that tokens are drawn from."""
    responses = [g.ids for g in generations]
    logs = [
        response_log_probs(
            model,
            ids,
            responses,
            context.sampling,
            context.limits,
            tokens_per_batch=context.config.agent.settings["tokens_per_batch"],
        )
        for model in (policy, context.reference)
    ]
    return np.array([float((ours - theirs).double().sum()) for ours, theirs in zip(*logs, strict=True)])


def _perplexity(context: RunContext, ids: Sequence[Sequence[int]], generations: Sequence[Generation]) -> float:
    """Perplexity per token under the reference's full distribution: temperature 1, no top-k or top-p."""
    logs = response_log_probs(
        context.reference, ids, [g.ids for g in generations], Sampling(), context.limits,
        tokens_per_batch=context.config.agent.settings["tokens_per_batch"],
    )  # fmt: skip
    return math.exp(-sum(float(x.double().sum()) for x in logs) / sum(len(x) for x in logs))


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's (1927) confidence interval of a proportion; it holds near 0 and 1, where the normal one does not.

    Args:
        successes: number of successes; a tie counts half.
        n: number of trials, at least 1.
        z: quantile of the normal distribution; the default gives 95%.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct word bigrams over all bigrams, of all texts together; NaN if there is none.

    >>> distinct_2(["so good so good", "so good"])
    0.5
    """
    pairs = [pair for words in map(str.split, texts) for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else math.nan


def _standard_error(values: Scores) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
