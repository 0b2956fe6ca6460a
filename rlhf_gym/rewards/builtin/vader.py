"""Sentiment by the package ``vaderSentiment`` as a reward. ``pip install rlhf-gym[metrics]``."""

from __future__ import annotations

from typing import Literal

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.needs import library


class Vader:
    """Sentiment in [-1, 1] by a lexicon and rules (Hutto and Gilbert 2014), by the package ``vaderSentiment``.

    Args:
        part: ``"compound"`` (-1 to 1), or the share of text that is ``"pos"``, ``"neu"`` or ``"neg"``.

    Raises:
        ConfigError: ``part`` is none of these, or the package is not installed.
    """

    name = "vader"

    def __init__(self, part: Literal["compound", "pos", "neu", "neg"] = "compound") -> None:
        if part not in ("compound", "pos", "neu", "neg"):
            raise ConfigError(f"vader's part must be compound, pos, neu or neg, got {part!r}")
        self.part = part
        self._analyser = library(
            "vaderSentiment.vaderSentiment", "vaderSentiment", self.name
        ).SentimentIntensityAnalyzer()

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [float(self._analyser.polarity_scores(r)[self.part]) for r in responses]
