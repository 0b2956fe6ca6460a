"""Sample completions of a rollout, token by token: text, rewards, values and advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import Tokenizer, end_ids
from rlhf_gym.tasks.chat import shown_turns

END = "⟨end⟩"
"""The token that ends a response, in a trace."""


@dataclass(frozen=True)
class Trace:
    """One response as an agent saw it.

    Attributes:
        why: the reason why it is shown: ``"first"`` of the rollout (not chosen), ``"best"`` or ``"worst"`` by score.
        prompt: the text that the model was given.
        response: the text that it generated; of a conversation all its turns, ``> `` before those of the environment.
        score: the environment's reward, before the agent's own shaping.
        kl: the k1 estimate of its KL from the reference, in nats; None for agents without a reference.
        ended: by EOS or a stop sequence, not at the length limit.
        terms: the score's parts by name.
        tokens: the text of each of the response's ``R`` tokens.
        rewards: the environment's reward of each token.
        advantages: the advantage of each token.
        kls: each token's part of ``kl``, or None.
        values: the value function before each token; None for agents without one.
        turns: the tokens of each of the policy's turns in a conversation of several; else empty.
    """

    why: str
    prompt: str
    response: str
    score: float
    kl: float | None
    ended: bool
    terms: dict[str, float]
    tokens: list[str]
    rewards: list[float]
    advantages: list[float]
    kls: list[float] | None
    values: list[float] | None
    turns: list[int] = field(default_factory=list)


def traces(agent: TokenAlgorithm, count: int = 4) -> list[Trace]:
    """Some responses of the rollout that an agent learned from last: the first ones, the best and the worst.

    Args:
        agent: after at least one iteration.
        count: number of responses, at least 1; from 3 on, the last two are the best and the worst of the others.

    Raises:
        ConfigError: nothing has been collected yet, or a count below 1.
    """
    if count < 1:
        raise ConfigError(f"count must be at least 1, got {count}")
    rollout = agent.rollout
    if rollout is None:
        raise ConfigError("there are no completions before the first iteration; call learn() first")
    policy = agent.policy
    has_values = policy.value_head is not None
    tokenizer = policy.language_model.tokenizer
    return [_trace(rollout, row, why, tokenizer, has_values) for row, why in _chosen(rollout, count)]


def _chosen(rollout: Rollout, count: int) -> list[tuple[int, str]]:
    """The rows to show, each with its reason."""
    rows = range(len(rollout.episodes))
    if count < 3 or len(rows) <= count:
        return [(row, "first") for row in rows[:count]]
    others = sorted(rows[count - 2 :], key=lambda row: rollout.episodes[row].score)
    return [(row, "first") for row in rows[: count - 2]] + [(others[-1], "best"), (others[0], "worst")]


def _trace(rollout: Rollout, row: int, why: str, tokenizer: Tokenizer, has_values: bool) -> Trace:
    episode = rollout.episodes[row]
    n = len(episode.response_ids)
    kls = rollout.kl[row, :n].tolist() if rollout.has_reference else None
    ids = episode.response_ids
    without_eos = ids[:-1] if ids[-1] in end_ids(tokenizer) else ids
    return Trace(
        why=why,
        prompt=str(episode.info.get("prompt", tokenizer.decode(episode.prompt_ids))),
        response=_shown(episode) or str(episode.info.get("response", tokenizer.decode(without_eos))),
        score=episode.score,
        kl=None if kls is None else sum(kls),
        ended=episode.ended,
        terms={name: float(value) for name, value in episode.info.get("reward_terms", {}).items()},
        tokens=token_texts(ids, tokenizer),
        rewards=rollout.rewards[row, :n].tolist(),
        advantages=rollout.advantages[row, :n].tolist(),
        kls=kls,
        values=rollout.values[row, :n].tolist() if has_values else None,
        turns=[turn.length for turn in episode.turns] if len(episode.turns) > 1 else [],
    )


def _shown(episode: Episode) -> str:
    """The turns of a conversation of several, the environment's too; empty for a single response."""
    if len(episode.turns) < 2:
        return ""
    return shown_turns(episode.info["messages"][episode.info["opening"] :])


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The text that each token adds; a character of several tokens stands at the last of them.

    Args:
        ids: ids of a response.
        tokenizer: decodes them.
    """
    texts, done, ends = [], "", end_ids(tokenizer)
    for i, token in enumerate(ids, start=1):
        if token in ends:
            texts.append(END)
            continue
        text = tokenizer.decode(list(ids[:i]))
        if text.endswith("\N{REPLACEMENT CHARACTER}") and i < len(ids):  # in the middle of a character
            texts.append("")
        elif text.startswith(done):
            texts.append(text[len(done) :])
            done = text
        else:
            texts.append(tokenizer.decode([token]))
            done = text
    return texts


def as_columns(found: Sequence[Trace]) -> tuple[list[str], list[list[Any]]]:
    """Traces as a table, without their tokens: names of columns, and rows."""
    terms = list(dict.fromkeys(name for trace in found for name in trace.terms))
    names = ["why", "prompt", "response", "score", "kl", "tokens", "ended", *terms]
    rows = [
        [t.why, t.prompt, t.response, t.score, t.kl, len(t.tokens), t.ended, *(t.terms.get(name) for name in terms)]
        for t in found
    ]
    return names, rows
