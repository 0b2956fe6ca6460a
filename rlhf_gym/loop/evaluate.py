"""Stage 5: evaluates the tuned model against the reference, on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rlhf_gym.errors import RewardError
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.intervals import wilson_interval
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, Scores, score
from rlhf_gym.text import distinct_2


def evaluate(context: RunContext, number: int) -> None:
    """Write ``round-N/evaluation.json``, and the same as ``evaluation.json`` at the top.

    Both models answer each held-out prompt once, with the same random numbers, sampled as in training. "Before" is the
    reference, "after" the policy of this round.

    ==================================  ==========================================================================
    ``win_rate``, ``_low``, ``_high``   share of prompts where the gold reward prefers "after", ties counted half;
                                        95% Wilson interval
    ``ties``                            prompts where both responses have the same gold reward
    ``gold_*``, ``proxy_*``             mean scores; ``gold_difference_se``: standard error of the paired difference
    ``kl``, ``kl_se``                   ``E[log pi - log pi_ref]`` over "after", nats per response
    ``perplexity_*``                    per token under the reference; a measure of fluency
    ``distinct_2_*``                    share of distinct word pairs among all; falls when responses repeat themselves or
                                        one another (Li et al. 2016)
    ``length_*``                        mean response length, tokens
    ``ended_*``                         share of responses that ended before the length limit
    ``skipped``                         prompts without scores: a reward failed there and is set to skip failures
    ==================================  ==========================================================================

    Without a gold reward (the task ``data``), there are neither scores nor a win rate.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    context.restore_reward_state(number)
    prompts = context.task.held_out[: context.config.evaluation.prompts]
    ids = [context.prompt_ids(p) for p in prompts]
    texts = [p.text for p in prompts]
    names = {name: None for p in prompts for name in p.columns}
    columns = {name: [p.columns.get(name) for p in prompts] for name in names}
    policy, proxy = context.policy(number), context.proxy(number)
    with context.progress.stage(f"round {number} evaluation", 2 * len(prompts)) as bar:
        before = _respond(context, context.reference, ids, lambda done: bar.update(done))
        after = _respond(context, policy, ids, lambda done: bar.update(len(prompts) + done))

        def scores(reward: Reward, generations: Sequence[Generation]) -> Scores:
            with frozen(reward):  # "before" and "after" are measured with one and the same reward
                batch = score(reward, texts, [g.text for g in generations], columns, may_skip=True)
            return np.where(batch.kept, batch.values, np.nan)

        scored: dict[str, Scores] = {}
        if context.has_gold:
            scored = {
                "gold_before": scores(context.gold, before), "gold_after": scores(context.gold, after),
                "proxy_before": scores(proxy, before), "proxy_after": scores(proxy, after),
            }  # fmt: skip
        kls = _response_kls(context, policy, ids, after)
        perplexity = [_perplexity(context, ids, generations) for generations in (before, after)]
    metrics: dict[str, Any] = {"round": number, **compared(scored, len(prompts))}
    metrics |= {
        "kl": kls.mean(), "kl_se": standard_error(kls),
        "perplexity_before": perplexity[0], "perplexity_after": perplexity[1],
        "distinct_2_before": distinct_2([g.text for g in before]),
        "distinct_2_after": distinct_2([g.text for g in after]),
        "length_before": np.mean([len(g.ids) for g in before]), "length_after": np.mean([len(g.ids) for g in after]),
        "ended_before": np.mean([g.ended for g in before]), "ended_after": np.mean([g.ended for g in after]),
    }  # fmt: skip
    pairs = [
        {
            "prompt": texts[i], "before": before[i].text, "after": after[i].text,
            **{name: float(values[i]) if np.isfinite(values[i]) else None for name, values in scored.items()},
        }
        for i in range(len(prompts))
    ]  # fmt: skip
    plain = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
    for path in (context.run.round(number) / "evaluation.json", context.run.evaluation_file):
        write_json(path, {**plain, "pairs": pairs})


def compared(scored: Mapping[str, Scores], n_prompts: int) -> dict[str, Any]:
    """Win rate and mean scores of "after" against "before".

    Args:
        scored: scores by name, ``[n_prompts]`` each, NaN where a reward failed; empty where there is no reward.
        n_prompts: number of prompts.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    if not scored:
        return {"n": n_prompts, "skipped": 0}
    kept = np.isfinite(list(scored.values())).all(axis=0)
    if not kept.any():
        raise RewardError(f"rewards failed on every one of the {n_prompts} prompts of the evaluation")
    gold_before, gold_after, proxy_before, proxy_after = (values[kept] for values in scored.values())
    n, wins, ties = int(kept.sum()), int((gold_after > gold_before).sum()), int((gold_after == gold_before).sum())
    low, high = wilson_interval(wins + ties / 2, n)
    return {
        "n": n, "skipped": n_prompts - n,
        "wins": wins, "ties": ties, "win_rate": (wins + ties / 2) / n, "win_rate_low": low,
        "win_rate_high": high, "gold_before": gold_before.mean(), "gold_after": gold_after.mean(),
        "gold_difference_se": standard_error(gold_after - gold_before), "proxy_before": proxy_before.mean(),
        "proxy_after": proxy_after.mean(),
    }  # fmt: skip


def _respond(
    context: RunContext, model: LanguageModel, ids: Sequence[Sequence[int]], on_progress: Any
) -> list[Generation]:
    """Generate with the same seed for both models and all rounds: two equal models give equal responses."""
    return generate(
        model, ids, context.limits, sampling=context.sampling, stop=context.task.stop, seed=context.seed(0, "evaluate"),
        batch_size=context.config.sampling.batch_size, on_progress=on_progress,
    )  # fmt: skip


def _response_kls(
    context: RunContext, policy: LanguageModel, ids: Sequence[Sequence[int]], generations: Sequence[Generation]
) -> Scores:
    """``log pi - log pi_ref`` of each response: from the distribution that tokens are drawn from to the reference's own."""
    ours = _log_probs(context, policy, ids, generations, context.sampling)
    theirs = _log_probs(context, context.reference, ids, generations, Sampling(context.sampling.temperature))
    return np.array([float((a - b).double().sum()) for a, b in zip(ours, theirs, strict=True)])


def _perplexity(context: RunContext, ids: Sequence[Sequence[int]], generations: Sequence[Generation]) -> float:
    """Perplexity per token under the reference's full distribution: temperature 1, no top-k or top-p."""
    logs = _log_probs(context, context.reference, ids, generations, Sampling())
    return math.exp(-sum(float(x.double().sum()) for x in logs) / sum(len(x) for x in logs))


def _log_probs(
    context: RunContext,
    model: LanguageModel,
    ids: Sequence[Sequence[int]],
    generations: Sequence[Generation],
    sampling: Sampling,
) -> list[Tensor]:
    """Log-probabilities of each response's tokens, float32 ``[R]`` for a response of ``R`` tokens."""
    return response_log_probs(
        model, ids, [g.ids for g in generations], sampling, context.limits,
        tokens_per_batch=context.config.agent.settings["tokens_per_batch"],
    )  # fmt: skip


def standard_error(values: Scores) -> float:
    """The standard error of a mean; NaN for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
