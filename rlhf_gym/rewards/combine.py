"""Rewards made of rewards: sums, products, minima, gates and functions of a score, each term reported by name.

Wrap any reward with :func:`term`, then write a formula::

    reward = term(praise) - 0.1 * term(word_count).clip(0, 50)

Every combination is itself a reward. Its terms reach ``info`` and the logger: ``praise`` is what the reward called praise
gave, ``praise_weighted`` what it contributed to a sum.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.base import Failure, Reward, ScoredBatch, Scores, first_failures, reward_name, score
from rlhf_gym.rewards.token_values import Tokens, weighted_sum
from rlhf_gym.text import shorten

AnyReward = Reward | Callable[..., Any]
Columns = Mapping[str, Sequence[Any]]


class Combination(ABC):
    """A reward made of rewards; ``+``, ``-``, ``*`` and the methods below make further ones.

    Attributes:
        name: what it is reported under inside another combination.
        parts: the rewards it is made of.
        slow: says, or denies, that it mostly waits (:func:`~rlhf_gym.rewards.service.overlap.is_slow`); None leaves it
            to the parts.
    """

    name: str
    parts: tuple[AnyReward, ...]
    slow: bool | None = None
    __array_ufunc__ = None  # NumPy's numbers leave operators to the reward

    @abstractmethod
    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The combination's scores, and further terms to report.

        Args:
            values: for each part its scores, float64 ``[n]``.
            responses: the ``n`` responses.
        """

    def score_terms(self, prompts: list[str], responses: list[str], columns: Columns) -> ScoredBatch:
        """Score a batch and say what each term gave.

        Raises:
            RewardError: a part went wrong (it is named), or the combination's result is not finite.
        """
        terms: dict[str, Scores] = {}
        values: list[Scores] = []
        tokens: list[Tokens | None] = []
        failures: tuple[Failure | None, ...] | None = None
        for part in self.parts:
            scored = score(part, prompts, responses, columns, may_skip=True)
            own = {reward_name(part): scored.values} if isinstance(part, Combination) else {}
            _add(terms, scored.terms | own)
            values.append(scored.values)
            tokens.append(scored.tokens)
            failures = first_failures(failures, scored.failures)
        with np.errstate(all="ignore"):  # what is not finite is reported below, with the sample
            total, more = self._combine_scored(values, responses, failures)
        _add(terms, more)
        if not np.isfinite(total).all():
            i = int(np.argmin(np.isfinite(total)))
            parts = ", ".join(f"{reward_name(p)} = {v[i]:g}" for p, v in zip(self.parts, values, strict=True))
            raise RewardError(
                f"reward {self.name!r} gave {total[i]} for sample {i} ({parts}), expected a finite number. Prompt: "
                f"{shorten(prompts[i])}; response: {shorten(responses[i])}"
            )
        return ScoredBatch(total, terms, failures, self.combine_tokens(values, tokens))

    def combine_tokens(self, values: list[Scores], tokens: list[Tokens | None]) -> Tokens | None:
        """What each token is worth, where that can be said; None pays the score with the last token.

        Args:
            values: for each part its scores, float64 ``[n]``.
            tokens: for each part its tokens' values, None where it has none.
        """
        return None

    def _combine_scored(
        self, values: list[Scores], responses: list[str], failures: tuple[Failure | None, ...] | None
    ) -> tuple[Scores, dict[str, Scores]]:
        """Combine where every part has a score: nothing may be learned from the others, which are left at 0."""
        if failures is None or not any(failures):
            return self.combine(values, responses)
        n, rows = len(responses), [i for i, failure in enumerate(failures) if failure is None]
        if not rows:
            return np.zeros(n), {}
        total, more = self.combine([value[rows] for value in values], [responses[i] for i in rows])
        return _spread(total, rows, n), {name: _spread(value, rows, n) for name, value in more.items()}

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        """Score a batch."""
        values: list[float] = score(self, prompts, responses, columns).values.tolist()
        return values

    def __add__(self, other: AnyReward | float) -> Combination:
        return Sum([*_summands(self), *_summands(other)])

    def __radd__(self, other: AnyReward | float) -> Combination:
        return Sum([*_summands(other), *_summands(self)])

    def __sub__(self, other: AnyReward | float) -> Combination:
        return Sum([*_summands(self), *((part, -weight) for part, weight in _summands(other))])

    def __rsub__(self, other: AnyReward | float) -> Combination:
        return Sum([*_summands(other), *((part, -weight) for part, weight in _summands(self))])

    def __mul__(self, other: AnyReward | float) -> Combination:
        if isinstance(other, Real):
            return Sum([(part, weight * float(other)) for part, weight in _summands(self)])
        return Product([self, _reward(other)])

    def __rmul__(self, other: AnyReward | float) -> Combination:
        return self * other

    def __truediv__(self, other: float) -> Combination:
        return self * (1 / float(other))

    def __neg__(self) -> Combination:
        return self * -1.0

    def clip(self, low: float = -math.inf, high: float = math.inf) -> Combination:
        """Scores held between ``low`` and ``high``.

        Raises:
            ConfigError: ``low`` is above ``high``.
        """
        if not low <= high:
            raise ConfigError(f"clip needs low <= high, got {low} and {high}")
        return Mapped(self, lambda x: np.clip(x, low, high), f"clip({self.name})")

    def above(self, level: float, *, then: float = 1.0, otherwise: float = 0.0) -> Combination:
        """``then`` where the score is at least ``level``, else ``otherwise``."""
        return Mapped(self, lambda x: np.where(x >= level, then, otherwise), f"above({self.name})")

    def standardise(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Columns | None = None
    ) -> Combination:
        """Scores shifted and scaled so that these samples (the reference's) have mean 0 and deviation 1.

        Raises:
            ConfigError: the samples do not differ in score.
        """
        values = score(self, prompts, responses, columns).values
        deviation = float(values.std()) if len(values) else 0.0
        if not deviation > 0:
            raise ConfigError(f"cannot standardise {self.name!r} on {len(values)} samples that do not differ in score")
        mean = float(values.mean())
        return Mapped(self, lambda x: (x - mean) / deviation, f"standardise({self.name})")

    def per_word(self) -> Combination:
        """Scores divided by the response's number of words (at least 1)."""
        return PerWord(self)

    def named(self, name: str) -> Combination:
        """The same reward, reported under another name."""
        return Mapped(self, lambda x: x, name)


class Mapped(Combination):
    """A function of another reward's scores.

    Args:
        part: the reward.
        function: maps scores ``[n]`` to scores ``[n]``.
        name: name to report under.
    """

    def __init__(self, part: AnyReward, function: Callable[[Scores], Any], name: str) -> None:
        self.parts, self.name, self.function = (part,), name, function

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The function of the scores."""
        return np.asarray(self.function(values[0]), dtype=np.float64), {}


class Sum(Combination):
    """A weighted sum; the terms ``NAME_weighted`` are what each part contributed, and add up to the score.

    Args:
        weighted: parts with their weights.
        name: name to report under.

    Raises:
        ConfigError: no part, or a weight that is not finite.
    """

    def __init__(self, weighted: Sequence[tuple[AnyReward, float]], *, name: str = "sum") -> None:
        if not weighted or not all(math.isfinite(weight) for _, weight in weighted):
            raise ConfigError(f"a sum needs parts with finite weights, got weights {[w for _, w in weighted]}")
        self.parts, self.weights, self.name = tuple(p for p, _ in weighted), [float(w) for _, w in weighted], name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The weighted sum, and what each part contributed."""
        weighted = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return np.sum(weighted, axis=0), contributions(self.parts, weighted)

    def combine_tokens(self, values: list[Scores], tokens: list[Tokens | None]) -> Tokens | None:
        """The weighted sum of the tokens' values."""
        return weighted_sum(list(zip(self.weights, values, tokens, strict=True)))


class Product(Combination):
    """The product of rewards."""

    def __init__(self, parts: Sequence[AnyReward], *, name: str = "product") -> None:
        self.parts, self.name = some(parts, name), name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The product."""
        return np.prod(values, axis=0), {}


class Gate(Combination):
    """One reward where another is high enough, else a constant: safety before helpfulness.

    Args:
        gate: the reward that must be at least ``level``.
        reward: what counts then.
        level: see there.
        otherwise: the score elsewhere; put it below what ``reward`` gives, or failing the gate may pay.
        name: name to report under.
    """

    def __init__(
        self, gate: AnyReward, reward: AnyReward, *, level: float = 0.0, otherwise: float = 0.0, name: str = "gate"
    ) -> None:
        self.parts, self.level, self.otherwise, self.name = (gate, reward), level, otherwise, name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The reward behind the gate, and whether it was open (1) or not (0)."""
        is_open = values[0] >= self.level
        return np.where(is_open, values[1], self.otherwise), {f"{self.name}_open": is_open.astype(np.float64)}


class PerWord(Combination):
    """A reward divided by the response's number of words (at least 1)."""

    def __init__(self, part: AnyReward) -> None:
        self.parts, self.name = (part,), f"per_word({reward_name(part)})"

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The score a word."""
        return values[0] / np.array([max(1, len(r.split())) for r in responses]), {}


def term(reward: AnyReward, name: str | None = None) -> Combination:
    """Any reward as one that operators can be used on.

    Args:
        reward: a function, a metric, a reward model, ...
        name: name to report it under.

    >>> reward = 2 * term(lambda prompts, responses: [len(r) for r in responses], "length") - 1
    >>> scored = score(reward, ["p"], ["abc"])
    >>> scored.values, scored.terms["length"], scored.terms["length_weighted"]
    (array([5.]), array([3.]), array([6.]))
    """
    return Renamed(reward, name or reward_name(reward))


class Renamed(Combination):
    """A reward under a name of one's choice; what :func:`term` makes."""

    def __init__(self, reward: AnyReward, name: str) -> None:
        self.parts, self.name = (reward,), name

    def score_terms(self, prompts: list[str], responses: list[str], columns: Columns) -> ScoredBatch:
        """The reward's own scores and terms, its own value under the new name."""
        scored = score(self.parts[0], prompts, responses, columns, name=self.name, may_skip=True)
        return ScoredBatch(scored.values, scored.terms | {self.name: scored.values}, scored.failures, scored.tokens)

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The score as it is."""
        return values[0], {}


def constant(value: float) -> Combination:
    """The same score for every sample."""
    return Renamed(lambda prompts, responses: [value] * len(responses), "constant")


def _summands(reward: AnyReward | float) -> list[tuple[AnyReward, float]]:
    """Parts and weights of a sum, so that sums of sums stay one sum and every term keeps its own name."""
    if isinstance(reward, Real):
        return [(constant(1.0), float(reward))] if reward else []
    if isinstance(reward, Sum) and reward.name == "sum":
        return list(zip(reward.parts, reward.weights, strict=True))
    return [(_reward(reward), 1.0)]


def _reward(given: Any) -> AnyReward:
    """What stands in a formula, if it is a reward.

    Raises:
        TypeError: it is none.
    """
    if not callable(given):
        raise TypeError(f"expected a reward or a number beside a reward, got {given!r:.80} ({type(given).__name__})")
    checked: AnyReward = given
    return checked


def some(parts: Sequence[AnyReward], name: str) -> tuple[AnyReward, ...]:
    """The parts of a combination: at least one, or :class:`ConfigError`."""
    if not parts:
        raise ConfigError(f"a {name} needs at least one reward, got none")
    return tuple(parts)


def _spread(values: Scores, rows: list[int], n: int) -> Scores:
    """Some rows' values in their places among ``n``; 0 elsewhere."""
    out = np.zeros(n)
    out[rows] = values
    return out


def contributions(parts: Sequence[AnyReward], values: Sequence[Scores]) -> dict[str, Scores]:
    """The terms ``NAME_weighted``: what each part contributed to a score that is the sum of these values."""
    terms: dict[str, Scores] = {}
    for part, value in zip(parts, values, strict=True):
        _add(terms, {f"{reward_name(part)}_weighted": value})
    return terms


def _add(terms: dict[str, Scores], more: Mapping[str, Scores]) -> None:
    """Add terms; a name that is taken gets a number."""
    for name, values in more.items():
        free, number = name, 1
        while free in terms:
            number += 1
            free = f"{name}_{number}"
        terms[free] = values
