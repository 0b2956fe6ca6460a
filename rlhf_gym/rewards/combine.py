"""Rewards made of rewards: sums, products, minima, gates and functions of a score, each term reported by name.

Wrap any reward with :func:`term`, then write a formula::

    reward = term(praise) - 0.1 * term(word_count).clip(0, 50)

Every combination is itself a reward. Its terms reach ``info`` and the logger: ``praise`` is the score of the reward called
praise, ``praise_weighted`` its contribution to a sum.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.base import (
    AnyReward,
    Failure,
    ScoredBatch,
    Scores,
    TermReward,
    as_term,
    first_failures,
    reward_name,
    score,
)
from rlhf_gym.rewards.token_values import Tokens, weighted_sum
from rlhf_gym.text import shorten

Columns = Mapping[str, Sequence[Any]]


class Combination(TermReward):
    """A reward made of rewards; ``+``, ``-``, ``*`` and the methods below make further ones.

    Attributes:
        name: name that it is reported under inside another combination.
        parts: the rewards that it is made of, each with ``score_terms`` (:func:`~rlhf_gym.rewards.base.as_term`).
        slow: True or False says that it is slow or not (:func:`~rlhf_gym.rewards.service.overlap.is_slow`); None leaves it
            to the parts.
    """

    name: str
    parts: tuple[TermReward, ...] = ()
    slow: bool | None = None
    __array_ufunc__ = None  # NumPy's numbers leave operators to the reward

    @abstractmethod
    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Compute the combination's scores from those of its parts.

        Args:
            values: for each part its scores, float64 ``[n]``.
            responses: the ``n`` responses.

        Returns:
            float64 ``[n]``, and further terms to report.
        """

    def score_terms(self, prompts: list[str], responses: list[str], columns: Columns) -> ScoredBatch:
        """Score a batch: score each part, then combine.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: a part failed (it is named), or the combination's result is NaN or infinite.
        """
        terms: dict[str, Scores] = {}
        values: list[Scores] = []
        tokens: list[Tokens | None] = []
        failures: tuple[Failure | None, ...] | None = None
        for part in self.parts:
            scored = part.score_terms(prompts, responses, columns)
            own = {reward_name(part): scored.values} if isinstance(part, Combination) else {}
            _add(terms, scored.terms | own)
            values.append(scored.values)
            tokens.append(scored.tokens)
            failures = first_failures(failures, scored.failures)
        with np.errstate(all="ignore"):  # NaN and infinity are reported below, with the sample
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
        """Compute the value of each token; None pays the whole score with the last token.

        Args:
            values: for each part its scores, float64 ``[n]``.
            tokens: for each part its tokens' values, None where it has none.
        """
        return None

    def _combine_scored(
        self, values: list[Scores], responses: list[str], failures: tuple[Failure | None, ...] | None
    ) -> tuple[Scores, dict[str, Scores]]:
        """Combine the samples that every part has a score for. The others get 0, and adaptive rewards do not see them."""
        if failures is None or not any(failures):
            return self.combine(values, responses)
        n, rows = len(responses), [i for i, failure in enumerate(failures) if failure is None]
        if not rows:
            return np.zeros(n), {}
        total, more = self.combine([value[rows] for value in values], [responses[i] for i in rows])
        return _spread(total, rows, n), {name: _spread(value, rows, n) for name, value in more.items()}

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
        """Clip the scores to ``[low, high]``.

        Args:
            low: the least score.
            high: the highest score.

        Raises:
            ConfigError: ``low`` is above ``high``.
        """
        if not low <= high:
            raise ConfigError(f"clip needs low <= high, got {low} and {high}")
        return Mapped(self, lambda x: np.clip(x, low, high), f"clip({self.name})")

    def above(self, level: float, *, then: float = 1.0, otherwise: float = 0.0) -> Combination:
        """Score ``then`` where the score is at least ``level``, else ``otherwise``.

        Args:
            level: the threshold.
            then: the score at and above it.
            otherwise: the score below it.
        """
        return Mapped(self, lambda x: np.where(x >= level, then, otherwise), f"above({self.name})")

    def standardise(
        self, prompts: Sequence[str], responses: Sequence[str], columns: Columns | None = None
    ) -> Combination:
        """Shift and scale the scores so that these samples have mean 0 and standard deviation 1.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses, such as the reference's.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            ConfigError: the samples do not differ in score.
        """
        values = score(self, prompts, responses, columns).values
        std = float(values.std()) if len(values) else 0.0
        if not std > 0:
            raise ConfigError(f"cannot standardise {self.name!r} on {len(values)} samples that do not differ in score")
        mean = float(values.mean())
        return Mapped(self, lambda x: (x - mean) / std, f"standardise({self.name})")

    def per_word(self) -> Combination:
        """Divide the scores by the response's number of words (at least 1)."""
        return PerWord(self)

    def named(self, name: str) -> Combination:
        """Report the same reward under another name."""
        return Renamed(self, name)


class Mapped(Combination):
    """A function of another reward's scores.

    Args:
        part: the reward.
        function: maps scores ``[n]`` to scores ``[n]``.
        name: name to report under.
    """

    def __init__(self, part: AnyReward, function: Callable[[Scores], Any], name: str) -> None:
        self.parts, self.name, self.function = (as_term(part),), name, function

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Apply the function to the scores.

        Args:
            values: one array: the part's scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        return np.asarray(self.function(values[0]), dtype=np.float64), {}


class Renamed(Combination):
    """The same reward under another name.

    Args:
        part: the reward.
        name: name to report under.
    """

    def __init__(self, part: AnyReward, name: str) -> None:
        self.parts, self.name = (as_term(part),), name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Return the scores as they are.

        Args:
            values: one array: the part's scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        return values[0], {}

    def combine_tokens(self, values: list[Scores], tokens: list[Tokens | None]) -> Tokens | None:
        """Return the tokens' values as they are.

        Args:
            values: one array: the part's scores, float64 ``[n]``; not used.
            tokens: its tokens' values, None where it has none.
        """
        return tokens[0]


class Sum(Combination):
    """A weighted sum; the terms ``NAME_weighted`` are the contributions of the parts, and add up to the score.

    Args:
        weighted: parts with their weights.
        name: name to report under.

    Raises:
        ConfigError: no part, or a weight that is not finite.
    """

    def __init__(self, weighted: Sequence[tuple[AnyReward, float]], *, name: str = "sum") -> None:
        if not weighted or not all(math.isfinite(weight) for _, weight in weighted):
            raise ConfigError(f"a sum needs parts with finite weights, got weights {[w for _, w in weighted]}")
        self.parts, self.weights = tuple(as_term(p) for p, _ in weighted), [float(w) for _, w in weighted]
        self.name = name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Compute the weighted sum and each part's contribution.

        Args:
            values: for each part its scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        weighted = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return np.sum(weighted, axis=0), contributions(self.parts, weighted)

    def combine_tokens(self, values: list[Scores], tokens: list[Tokens | None]) -> Tokens | None:
        """Compute the weighted sum of the tokens' values.

        Args:
            values: for each part its scores, float64 ``[n]``.
            tokens: for each part its tokens' values, None where it has none.
        """
        return weighted_sum(list(zip(self.weights, values, tokens, strict=True)))


class Product(Combination):
    """The product of rewards.

    Args:
        parts: the rewards, at least one.
        name: name to report under.

    Raises:
        ConfigError: no part.
    """

    def __init__(self, parts: Sequence[AnyReward], *, name: str = "product") -> None:
        self.parts, self.name = as_terms(parts, name), name

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Multiply the scores.

        Args:
            values: for each part its scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        return np.prod(values, axis=0), {}


class Gate(Combination):
    """One reward where another is high enough, else a constant: safety before helpfulness.

    Args:
        gate: the reward that opens the gate where its score is at least ``level``.
        reward: the reward that counts there.
        level: the threshold.
        otherwise: the score elsewhere; choose it below the scores of ``reward``, or failing the gate may pay.
        name: name to report under.
    """

    def __init__(
        self, gate: AnyReward, reward: AnyReward, *, level: float = 0.0, otherwise: float = 0.0, name: str = "gate"
    ) -> None:
        self.parts, self.name = (as_term(gate), as_term(reward)), name
        self.level, self.otherwise = level, otherwise

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Compute the score; the term ``NAME_open`` is 1 where the gate is open, else 0.

        Args:
            values: the scores of the gate, then of the reward behind it, float64 ``[n]`` each.
            responses: the ``n`` responses; not used.
        """
        is_open = values[0] >= self.level
        return np.where(is_open, values[1], self.otherwise), {f"{self.name}_open": is_open.astype(np.float64)}


class PerWord(Combination):
    """A reward divided by the response's number of words (at least 1)."""

    def __init__(self, part: AnyReward) -> None:
        self.parts, self.name = (as_term(part),), f"per_word({reward_name(part)})"

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Divide the scores by the numbers of words.

        Args:
            values: one array: the part's scores, float64 ``[n]``.
            responses: the ``n`` responses; one without words counts as one word.
        """
        return values[0] / np.array([max(1, len(r.split())) for r in responses]), {}


class Term(Combination):
    """One reward under a name, with operators; :func:`term` makes it.

    Args:
        reward: any reward.
        name: name to report it under.

    Attributes:
        reward: the reward, with ``score_terms``.

    Raises:
        RewardError: it is a class, it cannot be called, or its parameters fit no form.
    """

    def __init__(self, reward: AnyReward, name: str) -> None:
        self.reward, self.name = as_term(reward, name), name

    def score_terms(self, prompts: list[str], responses: list[str], columns: Columns) -> ScoredBatch:
        """Score a batch; the reward's score is one of its terms, under the name.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: the reward failed.
        """
        scored = self.reward.score_terms(prompts, responses, columns)
        return replace(scored, terms=scored.terms | {self.name: scored.values})

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Return the score as it is.

        Args:
            values: one array: the reward's scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        return values[0], {}


def term(reward: AnyReward, name: str | None = None) -> Combination:
    """Make any reward one that operators can be used on.

    Args:
        reward: a function, a metric, a reward model, ...
        name: name to report it under; None takes its own (:func:`~rlhf_gym.rewards.base.reward_name`).

    Raises:
        RewardError: it is a class, it cannot be called, or its parameters fit no form.

    >>> reward = 2 * term(lambda prompts, responses: [len(r) for r in responses], "length") - 1
    >>> scored = score(reward, ["p"], ["abc"])
    >>> scored.values, scored.terms["length"], scored.terms["length_weighted"]
    (array([5.]), array([3.]), array([6.]))
    """
    return Term(reward, name or reward_name(reward))


def constant(value: float) -> Combination:
    """A reward that gives every sample the same score."""
    return Term(lambda prompts, responses: [value] * len(responses), "constant")


def _summands(reward: AnyReward | float) -> list[tuple[AnyReward, float]]:
    """Parts and weights of a sum, so that sums of sums stay one sum and every term keeps its own name."""
    if isinstance(reward, Real):
        return [(constant(1.0), float(reward))] if reward else []
    if isinstance(reward, Sum) and reward.name == "sum":
        return list(zip(reward.parts, reward.weights, strict=True))
    return [(_reward(reward), 1.0)]


def _reward(given: Any) -> AnyReward:
    """The operand of a formula.

    Raises:
        TypeError: it is not a reward.
    """
    if not callable(given):
        raise TypeError(f"expected a reward or a number in a formula, got {given!r:.80} ({type(given).__name__})")
    checked: AnyReward = given
    return checked


def as_terms(parts: Sequence[AnyReward], name: str) -> tuple[TermReward, ...]:
    """The parts of a combination as terms.

    Args:
        parts: the rewards, at least one.
        name: the combination's name, for the message.

    Raises:
        ConfigError: no part.
    """
    if not parts:
        raise ConfigError(f"a {name} needs at least one reward, got none")
    return tuple(as_term(part) for part in parts)


def _spread(values: Scores, rows: list[int], n: int) -> Scores:
    """Some rows' values in their places among ``n``; 0 elsewhere."""
    out = np.zeros(n)
    out[rows] = values
    return out


def contributions(parts: Sequence[AnyReward], values: Sequence[Scores]) -> dict[str, Scores]:
    """The terms ``NAME_weighted``.

    Args:
        parts: the rewards.
        values: for each its contribution, float64 ``[n]``; their sum is the score.
    """
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
