"""Stored trajectories, responses with the rewards that they got, as token ids and episodes: what offline RL reads."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlhf_gym.agents.common.given_pairs import EncodedPair, all_encoded, encoded_rows, is_prompt
from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.chat_template import Messages
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import encode_response
from rlhf_gym.tasks.too_long import OnTooLong, TooLong

TrajectoryRow: TypeAlias = tuple[str | Messages, str, float | Sequence[float]]
"""A prompt, a response, and its reward: of the whole response, or one number for each of its tokens."""


@dataclass(frozen=True, slots=True)
class EncodedTrajectory:
    """A response that was rewarded, ready to be learned from.

    Attributes:
        pair: prompt and response.
        rewards: of each of the response's ids.
    """

    pair: EncodedPair
    rewards: array[float]

    def episode(self, limits: Limits) -> Episode:
        """The trajectory as an episode; ``limits`` say which ids end it."""
        episode = self.pair.episode(limits)
        episode.rewards = self.rewards.tolist()
        return episode


def check_trajectory(number: int, row: Any) -> None:
    """Refuse a row that is no trajectory.

    Args:
        number: its place in the data.
        row: a triple ``(prompt, response, reward)``.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(row, EncodedTrajectory):
        return
    whole = not isinstance(row, str) and len(row) == 3 and is_prompt(row[0]) and isinstance(row[1], str)
    if not whole or not is_reward(row[2]):
        raise ConfigError(
            f"trajectories[{number}] must be a triple (prompt, response, reward): texts (or chat messages that end with the "
            f"user's, and a text), and a finite number or a list of one for each token of the response; got {row!r:.80}"
        )


def is_reward(value: object) -> bool:
    """True for a finite number, and for a list of some."""
    if isinstance(value, int | float):
        return math.isfinite(value)
    return isinstance(value, list | tuple) and len(value) > 0 and all(
        isinstance(one, int | float) and math.isfinite(one) for one in value
    )  # fmt: skip


def encoded_trajectories(
    data: Sequence[TrajectoryRow | EncodedTrajectory],
    model: LanguageModel,
    limits: Limits,
    on_too_long: OnTooLong = "refuse",
) -> tuple[list[EncodedTrajectory], list[TooLong]]:
    """The ids of each trajectory's prompt and response, as of other rows (:func:`encoded_rows`), and its tokens' rewards.

    A reward of the whole response is paid at its last token. Of a response that is cut, the last token that is left gets the
    rewards of those that are not, so that the sum stays.

    Args:
        data: rows of texts; what is encoded already stays as it is.
        model: its tokenizer encodes them, and they must fit in its context.
        limits: the environment's.
        on_too_long: what is done with a row that does not fit in the context.

    Returns:
        The trajectories, and what was done with those that were too long; empty where none was.

    Raises:
        ConfigError: a response holds a token that the limits forbid, or has another number of tokens than of rewards.
        ModelError: a row does not fit in the model's context and is to be refused, or none is left.
    """
    if (encoded := all_encoded(data, EncodedTrajectory)) is not None:
        return encoded, []
    texts: Any = data
    rows, found = encoded_rows(
        [(prompt, [response]) for prompt, response, _ in texts], model, limits, on_too_long, "trajectories"
    )
    return [
        EncodedTrajectory(pair, array("d", _token_rewards(number, texts[number], len(pair.response_ids), model)))
        for number, (pair,) in rows.items()
    ], found


def _token_rewards(number: int, row: tuple[Any, str, Any], kept: int, model: LanguageModel) -> list[float]:
    """The rewards of the tokens of a response that are kept; their sum is that of all.

    Args:
        number: the row's place in the data.
        row: prompt, response, reward.
        kept: number of the tokens that are kept, EOS included where it is.
        model: its tokenizer tells the number of tokens.
    """
    _, response, given = row
    if isinstance(given, int | float):
        return [0.0] * (kept - 1) + [float(given)]
    tokens = len(encode_response(model.tokenizer, response))
    if len(given) not in (tokens, tokens + 1):
        raise ConfigError(
            f"trajectories[{number}] has {len(given)} rewards for a response of {tokens} tokens: give one for each (and, if "
            "it is to be another than 0, one for EOS), or one for the whole response"
        )
    rewards = [float(one) for one in given] + [0.0] * (tokens + 1 - len(given))
    return [*rewards[: kept - 1], sum(rewards[kept - 1 :])]
