"""Fluency of responses, measured against the reference's own: perplexity, repetition and distinct word pairs within its range.

A reward model that is little better than a coin pays for something else than text. What the reference writes is text, so a
response is called fluent where its perplexity and its repetition are no higher than those of the reference's responses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

TAIL = 0.025
"""Share of the reference's responses beyond either end of its range."""
MANY = 0.15
"""A measure is flagged where more than this share of the tuned responses lie beyond one end: six times the reference's own."""
REPEATED = 0.1
"""Share of a response's word pairs that may repeat, whatever the reference does: most of its short responses repeat none."""
FEWEST = 8
"""With fewer responses of the reference, its range is not known, and nothing is flagged."""


@dataclass(frozen=True)
class Measure:
    """One measure of responses before and after, with the reference's range.

    Attributes:
        name: what is measured.
        low: 2.5% of the reference's responses lie below.
        high: 2.5% lie above.
        below: share of the tuned responses below ``low``.
        above: share of them above ``high``.
    """

    name: str
    low: float
    high: float
    below: float
    above: float

    @property
    def flagged(self) -> bool:
        """True where so many responses have left the range that they are another kind of text."""
        return max(self.below, self.above) > MANY

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "flagged": self.flagged}


@dataclass(frozen=True)
class Fluency:
    """The fluency of both models' responses.

    Attributes:
        before: bool ``[n]``, the reference's responses that are fluent.
        after: bool ``[n]``, the tuned model's.
        measures: perplexity, repetition, distinct word pairs.
    """

    before: NDArray[np.bool_]
    after: NDArray[np.bool_]
    measures: tuple[Measure, ...]


def fluency(
    perplexity_before: Values, perplexity_after: Values, before: Sequence[str], after: Sequence[str]
) -> Fluency:
    """Compare the tuned model's responses with the reference's.

    A response is fluent where its perplexity and its repetition are at most the 97.5th percentile of the reference's responses
    (a repetition of :data:`REPEATED` is never too much). Low perplexity is no fault of a response; that many have it is
    flagged.

    Args:
        perplexity_before: float ``[n]``, perplexity of each of the reference's responses under the reference.
        perplexity_after: float ``[n]``, of the tuned model's, under the reference, too.
        before: ``n`` texts of the reference.
        after: ``n`` texts of the tuned model.
    """
    own_before, own_after = own_pairs(before), own_pairs(after)
    given = {
        "perplexity": (perplexity_before, perplexity_after),
        "repetition": (np.array(repetition(before)), np.array(repetition(after))),
        "distinct word pairs": (np.array(own_before), np.array(own_after)),
    }
    measures, fluent_before, fluent_after = [], np.ones(len(before), bool), np.ones(len(after), bool)
    for name, (reference, tuned) in given.items():
        low, high = np.quantile(reference, [TAIL, 1 - TAIL]) if len(reference) >= FEWEST else (-np.inf, np.inf)
        if len(reference) >= FEWEST:
            if name == "repetition":
                high = max(float(high), REPEATED)
            below, above = float((tuned < low).mean()), float((tuned > high).mean())
            measures.append(Measure(name, float(low), float(high), below, above))
        if name != "distinct word pairs":
            fluent_before &= reference <= high
            fluent_after &= tuned <= high
    return Fluency(fluent_before, fluent_after, tuple(measures))


def fluent_wins(better: NDArray[np.bool_], equal: NDArray[np.bool_], found: Fluency) -> float:
    """The number of prompts that "after" wins where fluency is a condition of winning, ties counted half.

    A fluent response beats one that is not; two fluent ones are compared by the reward; of two that are not, neither wins. Two
    equal models win half of the prompts.

    Args:
        better: bool ``[n]``, the reward prefers "after".
        equal: bool ``[n]``, it scores both alike.
        found: the fluency of the same ``n`` pairs.
    """
    both = found.before & found.after
    alone = found.after & ~found.before
    half = (both & equal) | (~found.before & ~found.after)
    return float((both & better).sum() + alone.sum() + half.sum() / 2)


def repetition(texts: Sequence[str]) -> list[float]:
    """The share of each text's word pairs that it has already had: 0 to 1.

    >>> repetition(["so good so good", "so good"])
    [0.33333333333333337, 0.0]
    """
    found = [list(pairwise(text.split())) for text in texts]
    return [1 - len(set(pairs)) / len(pairs) if pairs else 0.0 for pairs in found]


def own_pairs(texts: Sequence[str]) -> list[float]:
    """The share of each text's distinct word pairs that no other of the texts has; 1 for a text without a pair.

    It falls to 0 where a model says the same to every prompt.

    >>> own_pairs(["so good it is", "so good", ""])
    [0.6666666666666667, 0.0, 1.0]
    """
    found = [set(pairwise(text.split())) for text in texts]
    counts = Counter(pair for pairs in found for pair in pairs)
    return [sum(counts[pair] == 1 for pair in pairs) / len(pairs) if pairs else 1.0 for pairs in found]
