"""Diversity of a set of responses: metrics of many responses together, not of a single one.

Words are those of :func:`~rlhf_gym.rewards.builtin.text_statistics.words`: lower case, without punctuation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.builtin.needs import library
from rlhf_gym.rewards.builtin.text_statistics import words


def distinct_n(responses: Sequence[str], n: int) -> float:
    """Different n-grams as a share of all n-grams of all responses, 0 to 1 (Li et al. 2016); 0 where there are none.

    Args:
        responses: the texts, counted together.
        n: words in an n-gram, at least 1.

    >>> distinct_n(["a b a b"], 2)
    0.6666666666666666
    """
    counts = _grams(responses, n)
    return len(counts) / counts.total() if counts else 0.0


def unique_n(responses: Sequence[str], n: int) -> int:
    """Number of n-grams that occur exactly once in all responses together.

    Args:
        responses: the texts, counted together.
        n: words in an n-gram, at least 1.

    >>> unique_n(["a b a b"], 2)
    1
    """
    return sum(count == 1 for count in _grams(responses, n).values())


def msttr(responses: Sequence[str], segment: int = 100) -> float:
    """Mean segmental type-token ratio, 0 to 1: different words a segment of 100, averaged over whole segments (Johnson 1944).

    Unlike a plain type-token ratio it does not fall with the number of words. Where there is no whole segment, the ratio of all
    words.

    Args:
        responses: the texts, joined in this order.
        segment: words in a segment, at least 1.

    Raises:
        ConfigError: ``segment`` is below 1.
    """
    if segment < 1:
        raise ConfigError(f"msttr's segment must be at least 1, got {segment}")
    said = [word for response in responses for word in words(response)]
    parts = [said[i : i + segment] for i in range(0, len(said) - segment + 1, segment)] or [said]
    return float(np.mean([len(set(part)) / len(part) if part else 0.0 for part in parts]))


def self_bleu(responses: Sequence[str], *, most: int = 100) -> float:
    """Similarity of responses to one another, 0 to 1: mean BLEU of each against all others (Zhu et al. 2018).

    By ``sacrebleu``. Low is varied. 0 for fewer than two responses.

    Args:
        responses: the responses.
        most: of more responses only the first so many are compared: the cost grows with their square.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    metrics = library("sacrebleu.metrics", "sacrebleu", "self_bleu")
    some = list(responses)[:most]
    if len(some) < 2:
        return 0.0
    metric = metrics.BLEU(effective_order=True)
    scores = [metric.sentence_score(r, [*some[:i], *some[i + 1 :]]).score for i, r in enumerate(some)]
    return float(np.mean(scores)) / 100


def diversity(responses: Sequence[str]) -> dict[str, float]:
    """All of the above: ``distinct_1`` to ``distinct_3``, ``unique_1`` to ``unique_3``, ``msttr`` and ``self_bleu``."""
    out = {f"distinct_{n}": distinct_n(responses, n) for n in (1, 2, 3)}
    out |= {f"unique_{n}": float(unique_n(responses, n)) for n in (1, 2, 3)}
    return out | {"msttr": msttr(responses), "self_bleu": self_bleu(responses)}


def _grams(responses: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    found = [words(response) for response in responses]
    return Counter(tuple(said[i : i + n]) for said in found for i in range(len(said) - n + 1))
