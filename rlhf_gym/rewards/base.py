"""The protocol of rewards, and :func:`score`, which calls one.

A reward is any callable ``reward(prompts, responses, **columns) -> sequence of float``: a plain function (``async``
too), a metric, a reward model, a remote service. What goes wrong becomes a :class:`~rlhf_gym.errors.RewardError` that
names the reward, the sample's index and its text.

The path of a call: :func:`score` calls ``score_terms``; a combination's calls that of each part; a user's function is
behind the one of :class:`FunctionReward`, which is :func:`~rlhf_gym.rewards.calling.call`, then :func:`checked`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import RewardError
from rlhf_gym.lm.response_text import GeneratedText
from rlhf_gym.rewards.calling import call, call_form
from rlhf_gym.rewards.token_values import CONVERSATION, ENDS, IDS, OWN_TURNS, Tokens, checked_tokens
from rlhf_gym.text import shorten

Scores = NDArray[np.float64]


@runtime_checkable
class Reward(Protocol):
    """Anything that scores samples.

    Called with ``n`` prompts and ``n`` responses and, by name, those of the data set's columns that it has parameters
    for (each a list of ``n`` values; all columns if it has ``**columns``); returns ``n`` finite numbers. May be
    ``async``.

    ``responses`` may also be called ``completions``, in any place; parameters of other names are taken in order,
    prompts first. A function with parameters ``prompt`` and ``response`` (or ``completion``) is called once a sample,
    with that sample's value of each column; if it is ``async``, all samples are awaited at once.
    """

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> Any:
        """Score a batch."""
        ...


AnyReward = Reward | Callable[..., Any]


@dataclass(frozen=True)
class Failure:
    """The reason why a sample has no score.

    Attributes:
        name: the reward, or the term of it, that failed.
        error: its error message.
    """

    name: str
    error: str


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of ``n`` samples.

    Attributes:
        values: float64 ``[n]``, all finite.
        terms: the scores of the terms that the reward is made of, by name, each float64 ``[n]`` and finite. A plain reward
            is its own only term. In a sum, ``x`` is the score of reward ``x`` and ``x_weighted`` its contribution.
        failures: for a reward that may leave samples out (:class:`~rlhf_gym.rewards.on_error.SkipOnError`), ``n``
            failures: None where the sample has a score. The numbers of a failed sample in ``values`` and ``terms`` mean
            nothing. None for other rewards.
        tokens: for a reward of single tokens (:mod:`~rlhf_gym.rewards.token_values`), for each sample float64
            ``[length]``; their sum is its value. None for other rewards.
    """

    values: Scores
    terms: dict[str, Scores] = field(default_factory=dict)
    failures: tuple[Failure | None, ...] | None = None
    tokens: Tokens | None = None

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Bool ``[n]``, False where there is no score."""
        if self.failures is None:
            return np.ones(len(self.values), dtype=np.bool_)
        return np.array([failure is None for failure in self.failures], dtype=np.bool_)


def first_failures(
    one: tuple[Failure | None, ...] | None, other: tuple[Failure | None, ...] | None
) -> tuple[Failure | None, ...] | None:
    """The failures of two rewards of the same samples; where both failed, that of the first.

    Args:
        one: the first reward's ``n`` failures, or None.
        other: the second reward's.
    """
    if one is None or other is None:
        return other if one is None else one
    return tuple(a or b for a, b in zip(one, other, strict=True))


@runtime_checkable
class TermReward(Reward, Protocol):
    """A reward that reports the terms it is made of, as the combinators do; subclasses can be called like any reward."""

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch, with the scores of each term.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.
        """
        ...

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> Any:
        """Score a batch; returns a list of ``n`` numbers."""
        return score(self, prompts, responses, columns).values.tolist()


class FunctionReward(TermReward):
    """A user's function, or an object that can be called, as a reward whose score is its only term.

    The signature is read here, once.

    Args:
        reward: the function or the object.
        name: name to report under.

    Attributes:
        reward: the function or the object.
        form: the way it is called.

    Raises:
        RewardError: it is a class, it cannot be called, or its parameters fit no form.
    """

    def __init__(self, reward: Callable[..., Any], name: str) -> None:
        self.reward, self.name = reward, name
        self.form = call_form(reward, name)

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Call the function on ``n`` samples and check what it returns.

        Args:
            prompts: ``n`` prompts, at least one.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: it raised, it needs a column that is missing, or it returned something else than ``n`` finite
                numbers.
        """
        if getattr(self.reward, "per_token", False):
            of_tokens = self._token_values_of_turns if OWN_TURNS in columns else self._token_values
            tokens = of_tokens(prompts, responses, columns)
            values = np.array([row.sum() for row in tokens])
            return ScoredBatch(values, {self.name: values}, tokens=tokens)
        others = {key: values for key, values in columns.items() if key != OWN_TURNS}
        result = call(self.reward, self.form, prompts, responses, others, self.name)
        values = checked(result, self.name, prompts, responses)
        return ScoredBatch(values, {self.name: values})

    def _token_values(self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]) -> Tokens:
        """The values of each response's tokens."""
        result = call(self.reward, self.form, prompts, responses, columns, self.name)
        return checked_tokens(result, self.name, prompts, responses, columns.get(IDS))

    def _token_values_of_turns(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> Tokens:
        """The values of the policy's tokens in whole conversations, from each turn as a response to what came before it."""
        rows = [(number, turn) for number, turns in enumerate(columns[OWN_TURNS]) for turn in turns]
        further = {key: [values[n] for n, _ in rows] for key, values in columns.items() if key != OWN_TURNS}
        further |= {"messages": [turn.messages for _, turn in rows], CONVERSATION: [n for n, _ in rows]}
        said = [turn.response for _, turn in rows]
        generated = [one for one in said if isinstance(one, GeneratedText)]
        if len(generated) == len(said):
            further[IDS] = [one.ids for one in generated]
            if getattr(self.reward, "per_step", False):
                further[ENDS] = [one.token_ends() for one in generated]
        of_turns: list[list[NDArray[np.float64]]] = [[np.zeros(0)] for _ in prompts]
        found = self._token_values([turn.prompt for _, turn in rows], said, further) if rows else ()
        for (number, _), values in zip(rows, found, strict=True):
            of_turns[number].append(values)
        return tuple(np.concatenate(parts) for parts in of_turns)


def as_term(reward: AnyReward, name: str | None = None) -> TermReward:
    """The reward itself where it has ``score_terms``, else a :class:`FunctionReward` of it.

    Args:
        reward: any reward.
        name: name to report a function under; None takes its own (:func:`reward_name`).

    Raises:
        RewardError: it is a class, it cannot be called, or its parameters fit no form.
    """
    # isinstance with a protocol takes longer than small rewards do.
    has_terms: Any = reward
    return has_terms if hasattr(reward, "score_terms") else FunctionReward(reward, name or reward_name(reward))


def reward_name(reward: object) -> str:
    """The name a reward is reported under: its ``name`` attribute, or the function's or class's own name."""
    while isinstance(reward, partial) and not hasattr(reward, "name"):
        reward = reward.func
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return str(name)


def score(
    reward: AnyReward,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    name: str | None = None,
    may_skip: bool = False,
) -> ScoredBatch:
    """Call a reward on ``n`` samples.

    Args:
        reward: see :class:`Reward`.
        prompts: ``n`` prompts.
        responses: ``n`` responses.
        columns: further columns of the data set, ``n`` values each.
        name: name to report under; default :func:`reward_name`.
        may_skip: True if the caller goes on without the samples that have no score (``failures``).

    Returns:
        Scores and terms. No call is made for ``n = 0``.

    Raises:
        RewardError: the reward raised (its exception is the cause), or returned something else than ``n`` finite
            numbers; or prompts, responses and columns differ in number; or it left a sample out and ``may_skip`` is False.

    >>> score(lambda prompts, responses: [len(r) for r in responses], ["a", "b"], ["xy", ""]).values
    array([2., 0.])
    """
    name = name or reward_name(reward)
    columns = columns or {}
    n = len(prompts)
    counts = {"responses": len(responses), **{f"values of {column!r}": len(v) for column, v in columns.items()}}
    for what, count in counts.items():
        if count != n:
            raise RewardError(f"cannot call reward {name!r} with {n} prompts and {count} {what}; expected {n} of each")
    if n == 0:
        return ScoredBatch(np.zeros(0), {name: np.zeros(0)})
    scored = as_term(reward, name).score_terms(list(prompts), list(responses), columns)
    if scored.failures is not None and not may_skip:
        _refuse_failures(scored.failures, name, prompts, responses)
    return scored


def _refuse_failures(
    failures: tuple[Failure | None, ...], name: str, prompts: Sequence[str], responses: Sequence[str]
) -> None:
    for i, failure in enumerate(failures):
        if failure is not None:
            raise RewardError(
                f"reward {name!r} has no score for sample {i}: {failure.name!r} failed on it, and samples cannot be left out "
                f"here. Prompt: {shorten(prompts[i])}; response: {shorten(responses[i])}; the error: {failure.error}"
            )


def checked(result: Any, name: str, prompts: Sequence[str], responses: Sequence[str]) -> Scores:
    """Turn what a reward returned into float64 ``[n]``.

    Args:
        result: a list, tuple, array, tensor or series of ``n`` numbers.
        name: the reward's name, for the message.
        prompts: the ``n`` prompts that were scored.
        responses: the ``n`` responses that were scored.

    Raises:
        RewardError: it is not one finite number a sample; the message names the first sample that is wrong.
    """
    n = len(prompts)
    if hasattr(result, "detach"):  # a torch tensor, without importing torch
        result = result.detach().cpu()
        result = (result.double() if result.is_floating_point() else result).tolist()
    unordered = isinstance(result, str | bytes | Mapping | Set)
    if unordered or not hasattr(result, "__len__") or not hasattr(result, "__iter__"):
        shown = f" ({shorten(str(result))})" if isinstance(result, str | int | float) else ""
        raise RewardError(
            f"reward {name!r} returned {_kind(result)}{shown}, expected a sequence of {n} numbers, one a sample"
        )
    if getattr(result, "ndim", 1) != 1:
        raise RewardError(
            f"reward {name!r} returned an array of shape {result.shape}, expected ({n},): one number a sample"
        )
    if len(result) != n:
        raise RewardError(
            f"reward {name!r} returned {len(result)} scores for {n} samples; expected one a sample. The first of them: prompt "
            f"{shorten(prompts[0])}, response {shorten(responses[0])}"
        )
    if type(result) is list and set(map(type, result)) <= {float}:
        values = np.array(result, dtype=np.float64)
        if np.isfinite(values).all():
            return values
    values = np.empty(n)
    for i, value in enumerate(result):
        number = _number(value)
        if number is None or not np.isfinite(number):
            given = shorten(str(value)) if isinstance(value, str | bytes) else f"{value!s:.80}"
            raise RewardError(
                f"reward {name!r} gave {given} ({_kind(value)}) for sample {i}, expected a finite number. Prompt: "
                f"{shorten(prompts[i])}; response: {shorten(responses[i])}"
            )
        values[i] = number
    return values


def _number(value: Any) -> float | None:
    """A value as a float; None where it is not a number. A text is not a number, even ``"1.0"``."""
    if value is None or isinstance(value, str | bytes | list | tuple) or getattr(value, "ndim", 0) > 0:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
    except OverflowError:  # an int above 1e308
        return float("inf")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
