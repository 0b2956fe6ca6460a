"""BLEU and chrF as rewards: the same n-grams shared with a reference, of words and of characters, by one package.

``pip install rlhf-gym[metrics]``.
"""

from __future__ import annotations

from rlhf_gym.rewards.builtin.against_reference import AgainstReference
from rlhf_gym.rewards.builtin.needs import library


class Bleu(AgainstReference):
    """Sentence BLEU in [0, 1] (Papineni et al. 2002), exponentially smoothed, by the package ``sacrebleu``."""

    name = "bleu"

    def __init__(self, column: str = "reference") -> None:
        super().__init__(column)
        # effective_order: a response of fewer than four words is judged by the n-grams that it has.
        self._metric = library("sacrebleu.metrics", "sacrebleu", self.name).BLEU(effective_order=True)

    def compare(self, response: str, references: list[str]) -> float:
        """BLEU against all references.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._metric.sentence_score(response, references).score) / 100


class ChrF(AgainstReference):
    """chrF in [0, 1] (Popovic 2015), by the package ``sacrebleu``.

    Args:
        word_order: 0 is chrF, 2 is chrF++.
        column: the reference's column.
    """

    name = "chrf"

    def __init__(self, word_order: int = 0, column: str = "reference") -> None:
        super().__init__(column)
        self._metric = library("sacrebleu.metrics", "sacrebleu", self.name).CHRF(word_order=word_order)

    def compare(self, response: str, references: list[str]) -> float:
        """ChrF against the best reference.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._metric.sentence_score(response, references).score) / 100
