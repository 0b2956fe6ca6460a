"""Runs whose task is a conversation: whole ones are candidates, are scored by a reward model, and are evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.envs.talk_scoring import Played, score_conversations
from rlhf_gym.envs.text_vec_env import TextVecEnv, make_conversation_env
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.response_kl import ResponseKL, response_kls
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.before_after import BeforeAfter, MeasuredAnswers
from rlhf_gym.loop.best_of_reference import MOST_PROMPTS_OF_BEST, BestOfN, best_of_n
from rlhf_gym.loop.context import RunContext
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import AnyReward, Scores, as_term
from rlhf_gym.tasks.chat import shown_turns


def talks_of(context: RunContext, environments: int, reward: AnyReward | None = None, **order: Any) -> TextVecEnv:
    """The environments of a run whose task is a conversation.

    Args:
        context: the run.
        environments: their number.
        reward: scores whole conversations, in the place of the environments' rewards; None for those.
        order: ``prompt_order`` and ``difficulty_every``; without them the environment's own order.
    """
    tokenizer = context.reference.tokenizer
    return make_conversation_env(environments, task=context.task, tokenizer=tokenizer, reward=reward, **order)


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


def compare_conversations(
    context: RunContext, policy: LanguageModel, rewards: Mapping[str, AnyReward], on_progress: Callable[[int], None]
) -> BeforeAfter:
    """Have both models play episodes of the same seeds, which training never uses, with the same random numbers.

    Args:
        context: the run.
        policy: the tuned model.
        rewards: score whole conversations, by name; best-of-n chooses by ``proxy``, and is measured by ``gold``.
        on_progress: called with the number of conversations played.
    """
    wanted, seed = context.config.evaluation.prompts, context.seed(0, "evaluate")
    before = _play(context, context.reference, wanted, seed)
    on_progress(wanted)
    after = _play(context, policy, wanted, seed)
    on_progress(2 * wanted)
    tokens = context.config.agent.settings["tokens_per_batch"]
    talks = talks_of(context, 1)
    plain = talking_policy(talks, context.reference, Sampling())
    played = [[Played.of(e.info) for e in rollout.episodes] for rollout in (before, after)]
    answers = []
    for rollout, found in zip((before, after), played, strict=True):
        logs = rollout_log_probs(plain, context.reference, rollout, tokens)
        nats = [(-row[kept].double()).tolist() for row, kept in zip(logs, rollout.mask, strict=True)]
        said = [str(e.info["response"]) for e in rollout.episodes]
        turns = {"turns": [len(e.turns) for e in rollout.episodes]}
        shown = [shown_turns(one.turns) for one in found]
        answers.append(MeasuredAnswers(shown, said, nats, [e.ended for e in rollout.episodes], turns))
    return BeforeAfter(
        [str(e.info["prompt"]) for e in before.episodes], answers[0], answers[1],
        {
            f"{name}_{when}": _scores(reward, found)
            for name, reward in rewards.items()
            for when, found in zip(("before", "after"), played, strict=True)
        },
        _kls(context, policy, after.episodes, talks.rules.limits, tokens),
        _best_of_n(context, rewards["proxy"], rewards["gold"]),
    )  # fmt: skip


def _best_of_n(context: RunContext, proxy: AnyReward, gold: AnyReward) -> list[BestOfN]:
    """Best-of-n of whole conversations, in environments of their own; none where the configuration wants none."""
    wanted, size = context.config.evaluation.prompts, context.config.evaluation.best_of
    if not size:
        return []
    groups = min(wanted, MOST_PROMPTS_OF_BEST)
    # The evaluation's own conversations have the first numbers: these are others.
    rollout = _play(
        context, context.reference, groups * size, context.seed(0, "evaluate"), first_episode=wanted, group_size=size
    )
    played = [Played.of(episode.info) for episode in rollout.episodes]
    scores = [_scores(reward, played).reshape(groups, size) for reward in (proxy, gold)]
    whole = np.isfinite(scores).all(axis=(0, 2))
    return best_of_n(scores[0][whole], scores[1][whole])


def _scores(reward: AnyReward, played: Sequence[Played]) -> Scores:
    """A reward's scores of conversations, NaN where it left one out."""
    with frozen(reward):
        scored, _ = score_conversations(as_term(reward), played)
    return np.where(scored.kept, scored.values, np.nan)


def _play(
    context: RunContext, model: LanguageModel, episodes: int, seed: int, *, first_episode: int = 0, group_size: int = 1
) -> Rollout:
    """Play conversations in the task's environments; two equal models play equal ones with the same seed.

    Args:
        context: the run.
        model: talks with the environments.
        episodes: conversations.
        seed: of the environments and of the random numbers.
        first_episode: number of the first conversation.
        group_size: conversations in a row that face the same environment.
    """
    slots = math.gcd(episodes, context.config.sampling.batch_size)
    talks = talks_of(context, slots)
    policy = talking_policy(talks, model, context.sampling)
    return Rollout.of(
        collect_conversations(talks, policy, seed, first_episode, episodes // slots, group_size=group_size)
    )


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
