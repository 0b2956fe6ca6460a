"""The embedded sentiment scorer: how strongly a text praises a film, learned from people's film reviews.

Logistic regression on which words and pairs of neighbouring words occur in a text, normalised by the text's size, so that
repeating a word earns nothing. NumPy only. It is the *gold* reward behind the simulated rater.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rlhf_gym.embedded import EMBEDDED_SENTIMENT
from rlhf_gym.errors import ModelError

WORDS = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[!?]")


def features(text: str) -> set[str]:
    """The words of a text, and its pairs of adjacent words, each once."""
    words = WORDS.findall(text.lower())
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


class SentimentScorer:
    """Log-odds that a text comes from a favourable review.

    Args:
        weights: float ``[F]``, one a feature.
        bias: added to every score.
        vocabulary: the features in the weights' order.
        include_prompt: as a reward, score prompt and response together instead of the response alone.
    """

    name = "sentiment"

    def __init__(
        self, weights: NDArray[Any], bias: float, vocabulary: Sequence[str], *, include_prompt: bool = False
    ) -> None:
        self._weights = dict(zip(vocabulary, weights.astype(float).tolist(), strict=True))
        self._bias = bias
        self._include_prompt = include_prompt

    @classmethod
    def load(cls, folder: Path, *, include_prompt: bool = False) -> SentimentScorer:
        """Read ``weights.safetensors`` and ``vocabulary.json`` from a folder.

        Args:
            folder: the folder with both files.
            include_prompt: score the prompt with the response; False scores the response alone.

        Raises:
            ModelError: the folder does not hold them.
        """
        try:
            vocabulary, bias = _read_vocabulary(folder)
            weights = load_file(folder / "weights.safetensors")["weights"]
        except OSError as error:
            raise ModelError(f"cannot read the sentiment scorer in {folder}: {error}") from error
        return cls(weights, bias, vocabulary, include_prompt=include_prompt)

    @classmethod
    def embedded(cls, *, include_prompt: bool = False) -> SentimentScorer:
        """Log-odds of praise, by the scorer that the package ships: 0 says nothing either way, 2 is plain praise.

        The weights are read once a process.

        Args:
            include_prompt: as a reward, score prompt and response together instead of the response alone.
        """
        shared = _embedded()
        other = object.__new__(cls)
        other._weights, other._bias, other._include_prompt = shared._weights, shared._bias, include_prompt
        return other

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Log-odds of praise, float64 ``[n]``: 0 says nothing either way, 2 is plain praise, -2 plain panning.

        A text without a known word scores 0.
        """
        return np.array([self._score_one(text) for text in texts], dtype=np.float64)

    def _score_one(self, text: str) -> float:
        # Sorted, since a sum of floats depends on its order, and a set's order on the process.
        found = [self._weights[f] for f in sorted(features(text)) if f in self._weights]
        return sum(found) / len(found) ** 0.5 + self._bias if found else 0.0

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], /, **columns: Any) -> list[float]:
        """Score a batch."""
        texts = [p + r for p, r in zip(prompts, responses, strict=True)] if self._include_prompt else responses
        return [float(x) for x in self.score(texts)]


def _read_vocabulary(folder: Path) -> tuple[list[str], float]:
    data = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return data["features"], float(data["bias"])


@lru_cache(maxsize=1)
def _embedded() -> SentimentScorer:
    return SentimentScorer.load(EMBEDDED_SENTIMENT)
