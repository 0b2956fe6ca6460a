"""Calls a user's reward function: on a batch or on single samples, plain or ``async``, with the columns it names.

:func:`call_form` reads a signature once; :func:`call` is the one place where a user's function is called.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rlhf_gym.errors import RewardError
from rlhf_gym.objects import place_in_code
from rlhf_gym.text import shorten

PROMPT_NAMES = ("prompts", "prompt")
RESPONSE_NAMES = ("responses", "completions", "response", "completion")

Texts = dict[int, tuple[str, str]]
"""Prompts and responses of samples, by the samples' indices."""

under_way: ContextVar[Texts | None] = ContextVar("under_way", default=None)
"""The samples that a reward of single samples was called on and has not scored yet, kept by :func:`call` where this is set:
a time limit (:class:`~rlhf_gym.rewards.service.limits.TimeLimit`) names the sample that the reward hangs on."""


@dataclass(frozen=True)
class CallForm:
    """The way a reward is called, read from its signature.

    Attributes:
        single: True if it takes one prompt and one response instead of a batch.
        prompt_key: the name to pass prompts by; None passes none.
        response_key: the name to pass responses by; None passes prompts and responses by position.
        columns: names of the columns it has parameters for.
        required: those of them without a default.
        takes_all: True if it has ``**columns``.
        texts: names of its parameters for prompts and responses: a column of such a name cannot be passed.
    """

    single: bool
    prompt_key: str | None
    response_key: str | None
    columns: tuple[str, ...]
    required: tuple[str, ...]
    takes_all: bool
    texts: frozenset[str] = frozenset()


def call_form(reward: Callable[..., Any], name: str) -> CallForm:
    """Read the form of a reward from its signature.

    Args:
        reward: a function, or an object that can be called.
        name: the reward's name, for messages.

    Raises:
        RewardError: it is a class, it cannot be called, or its parameters fit no form.
    """
    if isinstance(reward, type):
        raise RewardError(f"reward {name!r} is a class; expected an object of it, such as {name}(...)")
    if not callable(reward):
        raise RewardError(
            f"reward {name!r} is a {type(reward).__name__}; expected a function or an object that is callable"
        )
    try:
        # A torch module's own __call__ takes anything; its forward says what it wants.
        target = getattr(reward, "forward", reward) if not inspect.isroutine(reward) else reward
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return CallForm(False, None, None, (), (), takes_all=False)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    plain = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    by_name = [p.name for p in plain if p.kind is not p.POSITIONAL_ONLY]
    prompt_key = next((n for n in PROMPT_NAMES if n in by_name), None)
    response_key = next((n for n in RESPONSE_NAMES if n in by_name), None)
    if response_key is not None:
        single = response_key in ("response", "completion")
        if prompt_key is None and takes_all:
            prompt_key = "prompt" if single else "prompts"
        texts = {response_key, *((prompt_key,) if prompt_key else ())}
    else:
        # Other names, or positional-only parameters: the first two are prompts and responses. Only then do names say
        # nothing about single samples, unless both say so.
        positional = [p for p in plain if p.kind is not p.KEYWORD_ONLY]
        if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise RewardError(
                f"reward {name!r} has the parameters ({', '.join(p.name for p in parameters)}); expected "
                "(prompts, responses, **columns) for a batch, or (prompt, response, **columns) for one sample"
            )
        names = [p.name for p in positional[:2]]
        single = len(names) == 2 and names[0] == "prompt" and names[1] in ("response", "completion")
        prompt_key, texts = None, set(names) & set(by_name)
    others = [p for p in plain if p.name not in texts and p.kind is not p.POSITIONAL_ONLY]
    columns = tuple(p.name for p in others)
    required = tuple(p.name for p in others if p.default is p.empty)
    return CallForm(single, prompt_key, response_key, columns, required, takes_all, frozenset(texts))


def call(
    reward: Callable[..., Any],
    form: CallForm,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    name: str,
) -> Any:
    """Call a reward on ``n`` samples, and wait for it if it is ``async``.

    Args:
        reward: the user's function or object.
        form: its :func:`call_form`.
        prompts: ``n`` prompts.
        responses: ``n`` responses.
        columns: further columns of the data set, ``n`` values each; the reward is given those it has parameters for.
        name: the reward's name, for messages.

    Returns:
        What the reward returned; for a reward of single samples, a list of ``n`` such values.

    Raises:
        RewardError: it raised, or it needs a column that the data do not have.
    """
    if missing := [c for c in form.required if c not in columns]:
        raise RewardError(
            f"reward {name!r} needs the column {missing[0]!r}, which the data do not have; they have "
            f"{', '.join(map(repr, columns)) or 'no columns'}. Add it to the prompts, or give the parameter a default."
        )
    accepted = [c for c in columns if c not in form.texts and (form.takes_all or c in form.columns)]
    if form.single:
        return _call_singly(reward, form, prompts, responses, {c: columns[c] for c in accepted}, name)
    texts, keywords = _arguments(form, list(prompts), list(responses))
    try:
        return wait_for(reward(*texts, **keywords, **{c: list(columns[c]) for c in accepted}))
    except RewardError:
        raise
    except (Exception, SystemExit) as error:
        where = f"on a batch of {len(prompts)} samples, the first prompt being {shorten(prompts[0])}"
        raise _raised(name, error, where, form) from error


def _call_singly(
    reward: Callable[..., Any],
    form: CallForm,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    name: str,
) -> list[Any]:
    """Call a reward of single samples ``n`` times; awaitables are awaited all at once."""
    results: list[Any] = []
    watched = under_way.get()
    waiting: Texts = {} if watched is None else watched
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        waiting[i] = (prompt, response)
        texts, keywords = _arguments(form, prompt, response)
        try:
            results.append(reward(*texts, **keywords, **{c: values[i] for c, values in columns.items()}))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(name, error, _sample(i, prompt, response), form) from error
        if not inspect.isawaitable(results[-1]):
            del waiting[i]
    if not any(inspect.isawaitable(r) for r in results):
        return results
    # All at once: an async reward of single samples would otherwise wait for each in turn.
    outcomes: list[Any] = wait_for(_gather(results, waiting))
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception) and not isinstance(outcome, RewardError):
            raise _raised(name, outcome, _sample(i, prompts[i], responses[i]), form) from outcome
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def _arguments(form: CallForm, prompts: Any, responses: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Prompts and responses, of a batch or of one sample, as positional or as keyword arguments."""
    if form.response_key is None:
        return (prompts, responses), {}
    if form.prompt_key is None:
        return (), {form.response_key: responses}
    return (), {form.response_key: responses, form.prompt_key: prompts}


async def _gather(results: list[Any], waiting: Texts) -> list[Any]:
    """All results, awaited at once; an exception stands in its place."""
    samples = (_finish_sample(i, result, waiting) for i, result in enumerate(results))
    return list(await asyncio.gather(*samples, return_exceptions=True))


async def _finish_sample(index: int, result: Any, waiting: Texts) -> Any:
    try:
        return await _finish(result) if inspect.isawaitable(result) else result
    finally:
        waiting.pop(index, None)


async def _finish(awaitable: Awaitable[Any]) -> Any:
    """The value of an awaitable. ``SystemExit`` becomes another error: it would end the event loop, which all rewards share."""
    try:
        return await awaitable
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error


def _sample(index: int, prompt: str, response: str) -> str:
    return f"on sample {index}, prompt {shorten(prompt)}, response {shorten(response)}"


def _raised(name: str, error: BaseException, where: str, form: CallForm) -> RewardError:
    hint = ""
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error) and form.takes_all:
        hint = (
            " It takes **columns, so it is given them all; a decorator should hand on the signature by functools.wraps."
        )
    return RewardError(
        f"reward {name!r} raised {type(error).__name__}: {error}{place_in_code(error)} ({where}).{hint} Mend the reward and go "
        "on; nothing that was scored before is lost."
    )


class _Background:
    """One event loop in a daemon thread, for all ``async`` rewards of the process.

    A loop of its own works inside a notebook, where ``asyncio.run`` refuses; and the *same* loop every time keeps a
    reward's HTTP session usable from one call to the next.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="rlhf-gym-rewards", daemon=True)
        self.thread.start()


_background: _Background | None = None
_background_lock = threading.Lock()


def wait_for(result: Any) -> Any:
    """The value of an awaitable, run on the background loop; anything else as it is."""
    global _background
    if not inspect.isawaitable(result):
        return result
    with _background_lock:
        # A forked process inherits the object, but not the thread that runs the loop.
        if _background is None or _background.process != os.getpid():
            _background = _Background()
    if threading.current_thread() is _background.thread:
        # An async reward that itself calls score() on another async reward: the loop cannot wait for itself.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _finish(result)).result()
    future = asyncio.run_coroutine_threadsafe(_finish(result), _background.loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise
