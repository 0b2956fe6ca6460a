"""Episodes that have ended, scored by one call of the reward, and what ``info`` says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.token_rows import Ids, Mask
from rlhf_gym.lm.response_text import GeneratedText
from rlhf_gym.rewards.base import ScoredBatch, TermReward, score
from rlhf_gym.rewards.token_values import ENDS, IDS, wants_token_ids


@dataclass(frozen=True)
class EndedEpisodes:
    """``n`` episodes that have ended, read from their slots and not scored yet.

    Attributes:
        prompts: their prompts' texts.
        responses: their responses' texts, up to a stop sequence.
        columns: the prompts' further columns, ``n`` values each.
        ended: bool ``[n]``, True by EOS or a stop sequence, False at the length limit.
        lengths: int64 ``[n]``, the responses' lengths in tokens.
    """

    prompts: list[str]
    responses: list[str]
    columns: dict[str, list[Any]]
    ended: Mask
    lengths: Ids


def score_episodes(reward: TermReward, episodes: EndedEpisodes) -> tuple[ScoredBatch, dict[str, Any]]:
    """Score episodes with one call of the reward.

    Args:
        reward: the environment's.
        episodes: ``n`` of them.

    Returns:
        The scores, and the infos by key, lists or arrays of one value for each episode: ``prompt``, ``response``, ``ended``
        (by EOS or a stop sequence rather than at the length limit), ``response_length`` in tokens, ``reward_terms``, and
        ``reward_skipped`` and ``token_rewards`` (see :func:`skipped_column` and :func:`token_rewards_column`).
    """
    scored = score(reward, episodes.prompts, episodes.responses, episodes.columns, may_skip=True)
    return scored, {
        "prompt": episodes.prompts,
        "response": episodes.responses,
        "ended": episodes.ended,
        "response_length": episodes.lengths,
        "reward_terms": scored.terms,
        **skipped_column(scored),
        **token_rewards_column(scored),
    }


def score_texts(
    reward: TermReward, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
) -> tuple[ScoredBatch, dict[str, Any]]:
    """Score responses that the environment got as texts, in one call of the reward.

    Args:
        reward: the environment's.
        prompts: ``n`` prompts.
        responses: ``n`` responses; each may know its tokens.
        columns: of the prompts.

    Returns:
        The scores, and the infos by key: ``reward_terms``, ``reward_skipped``, and ``token_rewards`` where all responses know
        their tokens.
    """
    tokens = _token_columns(reward, responses)
    scored = score(reward, prompts, responses, {**columns, **tokens}, may_skip=True)
    infos = {"reward_terms": scored.terms, **skipped_column(scored)}
    return scored, infos | (token_rewards_column(scored) if tokens else {})


def _token_columns(reward: TermReward, responses: Sequence[str]) -> dict[str, list[Any]]:
    """The columns that rewards of tokens and of steps are given beside responses: the tokens' ids, and where each ends.

    Args:
        reward: any reward.
        responses: the responses to score.

    Returns:
        No column where the reward asks for none, or a response does not know its tokens.
    """
    if not wants_token_ids(reward):
        return {}
    known = [response for response in responses if isinstance(response, GeneratedText)]
    if len(known) < len(responses):
        return {}
    ends = {ENDS: [one.token_ends() for one in known]} if wants_token_ids(reward, "per_step") else {}
    return {IDS: [one.ids for one in known], **ends}


def skipped_column(scored: ScoredBatch) -> dict[str, list[str]]:
    """The ``info`` of rewards that may leave samples out: ``reward_skipped``, the name of the failed reward, else ``""``."""
    if scored.failures is None:
        return {}
    return {"reward_skipped": [failure.name if failure else "" for failure in scored.failures]}


def token_rewards_column(scored: ScoredBatch) -> dict[str, NDArray[np.object_]]:
    """The ``info`` of rewards for single tokens: ``token_rewards``, float64 ``[response_length]``.

    A step's reward cannot belong to earlier tokens, so the ending step's is their sum; agents of this package use each
    token's own.
    """
    if scored.tokens is None:
        return {}
    rows = np.empty(len(scored.tokens), dtype=object)
    for i, values in enumerate(scored.tokens):
        rows[i] = values
    return {"token_rewards": rows}
