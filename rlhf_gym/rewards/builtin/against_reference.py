"""Metrics that compare a response with the data set's reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from rlhf_gym.errors import RewardError
from rlhf_gym.rewards.builtin.needs import column_of


class AgainstReference(ABC):
    """A metric of a response against the data set's reference; of several references the best counts.

    Args:
        column: the data set's column with the reference: a text or a list of texts.
    """

    name: str

    def __init__(self, column: str = "reference") -> None:
        self.column = column

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: the data have no such column, or no text in it.
        """
        references = references_of(columns, self.column, self.name)
        return [self.compare(r, some) for r, some in zip(responses, references, strict=True)]

    @abstractmethod
    def compare(self, response: str, references: list[str]) -> float:
        """Compute the metric of one response.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """


def references_of(columns: Mapping[str, list[Any]], column: str, reward: str) -> list[list[str]]:
    """The references of each sample, at least one.

    Args:
        columns: the data set's columns.
        column: the column with the references: each a text or a list of texts.
        reward: the reward's name, for messages.

    Raises:
        RewardError: the data have no such column, or something else than texts in it.
    """
    found = []
    for i, given in enumerate(column_of(columns, column, reward)):
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(text, str) for text in texts):
            raise RewardError(
                f"reward {reward!r} got {given!r:.80} as the reference of sample {i}, expected a text or a list of texts"
            )
        found.append(list(texts))
    return found
