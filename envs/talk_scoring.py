"""Rewards of whole conversations: a reward model, or anything else that scores a conversation once it has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_gym.envs.scoring import skipped_column, token_rewards_column
from rlhf_gym.envs.vector_api import row_of
from rlhf_gym.errors import RewardError
from rlhf_gym.feedback.exchange.transcripts import ASSISTANT, further_turns, transcript
from rlhf_gym.lm.chat_template import SEVERAL_TURNS
from rlhf_gym.rewards.base import Failure, ScoredBatch, TermReward, score
from rlhf_gym.rewards.token_values import OWN_TURNS, OwnTurn, wants_token_ids
from rlhf_gym.tasks.chat import Message
from rlhf_gym.tasks.samples import Prompt, columns_of
from rlhf_gym.text import shorten


@dataclass(frozen=True)
class Played:
    """A conversation that has ended.

    Attributes:
        opening: the messages before the policy's first turn.
        turns: all further messages.
        reward: the sum of the environment's rewards; None where one of its rewards failed.
        end: why it ended.
    """

    opening: list[Message]
    turns: list[Message]
    reward: float | None
    end: str

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Played:
        """The conversation that an episode's last ``info`` tells of."""
        messages, first = list(info["messages"]), int(info["opening"])
        failed = info.get("reward_skipped")
        return cls(messages[:first], messages[first:], None if failed else info["environment_reward"], info["end"])

    @property
    def prompt(self) -> Prompt:
        """The opening as a transcript, with its messages as a column."""
        return Prompt(transcript(self.opening), {"messages": self.opening, SEVERAL_TURNS: True})

    @property
    def own_turns(self) -> list[OwnTurn]:
        """The policy's turns, each as a response to what came before it."""
        begun, out = transcript(self.opening), []
        for place, message in enumerate(self.turns):
            if message["role"] == "assistant":
                before = self.turns[:place]
                prompt = begun + (further_turns(before) + ASSISTANT if before else "")
                out.append(OwnTurn(prompt, message["content"], [*self.opening, *before]))
        return out

    @property
    def response(self) -> str:
        """All further turns, as what follows the opening's transcript."""
        return further_turns(self.turns)


def score_conversations(
    reward: TermReward, conversations: Sequence[Played]
) -> tuple[ScoredBatch, list[dict[str, Any]]]:
    """Score whole conversations by one call of the reward.

    The reward is given the opening and the further turns as transcripts, and the columns ``messages`` (the opening's),
    ``several_turns`` (True), ``turns`` (the further messages), ``environment_reward`` (what the environment paid in all) and
    ``end``.

    A reward of tokens or of steps is given each of the policy's turns as a response: the prompt (and ``messages``) is all that
    came before it, ``conversation`` the number of its conversation, and the values are those of all turns in a row.

    Args:
        reward: scores them.
        conversations: ``n`` of them.

    Returns:
        The scores, and of each conversation what ``info`` says of its score.

    Raises:
        RewardError: the reward failed.
    """
    prompts = [one.prompt for one in conversations]
    columns = {
        **columns_of(prompts),
        "turns": [one.turns for one in conversations],
        "environment_reward": [one.reward for one in conversations],
        "end": [one.end for one in conversations],
    }
    if wants_token_ids(reward):
        columns[OWN_TURNS] = [one.own_turns for one in conversations]
    texts, responses = [p.text for p in prompts], [one.response for one in conversations]
    scored = score(reward, texts, responses, columns, may_skip=True)
    infos = {"reward_terms": scored.terms, **skipped_column(scored), **token_rewards_column(scored)}
    return scored, [row_of(infos, row) for row in range(len(conversations))]


class EnvironmentReward(TermReward):
    """A reward of whole conversations: the sum of what their environment paid.

    Args:
        known: what was paid in conversations that were played before, by the column ``opening`` and the response; None where
            one of the environment's rewards failed. Others must have the column ``environment_reward``.
        name: name to report under, where what is known was paid by another reward; None: ``"environment"``.
    """

    def __init__(self, known: Mapping[tuple[str, str], float | None] | None = None, name: str | None = None) -> None:
        self.known, self.name = dict(known or {}), name or "environment"

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """What was paid in each conversation.

        Args:
            prompts: ``n`` openings.
            responses: ``n`` conversations' further turns.
            columns: ``environment_reward``, or ``opening``.

        Raises:
            RewardError: conversations that nobody has played.
        """
        paid: Sequence[float | None]
        if "environment_reward" in columns:
            paid = columns["environment_reward"]
        else:
            places = list(zip(columns.get("opening", [""] * len(prompts)), responses, strict=True))
            if missing := [
                response for place, response in zip(places, responses, strict=True) if place not in self.known
            ]:
                raise RewardError(
                    "the reward of a conversation is its environment's, which pays as it is played, and this one was not: "
                    f"{shorten(missing[0])}"
                )
            paid = [self.known[place] for place in places]
        values = np.array([0.0 if one is None else one for one in paid])
        failed = tuple(
            Failure(self.name, "one of the environment's rewards failed") if one is None else None for one in paid
        )
        return ScoredBatch(values, {self.name: values}, failed if any(failed) else None)
