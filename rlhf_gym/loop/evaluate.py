"""Stage 5: evaluates the tuned model against the reference, on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.preferences import Preference, preferences_of
from rlhf_gym.lm.decoding import Generation, generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.response_kl import response_kls
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.loop.before_after import BeforeAfter, MeasuredAnswers
from rlhf_gym.loop.best_of_reference import MOST_PROMPTS_OF_BEST, BestOfN, best_of_n
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.conversations import compare_conversations
from rlhf_gym.loop.label import paid_before
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.reward_model.evaluation import accuracy
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, Scores, reward_name, score
from rlhf_gym.tasks.samples import Prompt, columns_of


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
    ``turns_*``                         mean number of the policy's turns; of conversations alone
    ``best_of_n``                       the reference's best of n responses by the proxy, at its KL
    ``labels_agree``, ``_se``, ``_n``   share of the raters' comparisons in which gold prefers what they chose: the accuracy
                                        that a reward model would have that ranks as gold does; absent without labels
    ``skipped``                         prompts without scores: a reward failed there and is set to skip failures
    ==================================  ==========================================================================

    Of a task that is a conversation, a response is a whole conversation: both models play ``evaluation.prompts`` episodes of
    the same seeds, which training never uses. Gold is what the environment pays in all; KL, length, perplexity, repetition and
    word pairs are of the policy's own tokens in all turns.

    Without a gold reward (the task ``data``), there are neither scores nor a win rate.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    context.restore_reward_state(number)
    policy, proxy = context.policy(number), context.proxy(number)
    rewards = {"gold": context.gold, "proxy": proxy} if context.has_gold else {}
    if context.judge is not None:
        rewards["judge"] = context.judge
    talks = context.task.conversation is not None
    size = (
        context.config.evaluation.prompts if talks else len(context.task.held_out[: context.config.evaluation.prompts])
    )
    with context.progress.stage(f"round {number} evaluation", 2 * size) as bar:
        found = (compare_conversations if talks else _compare)(context, policy, rewards, bar.update)
        labels = _labels_against_gold(context, number, 2 * size) if context.has_gold else {}
    judge = None if context.judge is None else reward_name(context.judge)
    for path in (context.run.round(number) / "evaluation.json", context.run.evaluation_file):
        write_json(path, {"round": number, **labels, "judge": judge, **found.as_json()})


def _compare(
    context: RunContext, policy: LanguageModel, rewards: Mapping[str, Reward], on_progress: Callable[[int], None]
) -> BeforeAfter:
    """Have both models answer the held-out prompts; see :func:`~.conversations.compare_conversations`."""
    prompts = context.task.held_out[: context.config.evaluation.prompts]
    ids = [context.prompt_ids(p) for p in prompts]
    before = _respond(context, context.reference, ids, on_progress)
    after = _respond(context, policy, ids, lambda done: on_progress(len(prompts) + done))
    answers = []
    for generations in (before, after):
        texts = [g.text for g in generations]
        answers.append(MeasuredAnswers(texts, texts, _nats(context, ids, generations), [g.ended for g in generations]))
    return BeforeAfter(
        [p.text for p in prompts], answers[0], answers[1],
        {
            f"{name}_{when}": _scores(reward, prompts, generations)
            for name, reward in rewards.items()
            for when, generations in (("before", before), ("after", after))
        },
        response_kls(
            policy, context.reference, ids, [g.ids for g in after], context.sampling, context.limits,
            tokens_per_batch=context.config.agent.settings["tokens_per_batch"],
        ),
        _best_of_n(context, rewards["proxy"]) if "gold" in rewards else [],
    )  # fmt: skip


def _scores(reward: Reward, prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Scores:
    """A reward's scores of responses, NaN where it left one out; "before" and "after" are measured with the same state."""
    texts, responses = [p.text for p in prompts], [g.text for g in generations]
    with frozen(reward):
        batch = score(reward, texts, responses, columns_of(prompts), may_skip=True)
    return np.where(batch.kept, batch.values, np.nan)


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
    gold, preferences = context.gold, [p for p in preferences_of(answers) if not p.tie and p.chosen != p.rejected]
    columns = {query.id: query.columns for query, _ in answers}
    if context.task.conversation is not None:
        gold = paid_before(context, range(1, number + 1))
        preferences = [p for p in preferences if all(known in gold.known for known in _places(p, columns[p.query_id]))]
    rng = np.random.default_rng(context.seed(number, "evaluate"))
    chosen: list[Preference] = []
    texts: dict[tuple[str, str, str], Prompt] = {}
    for place in rng.permutation(len(preferences)):
        one = preferences[place]
        prompt = Prompt(one.prompt, columns[one.query_id])
        more = {(one.prompt, *known): prompt for known in _places(one, prompt.columns)}
        if len(texts.keys() | more.keys()) > most:
            break
        texts |= more
        chosen.append(one)
    if not chosen:
        return {}
    prompts = list(texts.values())
    with frozen(gold):
        scored = score(gold, [p.text for p in prompts], [r for _, _, r in texts], columns_of(prompts), may_skip=True)
    values = dict(zip(texts, np.where(scored.kept, scored.values, np.nan).tolist(), strict=True))
    pairs = [[values[p.prompt, *known] for known in _places(p, columns[p.query_id])] for p in chosen]
    differences = np.array([better - worse for better, worse in pairs])
    known = np.isfinite(differences)
    if not known.any():
        return {}
    compared = [p for p, there in zip(chosen, known, strict=True) if there]
    agree, error = accuracy(differences[known], compared)
    return {"labels_agree": agree, "labels_agree_se": error, "labels_agree_n": sum(not p.tie for p in compared)}


def _places(one: Preference, columns: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The chosen and the rejected text, each with the opening that conversations begin from."""
    opening = str(columns.get("opening", ""))
    return [(opening, one.chosen), (opening, one.rejected)]


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
