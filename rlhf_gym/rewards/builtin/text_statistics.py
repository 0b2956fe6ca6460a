"""Statistics of a text as rewards: length, repetition, readability; and its words."""

from __future__ import annotations

import re
from typing import Literal

from rlhf_gym.errors import ConfigError
from rlhf_gym.text import nearest

WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text, in lower case: letters and digits of any script, with inner apostrophes."""
    return WORD.findall(text.lower())


class Length:
    """Length of a response, 0 and up; or minus its distance from a wanted length, 0 at most.

    Args:
        unit: ``"words"`` (split at white space) or ``"characters"``.
        target: None gives the length; a number gives ``-|length - target| / target``: 0 at the target, -1 for an empty
            response.

    Raises:
        ConfigError: an unknown unit, or a target that is not above 0.
    """

    name = "length"

    def __init__(self, unit: Literal["words", "characters"] = "words", target: float | None = None) -> None:
        one_of("unit", unit, ("words", "characters"))
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

    Raises:
        ConfigError: ``n`` is below 1.
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


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not allowed.

    Args:
        what: the option's name, for the message.
        value: its value.
        allowed: the values that it may have.

    Raises:
        ConfigError: the value is not allowed.
    """
    if value not in allowed:
        raise ConfigError(f"{what} must be one of {', '.join(allowed)}, got {value!r}{nearest(str(value), allowed)}")
