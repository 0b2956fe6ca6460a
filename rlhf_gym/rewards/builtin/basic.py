"""Rewards that need no library: length, repetition, format, words, exact match, readability."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.text import nearest

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case: letters and digits of any script, with inner apostrophes."""
    return WORD.findall(text.lower())


class Length:
    """How long a response is, 0 and up; or how close to a wanted length, 0 at most.

    Args:
        unit: ``"words"`` (split at white space) or ``"characters"``.
        target: None gives the length; a number gives ``-|length - target| / target``: 0 at the target, -1 for an empty
            response.

    Raises:
        ConfigError: an unknown unit, or a target that is not above 0.
    """

    name = "length"

    def __init__(self, unit: Literal["words", "characters"] = "words", target: float | None = None) -> None:
        _one_of("unit", unit, ("words", "characters"))
        if target is not None and not target > 0:
            raise ConfigError(f"length's target must be above 0, got {target}")
        self.unit, self.target = unit, target

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        lengths = [len(r.split()) if self.unit == "words" else len(r) for r in responses]
        if self.target is None:
            return [float(x) for x in lengths]
        return [-abs(x - self.target) / self.target for x in lengths]


class Repetition:
    """Share of a response's word n-grams that were there before, in [0, 1]; negate it to punish repetition.

    ``1 - distinct / all``; responses of fewer than ``n`` words score 0.

    Args:
        n: words an n-gram, at least 1.
    """

    name = "repetition"

    def __init__(self, n: int = 3) -> None:
        if n < 1:
            raise ConfigError(f"repetition's n must be at least 1, got {n}")
        self.n = n

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [self._share(words(r)) for r in responses]

    def _share(self, found: list[str]) -> float:
        grams = [tuple(found[i : i + self.n]) for i in range(len(found) - self.n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


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
    """Which share of some words occurs, 0 to 1; case ignored; whole words only, so that "art" is not in "party".

    Args:
        words: words or phrases.
        mode: ``"share"`` of them that occur, in [0, 1]; ``"any"`` or ``"all"``: 0 or 1.

    Raises:
        ConfigError: no word, one without a letter or digit, or an unknown mode.
    """

    name = "contains_words"

    def __init__(self, words: Sequence[str], mode: Literal["share", "any", "all"] = "share") -> None:
        _one_of("mode", mode, ("share", "any", "all"))
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
        if self.column not in columns:
            raise RewardError(
                f"reward 'exact_match' needs the column {self.column!r}; the data have "
                f"{', '.join(map(repr, columns)) or 'no columns'}"
            )
        scores = []
        for response, reference in zip(responses, columns[self.column], strict=True):
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


class Readability:
    """Flesch reading ease of English (Flesch 1948), -100 to 121: about 100 is very easy, 0 very hard, and an empty text.

    ``206.835 - 1.015 words / sentences - 84.6 syllables / words``, held to [-100, 121.22] (the formula has no lower end).
    Syllables are counted by groups of vowels, less a silent final e: right for nine words in ten.
    """

    name = "readability"

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        """Score a batch."""
        return [self._ease(r) for r in responses]

    def _ease(self, text: str) -> float:
        found = words(text)
        if not found:
            return 0.0
        sentences = max(1, len(re.findall(r"[.!?]+(?=\s|$)", text)))
        per_word = sum(map(syllables, found)) / len(found)
        return max(-100.0, 206.835 - 1.015 * len(found) / sentences - 84.6 * per_word)


def syllables(word: str) -> int:
    """Syllables of an English word, by groups of vowels.

    >>> [syllables(w) for w in ("film", "movie", "made", "table", "beautiful")]
    [1, 2, 1, 2, 3]
    """
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = word.endswith(("e", "es", "ed")) and not word.endswith(("le", "les", "ted", "ded", "ee", "ie", "ies"))
    return max(1, groups - silent)


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{what} must be one of {', '.join(allowed)}, got {value!r}{nearest(str(value), allowed)}")
