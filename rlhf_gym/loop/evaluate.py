"""Stage 5: evaluates the tuned model against the reference, on held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rlhf_gym.errors import RewardError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.response_kl import response_kls
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.loop.best_of_reference import BestOfN, best_of_n
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.conversations import evaluate_conversations
from rlhf_gym.loop.fluency import Fluency, fluency, fluent_wins, repetition
from rlhf_gym.loop.intervals import standard_error, wilson_interval
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.reward_model.evaluation import judged
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, Scores, reward_name, score
from rlhf_gym.tasks.samples import Prompt, columns_of
from rlhf_gym.text import distinct_2

MOST_PROMPTS_OF_BEST = 64
"""Most prompts on which best-of-n is measured: its means are then known to an eighth of the scores' standard deviation."""


def evaluate(context: RunContext, number: int) -> None:
    """Write ``round-N/evaluation.json``, and the same as ``evaluation.json`` at the top.

    Both models answer each held-out prompt once, with the same random numbers, sampled as in training. "Before" is the
    reference, "after" the policy of this round.

    ==================================  ==========================================================================
    ``win_rate``, ``_low``, ``_high``   share of prompts where the gold reward prefers "after", ties counted half;
                                        95% Wilson interval
    ``ties``                            prompts where both responses have the same gold reward
    ``fluent_win_rate``, ...            the same, where a response has to be fluent to win
                                        (:func:`~rlhf_gym.loop.fluency.fluent_wins`)
    ``fluent_before``, ``fluent_after`` share of responses that are fluent by the reference's range
    ``fluency``                         the reference's ranges, and how many of "after" leave them
    ``judge``, ``judge_win_rate``, ...  the second judge's name, and the win rate by it; absent without one
    ``gold_*``, ``proxy_*``             mean scores; ``gold_difference_se``: standard error of the paired difference
    ``kl``, ``kl_se``                   ``E[log pi - log pi_ref]`` over "after", nats per response (k1)
    ``kl_exact``, ``kl_exact_se``       the same mean, with each token's KL summed over the vocabulary (Rao-Blackwell)
    ``perplexity_*``                    per token under the reference; a measure of fluency
    ``distinct_2_*``                    share of distinct word pairs among all; falls when responses repeat themselves or
                                        one another (Li et al. 2016)
    ``repetition_*``                    mean share of a response's word pairs that it has already had
    ``length_*``                        mean response length, tokens
    ``ended_*``                         share of responses that ended before the length limit
    ``best_of_n``                       the reference's best of n responses by the proxy, at its KL
    ``labels_agree``, ``_se``, ``_n``   share of the raters' comparisons in which gold prefers what they chose: the accuracy
                                        that a reward model would have that ranks as gold does; absent without labels
    ``skipped``                         prompts without scores: a reward failed there and is set to skip failures
    ==================================  ==========================================================================

    Without a gold reward (the task ``data``), there are neither scores nor a win rate.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    if context.task.conversation is not None:
        evaluate_conversations(context, number)
        return
    context.restore_reward_state(number)
    prompts = context.task.held_out[: context.config.evaluation.prompts]
    ids = [context.prompt_ids(p) for p in prompts]
    texts = [p.text for p in prompts]
    policy, proxy = context.policy(number), context.proxy(number)
    with context.progress.stage(f"round {number} evaluation", 2 * len(prompts)) as bar:
        before = _respond(context, context.reference, ids, lambda done: bar.update(done))
        after = _respond(context, policy, ids, lambda done: bar.update(len(prompts) + done))
        rewards = {"gold": context.gold, "proxy": proxy} if context.has_gold else {}
        if context.judge is not None:
            rewards["judge"] = context.judge
        scored = {
            f"{name}_{when}": _scores(reward, prompts, generations)
            for name, reward in rewards.items()
            for when, generations in (("before", before), ("after", after))
        }
        kls = response_kls(
            policy, context.reference, ids, [g.ids for g in after], context.sampling, context.limits,
            tokens_per_batch=context.config.agent.settings["tokens_per_batch"],
        )  # fmt: skip
        nats = [_nats(context, ids, generations) for generations in (before, after)]
        best = _best_of_n(context, proxy) if context.has_gold else []
        labels = _labels_against_gold(context, number, 2 * len(prompts)) if context.has_gold else {}
    before_texts, after_texts = ([g.text for g in generations] for generations in (before, after))
    perplexities = [np.array([math.exp(sum(one) / len(one)) for one in own]) for own in nats]
    found = fluency(perplexities[0], perplexities[1], before_texts, after_texts)
    k1, exact = np.array([kl.k1 for kl in kls]), np.array([kl.exact for kl in kls])
    metrics: dict[str, Any] = {"round": number, **compared(scored, found)}
    metrics |= {
        "kl": k1.mean(), "kl_se": standard_error(k1), "kl_exact": exact.mean(), "kl_exact_se": standard_error(exact),
        "perplexity_before": _perplexity(nats[0]), "perplexity_after": _perplexity(nats[1]),
        "distinct_2_before": distinct_2(before_texts), "distinct_2_after": distinct_2(after_texts),
        "repetition_before": np.mean(repetition(before_texts)), "repetition_after": np.mean(repetition(after_texts)),
        "length_before": np.mean([len(g.ids) for g in before]), "length_after": np.mean([len(g.ids) for g in after]),
        "ended_before": np.mean([g.ended for g in before]), "ended_after": np.mean([g.ended for g in after]),
        **labels,
    }  # fmt: skip
    pairs = [
        {
            "prompt": texts[i], "before": before[i].text, "after": after[i].text,
            **{name: float(values[i]) if np.isfinite(values[i]) else None for name, values in scored.items()},
            "perplexity_before": float(perplexities[0][i]), "perplexity_after": float(perplexities[1][i]),
            "fluent_before": bool(found.before[i]), "fluent_after": bool(found.after[i]),
        }
        for i in range(len(prompts))
    ]  # fmt: skip
    plain = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
    more = {
        "judge": None if context.judge is None else reward_name(context.judge),
        "fluency": [measure.as_json() for measure in found.measures],
        "best_of_n": [point.as_json() for point in best],
    }
    for path in (context.run.round(number) / "evaluation.json", context.run.evaluation_file):
        write_json(path, {**plain, **more, "pairs": pairs})


def _scores(reward: Reward, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Scores:
    """A reward's scores of responses, NaN where it left one out; "before" and "after" are measured with the same state."""
    texts, responses = [p.text for p in prompts], [g.text for g in generations]
    with frozen(reward):
        batch = score(reward, texts, responses, columns_of(prompts), may_skip=True)
    return np.where(batch.kept, batch.values, np.nan)


def _win_rate(name: str, wins: float, n: int) -> dict[str, float]:
    low, high = wilson_interval(wins, n)
    return {name: wins / n, f"{name}_low": low, f"{name}_high": high}


def _best_of_n(context: RunContext, proxy: Reward) -> list[BestOfN]:
    """Best-of-n on the first held-out prompts, with responses of their own; none where the configuration wants none."""
    size = context.config.evaluation.best_of
    prompts = context.task.held_out[: min(context.config.evaluation.prompts, MOST_PROMPTS_OF_BEST)]
    if not size:
        return []
    many = [prompt for prompt in prompts for _ in range(size)]
    # The evaluation's own responses have the first numbers: these are others.
    responses = generate(
        context.reference, [context.prompt_ids(p) for p in many], context.limits, sampling=context.sampling,
        stop=context.task.stop, seed=context.seed(0, "evaluate"), first_episode=context.config.evaluation.prompts,
        batch_size=context.config.sampling.batch_size,
    )  # fmt: skip
    scores = [_scores(reward, many, responses).reshape(len(prompts), size) for reward in (proxy, context.gold)]
    whole = np.isfinite(scores).all(axis=(0, 2))
    return best_of_n(scores[0][whole], scores[1][whole])


def _labels_against_gold(context: RunContext, number: int, most: int) -> dict[str, float]:
    """The agreement of the run's labels with the gold reward, on comparisons of at most ``most`` responses, drawn at random."""
    if not context.config.reward_model.enabled:
        return {}
    with FeedbackStore(context.run.store_file, read_only=True) as store:
        answers = store.answers(to_learn=True)
    preferences = [p for p in preferences_of(answers) if not p.tie and p.chosen != p.rejected]
    columns = {query.prompt: query.columns for query, _ in answers}
    rng = np.random.default_rng(context.seed(number, "evaluate"))
    chosen: list[Preference] = []
    texts: dict[tuple[str, str], None] = {}
    for place in rng.permutation(len(preferences)):
        one = preferences[place]
        more = [(one.prompt, one.chosen), (one.prompt, one.rejected)]
        if len(texts.keys() | set(more)) > most:
            break
        texts |= dict.fromkeys(more)
        chosen.append(one)
    if not chosen:
        return {}
    prompts = [Prompt(prompt, columns[prompt]) for prompt, _ in texts]
    with frozen(context.gold):
        scored = score(
            context.gold, [p.text for p in prompts], [r for _, r in texts], columns_of(prompts), may_skip=True
        )
    values = dict(zip(texts, np.where(scored.kept, scored.values, np.nan).tolist(), strict=True))
    differences = np.array([values[p.prompt, p.chosen] - values[p.prompt, p.rejected] for p in chosen])
    known = np.isfinite(differences)
    if not known.any():
        return {}
    result = judged(differences[known], [p for p, there in zip(chosen, known, strict=True) if there])
    return {
        "labels_agree": result.accuracy, "labels_agree_se": result.standard_error, "labels_agree_n": result.n_validation,
    }  # fmt: skip


def compared(scored: Mapping[str, Scores], found: Fluency) -> dict[str, Any]:
    """Win rates and mean scores of "after" against "before".

    Args:
        scored: scores by name (``gold``, ``proxy``, ``judge``, each ``_before`` and ``_after``), ``[n]`` each, NaN where a
            reward failed; without a reward there is none of its name.
        found: the fluency of the same ``n`` pairs.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    n_prompts = len(found.before)
    kept = np.isfinite(list(scored.values())).all(axis=0) if scored else np.ones(n_prompts, bool)
    if not kept.any():
        raise RewardError(f"rewards failed on every one of the {n_prompts} prompts of the evaluation")
    n, values = int(kept.sum()), {name: given[kept] for name, given in scored.items()}
    fluent = replace(found, before=found.before[kept], after=found.after[kept])
    out: dict[str, Any] = {
        "n": n, "skipped": n_prompts - n, "fluent_before": fluent.before.mean(), "fluent_after": fluent.after.mean(),
        **{name: given.mean() for name, given in values.items()},
    }  # fmt: skip
    if "gold_after" in values:
        gain = values["gold_after"] - values["gold_before"]
        better, equal = gain > 0, gain == 0
        wins, ties = int(better.sum()), int(equal.sum())
        out |= {
            "wins": wins, "ties": ties, **_win_rate("win_rate", wins + ties / 2, n),
            **_win_rate("fluent_win_rate", fluent_wins(better, equal, fluent), n), "gold_difference_se": standard_error(gain),
        }  # fmt: skip
    if "judge_after" in values:
        gain = values["judge_after"] - values["judge_before"]
        out |= _win_rate("judge_win_rate", float((gain > 0).sum() + (gain == 0).sum() / 2), n)
    return out


def _respond(
    context: RunContext, model: LanguageModel, ids: Sequence[Sequence[int]], on_progress: Any
) -> list[Generation]:
    """Generate with the same seed for both models and all rounds: two equal models give equal responses."""
    return generate(
        model, ids, context.limits, sampling=context.sampling, stop=context.task.stop, seed=context.seed(0, "evaluate"),
        batch_size=context.config.sampling.batch_size, on_progress=on_progress,
    )  # fmt: skip


def _nats(context: RunContext, ids: Sequence[Sequence[int]], generations: Sequence[Generation]) -> list[list[float]]:
    """Nats of each response's tokens under the reference's full distribution: temperature 1, no top-k or top-p."""
    logs = response_log_probs(
        context.reference, ids, [g.ids for g in generations], Sampling(), context.limits,
        tokens_per_batch=context.config.agent.settings["tokens_per_batch"],
    )  # fmt: skip
    return [(-x.double()).tolist() for x in logs]


def _perplexity(nats: Sequence[Sequence[float]]) -> float:
    """Perplexity per token, over the tokens of all responses."""
    return math.exp(sum(map(sum, nats)) / sum(map(len, nats)))
