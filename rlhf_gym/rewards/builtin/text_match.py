"""Rewards for a response that matches: a regular expression, some words, a reference."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.needs import column_of
from rlhf_gym.rewards.builtin.text_statistics import WORD, one_of, words


class Format:
    """1 if a regular expression fits, else 0.

    Args:
        pattern: a Python regular expression; ``.`` fits line breaks too.
        whole: it must fit the whole response, white space around it apart; False looks for it anywhere.

    Raises:
        ConfigError: the pattern is not a regular expression.
    """

    name = "format"

    def __init__(self, pattern: str, whole: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise ConfigError(f"format's pattern {pattern!r} is not a regular expression: {error}") from error
        self.whole = whole

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        fits = self.pattern.fullmatch if self.whole else self.pattern.search
        return [float(fits(r.strip()) is not None) for r in responses]


class ContainsWords:
    """Share of some words that occur, 0 to 1; case ignored; whole words only, so that "art" is not in "party".

    Args:
        words: words or phrases.
        mode: ``"share"`` of them that occur, in [0, 1]; ``"any"`` or ``"all"``: 0 or 1.

    Raises:
        ConfigError: no word, one without a letter or digit, or an unknown mode.
    """

    name = "contains_words"

    def __init__(self, words: Sequence[str], mode: Literal["share", "any", "all"] = "share") -> None:
        one_of("mode", mode, ("share", "any", "all"))
        if isinstance(words, str):
            words = [words]
        self.phrases = [tuple(WORD.findall(w.lower())) for w in words]
        if not self.phrases or not all(self.phrases):
            raise ConfigError(f"contains_words needs words of letters or digits, got {list(words)}")
        self.mode = mode

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [self._score(words(r)) for r in responses]

    def _score(self, found: list[str]) -> float:
        grams = {n: {tuple(found[i : i + n]) for i in range(len(found) - n + 1)} for n in set(map(len, self.phrases))}
        present = [phrase in grams[len(phrase)] for phrase in self.phrases]
        if self.mode == "share":
            return sum(present) / len(present)
        return float(any(present) if self.mode == "any" else all(present))


class ExactMatch:
    """1 if the response is the reference (or one of several), else 0.

    Args:
        column: the data set's column with the reference: a text, a number, or a list of them.
        normalise: compare in lower case, without punctuation, articles and extra white space (as SQuAD's evaluation does).
    """

    name = "exact_match"

    def __init__(self, column: str = "reference", normalise: bool = True) -> None:
        self.column, self.normalise = column, normalise

    def __call__(self, prompts: list[str], responses: list[str], **columns: list[Any]) -> list[float]:
        """Score a batch.

        Raises:
            RewardError: the data have no such column.
        """
        scores = []
        for response, reference in zip(responses, column_of(columns, self.column, self.name), strict=True):
            options = reference if isinstance(reference, list | tuple | set) else [reference]
            scores.append(float(self._plain(response) in {self._plain(str(option)) for option in options}))
        return scores

    def _plain(self, text: str) -> str:
        text = text.strip()
        if not self.normalise:
            return text
        text = unicodedata.normalize("NFKC", text).lower()
        text = "".join(c for c in text if not unicodedata.category(c).startswith("P"))
        return " ".join(w for w in text.split() if w not in ("a", "an", "the"))
