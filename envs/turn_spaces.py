"""Spaces and actions of whole responses: texts of any script, and rows of token ids."""

from __future__ import annotations

import string
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Text

from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.response_text import GeneratedText
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.tasks import Task

CHARACTERS_A_TOKEN = 16
"""Characters that a token may take before a text is refused as too long; words of English text take 4 to 5."""

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " \n"


class AnyText(Text):
    """Texts of 0 to ``max_length`` characters of any script; samples are drawn from printable ASCII.

    A `gymnasium.spaces.Text` whose ``charset`` gives the characters of samples, not those of every text in the space: a
    character set of all of Unicode would have 1.1 million entries.

    Args:
        max_length: most characters.
        charset: characters of samples.
        seed: of the samples.
    """

    def __init__(
        self, max_length: int, *, charset: str = PRINTABLE, seed: int | np.random.Generator | None = None
    ) -> None:
        super().__init__(max_length, min_length=0, charset=charset, seed=seed)

    def contains(self, x: Any) -> bool:
        """True for a text that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnyText) and super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as Text: spaces are compared, not hashed

    @property
    def is_np_flattenable(self) -> bool:
        """False: characters outside the character set have no number."""
        return False


def longest_text(task: Task, max_characters: int | None) -> int:
    """The longest response, in characters.

    Args:
        task: the task; without ``max_characters``, its ``max_new_tokens`` gives the limit, 16 characters a token.
        max_characters: the limit, if one is given.

    Raises:
        ConfigError: ``max_characters`` is below 1.
    """
    if max_characters is not None and max_characters < 1:
        raise ConfigError(f"max_characters must be at least 1, got {max_characters}")
    return max_characters or CHARACTERS_A_TOKEN * task.max_new_tokens


def as_text_action(action: Any, max_characters: int) -> str:
    """An action, if it is a text of the action space.

    Args:
        action: as the environment got it.
        max_characters: the longest text allowed.

    Raises:
        InvalidAction: the action is not a text, or too long.
    """
    if not isinstance(action, str):
        raise gym.error.InvalidAction(f"expected the response as a text, got {type(action).__name__}")
    if len(action) > max_characters:
        raise gym.error.InvalidAction(
            f"the response has {len(action)} characters, more than the {max_characters} of the action space; shorten it, or "
            "raise max_characters"
        )
    return str(action)


def with_tokens(action: Any, text: str) -> str:
    """The text read from an action; it knows its tokens where the action does.

    Args:
        action: as the environment got it.
        text: the action, or its beginning.
    """
    return action.shortened(text) if isinstance(action, GeneratedText) else text


def as_ids_action(action: Any, limit: int, tokenizer: Tokenizer) -> list[int]:
    """An action as token ids; a row shorter than the limit gets an EOS at its end.

    Args:
        action: as the environment got it, ``[1..limit]``.
        limit: the most ids of a response.
        tokenizer: the environment's.

    Raises:
        InvalidAction: not a row of whole numbers, too long, or an id outside the vocabulary.
    """
    given = np.asarray(action)
    if given.ndim != 1 or not 1 <= len(given) <= limit or given.dtype.kind not in "iu":
        raise gym.error.InvalidAction(
            f"expected a row of 1 to {limit} token ids, got {given.dtype} of shape {given.shape}"
        )
    wrong = (given < 0) | (given >= tokenizer.vocab_size)
    if wrong.any():
        raise gym.error.InvalidAction(
            f"{int(given[np.argmax(wrong)])} is not a token id; expected 0..{tokenizer.vocab_size - 1}"
        )
    ids: list[int] = given.tolist()
    return ids if len(ids) == limit else [*ids, tokenizer.eos_id]


def check_format(format: str) -> None:  # noqa: A002 - the environments' argument
    """Refuse a format that is neither texts nor token ids.

    Raises:
        ConfigError: ``format`` is neither ``"text"`` nor ``"tokens"``.
    """
    if format not in ("text", "tokens"):
        raise ConfigError(f"format must be 'text' or 'tokens', got {format!r}")
