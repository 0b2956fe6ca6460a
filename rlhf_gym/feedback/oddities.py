"""What is worth saying of preferences before anything learns from them: contradictions, circles, one prompt, empty texts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from rlhf_gym.feedback.preferences import Preference

CONTRADICTORY = "prompts with contradictory preferences (a over b, and b over a)"
CIRCULAR = "prompts whose preferences go in circles (a over b over c over a)"
EMPTY = "comparisons with an empty response"
ONE_PROMPT = "comparisons that are all on one prompt: nothing says how it is on others"
NO_PROMPT = "comparisons without a prompt (where a column of a file holds it: --columns prompt=NAME)"
FEWEST_ON_ONE = 10
"""Comparisons from which on it is worth saying that all are on one prompt."""


def oddities(preferences: Iterable[Preference]) -> dict[str, int]:
    """Count what a reward model cannot agree with, or may learn by mistake; empty where there is nothing.

    All of it is learned from: raters do contradict one another. Circles are looked for among majorities, so that two raters who
    differ about a pair are a contradiction and no circle.

    Args:
        preferences: the preferences; ties say nothing of an order.

    >>> ring = [("a", "b"), ("b", "c"), ("c", "a")]
    >>> oddities(Preference("p", better, worse) for better, worse in ring)
    {'prompts whose preferences go in circles (a over b over c over a)': 1}
    """
    wins: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    found: Counter[str] = Counter()
    for p in preferences:
        found[EMPTY] += not (p.chosen.strip() and p.rejected.strip())
        found[NO_PROMPT] += not p.prompt.strip()
        if not p.tie:
            wins[p.prompt][p.chosen, p.rejected] += 1
    for of_prompt in wins.values():
        found[CONTRADICTORY] += any((b, a) in of_prompt for a, b in of_prompt)
        found[CIRCULAR] += _has_circle({(a, b) for (a, b), n in of_prompt.items() if n > of_prompt[b, a]})
    if len(wins) == 1 and not found[NO_PROMPT] and (number := wins.popitem()[1].total()) >= FEWEST_ON_ONE:
        found[ONE_PROMPT] = number
    return {
        reason: found[reason] for reason in (CONTRADICTORY, CIRCULAR, ONE_PROMPT, EMPTY, NO_PROMPT) if found[reason]
    }


def _has_circle(edges: set[tuple[str, str]]) -> bool:
    """True if following the edges leads back to where one began: then some stay when all dead ends are taken away."""
    while edges:
        starts, ends = {a for a, _ in edges}, {b for _, b in edges}
        left = {(a, b) for a, b in edges if a in ends and b in starts}
        if left == edges:
            return True
        edges = left
    return False
