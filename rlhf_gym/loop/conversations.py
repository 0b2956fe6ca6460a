"""Runs whose task is a conversation: its environment gives the rewards, for training and for the evaluation alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from rlhf_gym.agents.common.collect_turns import collect_conversations
from rlhf_gym.agents.common.forward import fill_reference, rollout_log_probs
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.envs.text_vec_env import TextVecEnv, make_conversation_env
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.intervals import wilson_interval
from rlhf_gym.loop.whole_files import write_json
from rlhf_gym.text import distinct_2


def talks_of(context: RunContext, environments: int) -> TextVecEnv:
    """The environments of a run whose task is a conversation.

    Args:
        context: the run.
        environments: their number.
    """
    return make_conversation_env(environments, task=context.task, tokenizer=context.reference.tokenizer)


def evaluate_conversations(context: RunContext, number: int) -> None:
    """Write ``round-N/evaluation.json``, and the same as ``evaluation.json`` at the top; see :func:`~.evaluate.evaluate`.

    Both models play ``evaluation.prompts`` episodes of the same seeds, which training never uses, with the same random numbers.
    The scores, ``gold_*`` and ``proxy_*`` alike, are the environment's sums of rewards over an episode; KL, length and
    perplexity are of the policy's own tokens in all turns of one.

    Args:
        context: the run.
        number: the round, from 1.
    """
    wanted, policy = context.config.evaluation.prompts, context.policy(number)
    with context.progress.stage(f"round {number} evaluation", 2 * wanted) as bar:
        before = _play(context, context.reference, wanted)
        bar.update(wanted)
        after = _play(context, policy, wanted)
        bar.update(2 * wanted)
        tokens = context.config.agent.settings["tokens_per_batch"]
        sampled = _as_policy(context, policy, context.sampling)
        fill_reference(sampled, context.reference, after, tokens)
        kls = after.kl.sum(1).numpy()
        plain = _as_policy(context, context.reference, Sampling())
        perplexity = [
            _perplexity(rollout, rollout_log_probs(plain, context.reference, rollout, tokens))
            for rollout in (before, after)
        ]
    scores = [np.array([e.score for e in rollout.episodes]) for rollout in (before, after)]
    wins, ties = int((scores[1] > scores[0]).sum()), int((scores[1] == scores[0]).sum())
    low, high = wilson_interval(wins + ties / 2, wanted)
    difference = scores[1] - scores[0]
    metrics: dict[str, Any] = {
        "round": number, "n": wanted, "skipped": 0, "wins": wins, "ties": ties, "win_rate": (wins + ties / 2) / wanted,
        "win_rate_low": low, "win_rate_high": high, "gold_difference_se": _standard_error(difference), "kl": kls.mean(),
        "kl_se": _standard_error(kls),
    }  # fmt: skip
    for when, rollout, values, per_token in zip(("before", "after"), (before, after), scores, perplexity, strict=True):
        metrics |= {
            f"gold_{when}": values.mean(), f"proxy_{when}": values.mean(), f"perplexity_{when}": per_token,
            f"distinct_2_{when}": distinct_2([str(e.info["response"]) for e in rollout.episodes]),
            f"length_{when}": np.mean(rollout.lengths), f"ended_{when}": np.mean([e.ended for e in rollout.episodes]),
            f"turns_{when}": np.mean([len(e.turns) for e in rollout.episodes]),
        }  # fmt: skip
    pairs = [
        {
            "prompt": one.info["prompt"], "before": transcript(one), "after": transcript(other), "gold_before": one.score,
            "gold_after": other.score, "proxy_before": one.score, "proxy_after": other.score,
        }
        for one, other in zip(before.episodes, after.episodes, strict=True)
    ]  # fmt: skip
    shown = {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}
    for path in (context.run.round(number) / "evaluation.json", context.run.evaluation_file):
        write_json(path, {**shown, "pairs": pairs})


def transcript(episode: Episode) -> str:
    """A conversation after its first messages, a message a line: ``> `` stands before the environment's."""
    messages = episode.info["messages"]
    first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    marks = {"assistant": "", "user": "> "}
    return "\n".join(f"{marks.get(m['role'], m['role'] + ': ')}{m['content'].strip()}" for m in messages[first:])


def _play(context: RunContext, model: LanguageModel, episodes: int) -> Rollout:
    """Play with the same seeds for both models and all rounds: two equal models play equal episodes."""
    slots = math.gcd(episodes, context.config.sampling.batch_size)
    talks = talks_of(context, slots)
    policy = _as_policy(context, model, context.sampling)
    return Rollout.of(collect_conversations(talks, policy, context.seed(0, "evaluate"), 0, episodes // slots))


def _as_policy(context: RunContext, model: LanguageModel, sampling: Sampling) -> LMPolicy:
    talks = talks_of(context, 1)
    spaces = talks.observation_space, talks.action_space
    return LMPolicy(*spaces, model, sampling, talks.rules.limits, value_network=None)


def _perplexity(rollout: Rollout, logs: Tensor) -> float:
    """Perplexity per token of the policy's under the reference, at temperature 1."""
    return math.exp(-float(logs[rollout.mask].double().mean()))


def _standard_error(values: Any) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
