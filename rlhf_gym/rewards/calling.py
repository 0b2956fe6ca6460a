"""Calls a reward in the form it was written in: batch or single pair, plain or ``async``, with the columns it names."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from rlhf_gym.errors import RewardError
from rlhf_gym.objects import place_in_code
from rlhf_gym.text import shorten

PROMPT_NAMES = ("prompts", "prompt")
RESPONSE_NAMES = ("responses", "completions", "response", "completion")

Pairs = dict[int, tuple[str, str]]

under_way: ContextVar[Pairs | None] = ContextVar("under_way", default=None)
"""Where set, a reward that takes one pair at a time keeps the pairs here that it has not scored yet though it was called on
them: whoever gives it up (:class:`~rlhf_gym.rewards.service.time_limit.TimeLimit`) can say which ones it hangs on."""


@dataclass(frozen=True)
class CallForm:
    """How a reward wants to be called, read from its signature.

    Attributes:
        single: True if it takes one prompt and one response instead of a batch.
        prompt_key: the name to pass prompts by; None passes none.
        response_key: the name to pass responses by; None passes prompts and responses by position.
        columns: names of the columns it has parameters for.
        required: those of them without a default.
        takes_all: True if it has ``**columns``.
    """

    single: bool
    prompt_key: str | None
    response_key: str | None
    columns: tuple[str, ...]
    required: tuple[str, ...]
    takes_all: bool


# Weak: remembering a signature must not keep a network in memory.
_forms: MutableMapping[Any, CallForm] = WeakKeyDictionary()


def call_form(reward: Callable[..., Any], name: str) -> CallForm:
    """The form of a reward; its signature is read once.

    Raises:
        RewardError: its parameters fit no form.
    """
    try:
        if (known := _forms.get(reward)) is not None:
            return known
    except TypeError:  # cannot be hashed
        return _read_form(reward, name)
    form = _read_form(reward, name)
    with suppress(TypeError):  # cannot be referred to weakly
        _forms[reward] = form
    return form


def _read_form(reward: Callable[..., Any], name: str) -> CallForm:
    try:
        # A torch module's own __call__ takes anything; its forward says what it wants.
        target = getattr(reward, "forward", reward) if not inspect.isroutine(reward) else reward
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # some builtins have no signature
        return CallForm(False, None, None, (), (), False)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    plain = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    by_name = [p.name for p in plain if p.kind is not p.POSITIONAL_ONLY]
    prompt_key = next((n for n in PROMPT_NAMES if n in by_name), None)
    response_key = next((n for n in RESPONSE_NAMES if n in by_name), None)
    if response_key is not None:
        single = response_key in ("response", "completion")
        if prompt_key is None and takes_all:
            prompt_key = "prompt" if single else "prompts"
        texts = {prompt_key, response_key}
    else:
        # Other names, or positional-only parameters: the first two are prompts and responses. Only then do names say
        # nothing about single pairs, unless both say so.
        positional = [p for p in plain if p.kind is not p.KEYWORD_ONLY]
        if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            raise RewardError(
                f"reward {name!r} has the parameters ({', '.join(p.name for p in parameters)}); expected "
                "(prompts, responses, **columns) for a batch, or (prompt, response, **columns) for one pair"
            )
        names = [p.name for p in positional[:2]]
        single = len(names) == 2 and names[0] == "prompt" and names[1] in ("response", "completion")
        prompt_key, texts = None, set(names)
    others = [p for p in plain if p.name not in texts and p.kind is not p.POSITIONAL_ONLY]
    required = tuple(p.name for p in others if p.default is p.empty)
    return CallForm(single, prompt_key, response_key, tuple(p.name for p in others), required, takes_all)


def call(
    reward: Callable[..., Any],
    prompts: list[str],
    responses: list[str],
    columns: Mapping[str, Sequence[Any]],
    name: str,
) -> Any:
    """Call a reward on ``n`` samples and wait for it if it is ``async``.

    Returns:
        What it returned; for a reward that takes one pair at a time, a list of ``n`` such values.

    Raises:
        RewardError: it raised, or needs a column that is not there.
    """
    form = call_form(reward, name)
    if missing := [c for c in form.required if c not in columns]:
        raise RewardError(
            f"reward {name!r} needs the column {missing[0]!r}, which the data do not have; they have "
            f"{', '.join(map(repr, columns)) or 'no columns'}. Add it to the prompts, or give the parameter a default."
        )
    reserved = {form.prompt_key, form.response_key}
    accepted = [c for c in columns if c not in reserved and (form.takes_all or c in form.columns)]
    if not form.single:
        keywords = {c: list(columns[c]) for c in accepted}
        try:
            return wait_for(_invoke(reward, form, prompts, responses, keywords))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            where = f"on a batch of {len(prompts)} samples, the first prompt being {shorten(prompts[0])}"
            raise _raised(name, error, where, form) from error
    results: list[Any] = []
    pairs = under_way.get()
    waiting: Pairs = {} if pairs is None else pairs
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        waiting[i] = (prompt, response)
        try:
            results.append(_invoke(reward, form, prompt, response, {c: columns[c][i] for c in accepted}))
        except RewardError:
            raise
        except (Exception, SystemExit) as error:
            raise _raised(name, error, _sample(i, prompt, response), form) from error
        if not inspect.isawaitable(results[-1]):
            del waiting[i]
    if not any(inspect.isawaitable(r) for r in results):
        return results
    # All pairs at once: an async reward that takes one pair would otherwise wait for each in turn.
    outcomes = wait_for(_gather(results, waiting))
    for i, outcome in enumerate(outcomes):
        if isinstance(outcome, Exception) and not isinstance(outcome, RewardError):
            raise _raised(name, outcome, _sample(i, prompts[i], responses[i]), form) from outcome
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


def _invoke(reward: Callable[..., Any], form: CallForm, prompts: Any, responses: Any, keywords: dict[str, Any]) -> Any:
    if form.response_key is None:
        return reward(prompts, responses, **keywords)
    texts = {form.response_key: responses}
    if form.prompt_key is not None:
        texts[form.prompt_key] = prompts
    return reward(**texts, **keywords)


async def _gather(results: list[Any], waiting: Pairs) -> list[Any]:
    async def one(i: int, result: Any) -> Any:
        try:
            return await _finish(result) if inspect.isawaitable(result) else result
        finally:
            waiting.pop(i, None)

    return list(await asyncio.gather(*(one(i, result) for i, result in enumerate(results)), return_exceptions=True))


async def _finish(awaitable: Any) -> Any:
    """The value of an awaitable. One that exits must not take the loop with it, which all others share."""
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

    async def wait() -> Any:
        return await _finish(result)

    coroutine: Coroutine[Any, Any, Any] = wait()
    if threading.current_thread() is _background.thread:
        # An async reward that itself calls score() on another async reward: the loop cannot wait for itself.
        loop = asyncio.new_event_loop()
        out: list[Any] = []
        worker = threading.Thread(target=lambda: out.append(_outcome(loop, coroutine)))
        worker.start()
        worker.join()
        if isinstance(out[0], BaseException):
            raise out[0]
        return out[0]
    future = asyncio.run_coroutine_threadsafe(coroutine, _background.loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


def _outcome(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return loop.run_until_complete(coroutine)
    except BaseException as error:
        return error
    finally:
        loop.close()
