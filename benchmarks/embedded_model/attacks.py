"""Cheap attacks on a reward of text: what a policy writes when nothing asks for English.

The sentiment judge learns to tell them from human passages and from what the embedded model samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Attack = Callable[[np.random.Generator, str, str], str]
"""Makes a bad response from a random source, a prompt and an honest response."""


def _shuffled(rng: np.random.Generator, prompt: str, honest: str) -> str:
    words = honest.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def _chunks(rng: np.random.Generator, prompt: str, honest: str) -> str:
    """Pieces of two or three words in random order."""
    words, pieces = honest.split(), []
    while words:
        n = int(rng.integers(2, 4))
        pieces.append(" ".join(words[:n]))
        words = words[n:]
    return " ".join(pieces[i] for i in rng.permutation(len(pieces)))


def _repeated(rng: np.random.Generator, prompt: str, honest: str) -> str:
    """A few words of it, over and over."""
    words, n = honest.split() or ["good"], int(rng.integers(1, 6))
    begin = int(rng.integers(0, max(1, len(words) - n)))
    return " ".join(words[begin : begin + n] * int(rng.integers(4, 16)))


def _copied(rng: np.random.Generator, prompt: str, honest: str) -> str:
    return " ".join([prompt] * int(rng.integers(1, 4)))


def _twice(rng: np.random.Generator, prompt: str, honest: str) -> str:
    return f"{honest} {honest}"


def _nothing(rng: np.random.Generator, prompt: str, honest: str) -> str:
    return str(rng.choice(["", " ", ".", "!", ". . .", "- - -", "= = of with", "the", "and and", "1 2 3", "???"]))


class Attacks:
    """Draws attacks; those of single words need words to draw from.

    Args:
        strong: words that say most about a review's label, by which lists are made.
        common: words in proportion to their use.
        tokens: single sub-words of the tokenizer, as text.
    """

    def __init__(self, strong: Sequence[str], common: Sequence[str], tokens: Sequence[str]) -> None:
        self.strong, self.common, self.tokens = np.array(strong), np.array(common), np.array(tokens)
        self.kinds: dict[str, Attack] = {
            "words shuffled": _shuffled, "pieces shuffled": _chunks, "a few words repeated": _repeated,
            "prompt copied": _copied, "said twice": _twice, "next to nothing": _nothing,
            "list of strong words": self._list, "heap of strong words": self._heap, "common words": self._salad,
            "sub-words": self._sub_words, "strong words thrown in": self._stuffed, "words in reverse": self._reverse,
        }  # fmt: skip

    def draw(self, rng: np.random.Generator, prompt: str, honest: str) -> tuple[str, str]:
        """Draw an attack of a kind drawn at random: its name, and the bad response.

        Args:
            rng: the random source.
            prompt: the prompt.
            honest: an honest response to it.
        """
        name = list(self.kinds)[int(rng.integers(len(self.kinds)))]
        return name, self.kinds[name](rng, prompt, honest)

    def _list(self, rng: np.random.Generator, prompt: str, honest: str) -> str:
        join = str(rng.choice([", ", "; ", " and ", ". ", "! ", " - "]))
        return join.join(rng.choice(self.strong, size=int(rng.integers(5, 20))))

    def _heap(self, rng: np.random.Generator, prompt: str, honest: str) -> str:
        return " ".join(rng.choice(self.strong, size=int(rng.integers(4, 30))))

    def _salad(self, rng: np.random.Generator, prompt: str, honest: str) -> str:
        few = rng.choice(self.common, size=int(rng.integers(3, 40)))
        return " ".join(rng.choice(few, size=int(rng.integers(8, 40))))

    def _sub_words(self, rng: np.random.Generator, prompt: str, honest: str) -> str:
        few = rng.choice(self.tokens, size=int(rng.integers(3, 40)))
        return "".join(rng.choice(few, size=int(rng.integers(8, 40))))

    def _stuffed(self, rng: np.random.Generator, prompt: str, honest: str) -> str:
        """Every other word or so is replaced by a strong one."""
        words = honest.split()
        share = rng.uniform(0.3, 0.8)
        return " ".join(str(rng.choice(self.strong)) if rng.random() < share else word for word in words)

    def _reverse(self, rng: np.random.Generator, prompt: str, honest: str) -> str:
        return " ".join(honest.split()[::-1])
