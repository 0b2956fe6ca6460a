"""What a reward is, and the one way anybody calls one.

A reward is any callable ``reward(prompts, responses, **columns) -> sequence of float``: a plain function (``async`` too), a
metric, a reward model, a remote service. :func:`score` calls it in the form it was written in, checks every number, and
turns whatever goes wrong into a :class:`~rlhf_gym.errors.RewardError` that names the reward, the index and the text.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import RewardError

Scores = NDArray[np.float64]


@runtime_checkable
class Reward(Protocol):
    """Anything that scores samples.

    Called with ``n`` prompts and ``n`` responses and, by name, those of the data set's columns that it has parameters for
    (each a list of ``n`` values); returns ``n`` finite numbers. May be ``async``. The second parameter may be called
    ``responses`` or ``completions``. A function whose parameters are ``prompt`` and ``response`` (or ``completion``) is
    called once a sample.
    """

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> Any:
        """Score a batch."""
        ...


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of ``n`` samples.

    Attributes:
        values: float64 ``[n]``, all finite.
        terms: what the reward is made of, by name, each float64 ``[n]`` and before weighting; a plain reward is its own
            only term.
    """

    values: Scores
    terms: dict[str, Scores] = field(default_factory=dict)


@runtime_checkable
class TermReward(Protocol):
    """A reward that reports the terms it is made of (the combinators)."""

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch and say what each term gave."""
        ...


def reward_name(reward: object) -> str:
    """The name a reward is reported under: its ``name`` attribute, or the function's or class's own name."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None) or type(reward).__name__
    return str(name)


def score(
    reward: Reward | Callable[..., Any],
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    name: str | None = None,
) -> ScoredBatch:
    """Call a reward on ``n`` samples.

    Args:
        reward: see :class:`Reward`.
        prompts: ``n`` prompts.
        responses: ``n`` responses.
        columns: further columns of the data set, ``n`` values each.
        name: name to report under; default :func:`reward_name`.

    Returns:
        Scores and terms. No call is made for ``n = 0``.

    Raises:
        RewardError: the reward raised, or returned something else than ``n`` finite numbers.
    """
    name = name or reward_name(reward)
    columns = columns or {}
    if not prompts:
        return ScoredBatch(np.zeros(0), {name: np.zeros(0)})
    if isinstance(reward, TermReward):
        return reward.score_terms(list(prompts), list(responses), columns)
    values = _checked(_call(reward, list(prompts), list(responses), columns, name), name, prompts, responses)
    return ScoredBatch(values, {name: values})


def _call(
    reward: Callable[..., Any],
    prompts: list[str],
    responses: list[str],
    columns: Mapping[str, Sequence[Any]],
    name: str,
) -> Any:
    """Call the reward in the form its signature asks for."""
    single, accepted = _form(reward, columns)
    try:
        if single is None:
            return _await(reward(prompts, responses, **{k: list(columns[k]) for k in accepted}))
        pairs = enumerate(zip(prompts, responses, strict=True))
        return [_await(reward(p, r, **{k: columns[k][i] for k in accepted})) for i, (p, r) in pairs]
    except RewardError:
        raise
    except Exception as error:
        raise RewardError(
            f"reward {name!r} raised {type(error).__name__}: {error} (on {len(prompts)} samples; the first prompt was "
            f"{shorten(prompts[0])}). Mend the reward and go on with --resume; nothing that was scored before is lost."
        ) from error


def _form(reward: Callable[..., Any], columns: Mapping[str, Sequence[Any]]) -> tuple[str | None, list[str]]:
    """Whether the reward takes one pair at a time (the second parameter's name, else None), and the columns it accepts."""
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return None, []
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = [p.name for p in parameters]
    single = names[1] if len(names) > 1 and names[0] == "prompt" and names[1] in ("response", "completion") else None
    accepted = [k for k in columns if k not in names[:2] and (takes_all or k in names[2:])]
    return single, accepted


def _await(result: Any) -> Any:
    """Wait for an ``async`` reward, also from inside a running event loop (a notebook), where ``asyncio.run`` refuses."""
    if not inspect.isawaitable(result):
        return result

    async def wait(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    coroutine: Coroutine[Any, Any, Any] = wait(result)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def _checked(result: Any, name: str, prompts: Sequence[str], responses: Sequence[str]) -> Scores:
    """Exactly one finite number a sample, or a message that says which one is not."""
    n = len(prompts)
    if result is None or isinstance(result, str | bytes) or not hasattr(result, "__len__"):
        raise RewardError(
            f"reward {name!r} returned {type(result).__name__}, expected a sequence of {n} numbers, one a sample"
        )
    if hasattr(result, "detach"):  # a torch tensor, without importing torch
        result = result.detach().cpu()
    if len(result) != n:
        raise RewardError(f"reward {name!r} returned {len(result)} scores for {n} samples; expected one a sample")
    values = np.empty(n)
    for i, value in enumerate(result):
        problem = None
        if value is None or isinstance(value, str | bytes):
            problem = repr(value)
        else:
            try:
                values[i] = float(value)
            except (TypeError, ValueError):
                problem = repr(value)
            else:
                problem = None if np.isfinite(values[i]) else str(values[i])
        if problem is not None:
            raise RewardError(
                f"reward {name!r} gave {problem} for sample {i}, expected a finite number. Prompt: "
                f"{shorten(prompts[i])}; response: {shorten(responses[i])}"
            )
    return values


def shorten(text: str, limit: int = 80) -> str:
    """A text as it may stand in a message: one line, control characters escaped, at most ``limit`` characters."""
    shown = repr(text)
    return shown if len(shown) <= limit else shown[: limit - 2] + "…" + shown[-1]
