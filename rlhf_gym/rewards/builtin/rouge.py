"""ROUGE as a reward, by the package ``rouge-score``. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.against_reference import AgainstReference
from rlhf_gym.rewards.builtin.needs import library


class Rouge(AgainstReference):
    """ROUGE F1 in [0, 1] (Lin 2004), by the package ``rouge-score``.

    Args:
        kind: ``"rouge1"``, ``"rouge2"``, ..., ``"rougeL"`` or ``"rougeLsum"``.
        stem: compare stems instead of words (English).
        column: the reference's column.

    Raises:
        ConfigError: ``kind`` is none of these, or the package is not installed.
    """

    name = "rouge"

    def __init__(self, kind: str = "rougeL", stem: bool = False, column: str = "reference") -> None:
        super().__init__(column)
        digits = kind.removeprefix("rouge")
        if not kind.startswith("rouge") or not (
            digits in ("L", "Lsum") or (digits.isdecimal() and 1 <= int(digits) <= 9)
        ):
            raise ConfigError(f"rouge's kind must be rouge1 to rouge9, rougeL or rougeLsum, got {kind!r}")
        scorers = library("rouge_score.rouge_scorer", "rouge-score", self.name)
        self.kind, self._scorer = kind, scorers.RougeScorer([kind], use_stemmer=stem)

    def compare(self, response: str, references: list[str]) -> float:
        """F1 against the best reference.

        Args:
            response: the text to judge.
            references: the texts to compare it with, at least one.
        """
        return float(self._scorer.score_multi(references, response)[self.kind].fmeasure)
