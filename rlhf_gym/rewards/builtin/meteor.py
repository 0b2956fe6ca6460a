"""METEOR from NLTK as a reward. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

from typing import Any

from rlhf_gym.rewards.builtin.against_reference import AgainstReference
from rlhf_gym.rewards.builtin.needs import library
from rlhf_gym.rewards.builtin.text_statistics import words


class Meteor(AgainstReference):
    """METEOR in [0, 1] (Banerjee and Lavie 2005), by the package ``nltk``; of several references the best counts.

    Args:
        synonyms: match WordNet's synonyms too, as the published results do; NLTK must have WordNet
            (``nltk.download("wordnet")``). Without, exact words and stems are matched, and no data are needed.
        column: the reference's column.

    Raises:
        ConfigError: NLTK is not installed.
    """

    name = "meteor"

    def __init__(self, synonyms: bool = False, column: str = "reference") -> None:
        super().__init__(column)
        self._score = library("nltk.translate.meteor_score", "nltk", self.name).meteor_score
        self._wordnet: Any = library("nltk.corpus", "nltk", self.name).wordnet if synonyms else _NoSynonyms()

    def compare(self, response: str, references: list[str]) -> float:
        """METEOR against the best reference.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._score([words(r) for r in references], words(response), wordnet=self._wordnet))


class _NoSynonyms:
    """Replaces WordNet in NLTK: it has no synonyms."""

    def synsets(self, word: str) -> list[Any]:
        return []
