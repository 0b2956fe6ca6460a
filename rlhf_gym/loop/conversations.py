"""Runs whose task is a conversation: whole ones are candidates, are scored by a reward model, and are evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.envs.talk_scoring import Played, score_conversations
from rlhf_gym.envs.text_vec_env import TextVecEnv, make_conversation_env
from rlhf_gym.errors import RewardError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.response_kl import ResponseKL, response_kls
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.intervals import standard_error, wilson_interval
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import AnyReward, Scores, as_term
from rlhf_gym.tasks.chat import shown_turns
from rlhf_gym.text import distinct_2


def talks_of(context: RunContext, environments: int, reward: AnyReward | None = None) -> TextVecEnv:
    """The environments of a run whose task is a conversation.

    Args:
        context: the run.
        environments: their number.
        reward: scores whole conversations, in the place of the environments' rewards; None for those.
    """
    tokenizer = context.reference.tokenizer
    return make_conversation_env(environments, task=context.task, tokenizer=tokenizer, reward=reward)


def whole_groups(size: int, candidates: int) -> int:
    """The most conversations, up to ``size``, that are whole groups of candidates; at least one group.

    Args:
        size: the most conversations.
        candidates: conversations of a group.
    """
    return max(1, size // candidates) * candidates


def conversation_lines(
    context: RunContext, number: int, policy: LanguageModel, numbers: range
) -> Iterator[dict[str, Any]]:
    """Play the conversations of some numbers, as lines of ``samples.jsonl``; candidates face the same environment.

    Args:
        context: the run.
        number: the round.
        policy: talks with the environments.
        numbers: a row of whole groups of candidates.
    """
    candidates = context.config.sampling.candidates
    talks = talks_of(context, len(numbers))
    agent, seed = talking_policy(talks, policy, context.sampling), context.seed(number, "sample")
    episodes = collect_conversations(talks, agent, seed, numbers[0], 1, group_size=candidates)
    for i, episode in zip(numbers, episodes, strict=True):
        played = Played.of(episode.info)
        yield {
            "prompt": played.prompt.text, "response": played.response,
            "columns": {**played.prompt.columns, "opening": f"{number}-{i // candidates}"},
            "prompt_ids": episode.prompt_ids, "response_ids": episode.response_ids, "ended": episode.ended,
            "paid": played.reward,
        }  # fmt: skip


def reference_conversations(context: RunContext, number: int, most: int) -> list[Played]:
    """Conversations of the reference that no rater has seen.

    Args:
        context: the run.
        number: the round.
        most: the most of them; as many as the round's candidates, at most.
    """
    wanted = min(most, context.config.sampling.prompts * context.config.sampling.candidates)
    rollout = _play(context, context.reference, wanted, context.seed(number, "fit"))
    return [Played.of(episode.info) for episode in rollout.episodes]


def evaluate_conversations(context: RunContext, number: int) -> None:
    """Write ``round-N/evaluation.json``, and the same as ``evaluation.json`` at the top; see :func:`~.evaluate.evaluate`.

    Both models play ``evaluation.prompts`` episodes of the same seeds, which training never uses, with the same random numbers.
    ``gold_*`` are the environment's sums of rewards over an episode; ``proxy_*`` are the reward model's scores of whole
    conversations, or the same sums without one. KL, length and perplexity are of the policy's own tokens in all turns of one.

    Args:
        context: the run.
        number: the round, from 1.

    Raises:
        RewardError: rewards failed in every conversation.
    """
    wanted, policy = context.config.evaluation.prompts, context.policy(number)
    with context.progress.stage(f"round {number} evaluation", 2 * wanted) as bar:
        seed = context.seed(0, "evaluate")
        before = _play(context, context.reference, wanted, seed)
        bar.update(wanted)
        after = _play(context, policy, wanted, seed)
        bar.update(2 * wanted)
        tokens = context.config.agent.settings["tokens_per_batch"]
        talks = talks_of(context, 1)
        kls = _kls(context, policy, after.episodes, talks.rules.limits, tokens)
        plain = talking_policy(talks, context.reference, Sampling())
        perplexity = [
            _perplexity(rollout, rollout_log_probs(plain, context.reference, rollout, tokens))
            for rollout in (before, after)
        ]
    proxy = context.proxy(number)
    played = [[Played.of(e.info) for e in rollout.episodes] for rollout in (before, after)]
    gold, by_proxy = ([_scores(reward, found) for found in played] for reward in (context.gold, proxy))
    kept = np.isfinite([*gold, *by_proxy]).all(axis=0)
    if not (n := int(kept.sum())):
        raise RewardError(f"rewards failed in every one of the {wanted} conversations of the evaluation")
    scores = [values[kept] for values in gold]
    wins, ties = int((scores[1] > scores[0]).sum()), int((scores[1] == scores[0]).sum())
    low, high = wilson_interval(wins + ties / 2, n)
    difference = scores[1] - scores[0]
    k1, exact = np.array([kl.k1 for kl in kls]), np.array([kl.exact for kl in kls])
    metrics: dict[str, Any] = {
        "round": number, "n": n, "skipped": wanted - n, "wins": wins, "ties": ties, "win_rate": (wins + ties / 2) / n,
        "win_rate_low": low, "win_rate_high": high, "gold_difference_se": standard_error(difference), "kl": k1.mean(),
        "kl_se": standard_error(k1), "kl_exact": exact.mean(), "kl_exact_se": standard_error(exact),
    }  # fmt: skip
    for when, rollout, values, proxies, per_token in zip(
        ("before", "after"), (before, after), scores, by_proxy, perplexity, strict=True
    ):
        metrics |= {
            f"gold_{when}": values.mean(), f"proxy_{when}": proxies[kept].mean(), f"perplexity_{when}": per_token,
            f"distinct_2_{when}": distinct_2([str(e.info["response"]) for e in rollout.episodes]),
            f"length_{when}": np.mean(rollout.lengths), f"ended_{when}": np.mean([e.ended for e in rollout.episodes]),
            f"turns_{when}": np.mean([len(e.turns) for e in rollout.episodes]),
        }  # fmt: skip
    pairs = [
        {
            "prompt": before.episodes[i].info["prompt"], "before": shown_turns(played[0][i].turns),
            "after": shown_turns(played[1][i].turns),
            **{
                f"{name}_{when}": float(values[side][i]) if np.isfinite(values[side][i]) else None
                for name, values in (("gold", gold), ("proxy", by_proxy))
                for side, when in enumerate(("before", "after"))
            },
        }
        for i in range(wanted)
    ]  # fmt: skip
    shown = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
    none: dict[str, Any] = {"judge": None, "fluency": [], "best_of_n": []}  # of single responses
    for path in (context.run.round(number) / "evaluation.json", context.run.evaluation_file):
        write_json(path, {**shown, **none, "pairs": pairs})


def _scores(reward: AnyReward, played: Sequence[Played]) -> Scores:
    """A reward's scores of conversations, NaN where it left one out."""
    with frozen(reward):
        scored, _ = score_conversations(as_term(reward), played)
    return np.where(scored.kept, scored.values, np.nan)


def _play(context: RunContext, model: LanguageModel, episodes: int, seed: int) -> Rollout:
    """Play conversations in the task's environments; two equal models play equal ones with the same seed.

    Args:
        context: the run.
        model: talks with the environments.
        episodes: conversations.
        seed: of the environments and of the random numbers.
    """
    slots = math.gcd(episodes, context.config.sampling.batch_size)
    talks = talks_of(context, slots)
    policy = talking_policy(talks, model, context.sampling)
    return Rollout.of(collect_conversations(talks, policy, seed, 0, episodes // slots))


def _kls(
    context: RunContext, policy: LanguageModel, episodes: Sequence[Episode], limits: Limits, tokens_per_batch: int
) -> list[ResponseKL]:
    """The KL of all turns of each episode together, each turn behind what the policy had read before it.

    Args:
        context: the run.
        policy: has generated the turns.
        episodes: the episodes.
        limits: of a turn.
        tokens_per_batch: padded tokens of one pass.
    """
    before, turns, episode_of = [], [], []
    for number, episode in enumerate(episodes):
        for row in episode.rows:
            read: list[int] = []
            for heard, said in row:
                before.append([*read, *heard])
                turns.append(said)
                episode_of.append(number)
                read += [*heard, *said]
    found = response_kls(
        policy, context.reference, before, turns, context.sampling, limits, tokens_per_batch=tokens_per_batch
    )
    sums = [[0.0, 0.0] for _ in episodes]
    for number, kl in zip(episode_of, found, strict=True):
        sums[number][0] += kl.k1
        sums[number][1] += kl.exact
    return [ResponseKL(*one) for one in sums]


def talking_policy(talks: TextVecEnv, model: LanguageModel, sampling: Sampling) -> LMPolicy:
    """A model that talks with environments and does not learn.

    Args:
        talks: the environments.
        model: the model.
        sampling: of its turns.
    """
    spaces = talks.observation_space, talks.action_space
    return LMPolicy(*spaces, model, sampling, talks.rules.limits, value_network=None)


def _perplexity(rollout: Rollout, logs: Tensor) -> float:
    """Perplexity per token of the policy's under the reference, at temperature 1."""
    return math.exp(-float(logs[rollout.mask].double().mean()))
