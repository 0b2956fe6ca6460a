"""A client for chat models over the network: many questions at once, each cached."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rlhf_gym.errors import ConfigError, RlhfGymError
from rlhf_gym.judge.reply_cache import ReplyCache
from rlhf_gym.rewards.service.limits import CircuitBreaker, UnreachableError
from rlhf_gym.text import shorten

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "RLHF_GYM_JUDGE_KEY"
"""The environment variable that holds a judge's API key; ``OPENAI_API_KEY`` is sent to openai.com only."""

Messages = list[dict[str, str]]


class JudgeError(RlhfGymError):
    """A request to the judge failed."""


class AbsentError(JudgeError):
    """The judge did not answer."""


@dataclass(frozen=True)
class Reply:
    """A chat model's reply.

    Attributes:
        text: the reply.
        prompt_tokens: tokens of the question, as the service counts them; 0 where it does not.
        completion_tokens: tokens of the reply, likewise.
        cached: True if it came from the cache, at no cost.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False


@dataclass
class Usage:
    """Counts of a client's questions so far.

    Attributes:
        asked: questions sent to the service.
        cached: questions answered from the cache.
        prompt_tokens: tokens sent.
        completion_tokens: tokens received.
        cost: cost of both, at the client's prices.
    """

    asked: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __str__(self) -> str:
        whole = self.asked + self.cached
        share = f", {self.cached / whole:.0%} of them answered from the cache" if whole else ""
        price = f", cost {self.cost:.4f}" if self.cost else ""
        return f"{whole:,} questions{share}; {self.prompt_tokens:,} tokens sent, {self.completion_tokens:,} received{price}"


class ChatClient:
    """A model behind ``URL/chat/completions``.

    Requests whose failure may be temporary (no connection, time-outs, status 408, 409, 429 and 5xx) are sent again by the
    ``openai`` package, with growing pauses and as the service's ``Retry-After`` says. Where a failure does not end the run (an
    ``on_error`` policy), a :class:`~rlhf_gym.rewards.service.limits.CircuitBreaker` keeps a dead service from costing
    all these retries for every question.

    Args:
        url: the service, e.g. ``https://api.openai.com/v1`` or ``http://localhost:8000/v1``.
        model: the model's name there; None takes the one that the service lists, where it lists one.
        concurrency: questions at once.
        timeout: seconds to wait for one reply.
        retries: times that a failed request is sent again, 0 or more.
        cache: file that keeps replies from run to run; None keeps them in memory.
        price: prices per million tokens sent and received, in any currency.
        open_after: questions in a row without an answer that open the circuit breaker.
        cool_down: seconds that it stays open.
        parameters: of the request, besides model and messages, over ``{"temperature": 0, "max_tokens": 200}``; None leaves
            one out (models that reason want ``max_completion_tokens`` and no temperature).

    Raises:
        ConfigError: not an address, a number out of its range, or the ``openai`` package is missing.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        cache: str | os.PathLike[str] | None = None,
        price: tuple[float, float] = (0.0, 0.0),
        open_after: int = 3,
        cool_down: float = 30.0,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"a judge needs the http:// or https:// address of its service, got {url!r}")
        if parts.username or parts.password:
            raise ConfigError(f"a judge's key does not belong into its address: set {KEY_VARIABLE} in the environment")
        if concurrency < 1 or not timeout > 0 or retries < 0 or len(price) != 2 or min(price) < 0:
            raise ConfigError(
                "a judge needs a concurrency of at least 1, a timeout above 0, retries of 0 or more and two prices of 0 or "
                f"more; got {concurrency}, {timeout}, {retries} and {price}"
            )
        options: dict[str, Any] = {
            "concurrency": concurrency,
            "timeout": timeout,
            "retries": retries,
            "cache": cache,
            "price": price,
            "open_after": open_after,
            "cool_down": cool_down,
        }
        self._made_with = (url, model, options | {"parameters": parameters})
        self.url = url.rstrip("/")
        self.concurrency, self.price = concurrency, price
        given = {"temperature": 0, "max_tokens": 200, **(parameters or {})}
        self.parameters = {name: value for name, value in given.items() if value is not None}
        self.usage = Usage()
        self.breaker = CircuitBreaker(self.url, open_after=open_after, cool_down=cool_down)
        self._model = model
        self._structured = True  # until the service refuses a schema
        self._lock = threading.Lock()
        self._cache = ReplyCache(cache)
        self._key = _key(parts.hostname)
        self._client = _client(self.url, self._key, timeout, retries)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and other processes', have connections of their own."""
        url, model, options = self._made_with
        return partial(ChatClient, url, model, **options), ()

    @property
    def model(self) -> str:
        """The model's name.

        Raises:
            JudgeError: none was given, and the service does not list exactly one.
        """
        if self._model is None:
            names = [model.id for model in self._call_service(lambda client: client.models.list()).data]
            if len(names) != 1:
                shown = ", ".join(names[:8]) or "none"
                raise JudgeError(f"{self.url} serves {len(names)} models ({shown}); say which one is to judge")
            self._model = names[0]
        return self._model

    def ask(self, questions: Sequence[Messages], schema: Mapping[str, Any]) -> list[Reply]:
        """Send several questions at once; equal questions are sent once.

        Args:
            questions: conversations, each a list of ``{"role", "content"}``.
            schema: the JSON schema of a reply, for services that can hold a model to one.

        Returns:
            A reply a question, in their order.

        Raises:
            JudgeError: the service cannot be reached, or refuses; what it has answered is in the cache.
        """
        if not questions:
            return []
        model = self.model
        keys = [json.dumps([self.url, model, self.parameters, question], sort_keys=True) for question in questions]
        fresh = {key: question for key, question in zip(keys, questions, strict=True) if self._cache.get(key) is None}
        replies: dict[str, Reply] = {}
        if fresh:
            pool = ThreadPoolExecutor(min(self.concurrency, len(fresh)), thread_name_prefix="judge")
            try:
                asked = pool.map(lambda key: self._ask(key, fresh[key], model, schema), fresh)
                replies = dict(zip(fresh, asked, strict=True))
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C the rest is not waited for
        out = []
        for key in keys:
            if (reply := replies.pop(key, None)) is None:  # known before, or asked a moment ago for another place
                found = self._cache.get(key)
                assert found is not None
                reply = Reply(found, cached=True)
                with self._lock:
                    self.usage.cached += 1
            out.append(reply)
        return out

    def chat(self, messages: Messages, *, seed: int | None = None) -> Reply:
        """Send one conversation and return the reply, whatever it says; nothing is cached.

        Args:
            messages: the conversation.
            seed: of the service's sampling, where it has one; None leaves it to the service.

        Raises:
            JudgeError: the service cannot be reached, or refuses.
        """
        model, seeded = self.model, {} if seed is None else {"seed": seed}

        def send(client: Any) -> Reply:
            return _reply(client.chat.completions.create(model=model, messages=messages, **self.parameters, **seeded))

        reply: Reply = self._call_service(send)
        self._count(reply)
        return reply

    def _ask(self, key: str, question: Messages, model: str, schema: Mapping[str, Any]) -> Reply:
        reply: Reply = self._call_service(lambda client: self._complete(client, question, model, schema))
        self._cache.put(key, reply.text)
        self._count(reply)
        return reply

    def _count(self, reply: Reply) -> None:
        """Add a question that the service has answered to the usage."""
        with self._lock:
            self.usage.asked += 1
            self.usage.prompt_tokens += reply.prompt_tokens
            self.usage.completion_tokens += reply.completion_tokens
            self.usage.cost += self.cost(reply)

    def cost(self, reply: Reply) -> float:
        """Cost of a reply at the client's prices; 0 from the cache."""
        sent, received = self.price
        return 0.0 if reply.cached else (sent * reply.prompt_tokens + received * reply.completion_tokens) / 1e6

    def _complete(self, client: Any, question: Messages, model: str, schema: Mapping[str, Any]) -> Reply:
        from openai import BadRequestError, UnprocessableEntityError

        request: dict[str, Any] = {"model": model, "messages": question, **self.parameters}
        wanted = {"type": "json_schema", "json_schema": {"name": "opinion", "strict": True, "schema": dict(schema)}}
        create: Any = client.chat.completions.create
        if self._structured:
            try:
                return _reply(create(**request, response_format=wanted))
            except (BadRequestError, UnprocessableEntityError):
                plain = _reply(create(**request))  # raises where something else was wrong
                self._structured = False
                return plain
        return _reply(create(**request))

    def _call_service(self, call: Callable[[Any], Any]) -> Any:
        """Call the service with a client of it, if the circuit breaker allows it.

        Raises:
            JudgeError: the breaker is open, or the service does not answer, or refuses.
        """
        try:
            trial = self.breaker.admit()
        except UnreachableError as error:
            raise JudgeError(str(error)) from error
        client = self._client.with_options(max_retries=0) if trial else self._client
        with self.breaker.watching(absent=AbsentError, refused=JudgeError), self._readable_errors():
            return call(client)

    @contextmanager
    def _readable_errors(self) -> Iterator[None]:
        """A context in which an error of the service becomes a message of one line without the key."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAIError

        try:
            yield
        except APITimeoutError as error:
            raise AbsentError(f"{self.url} did not answer in time; give it more (timeout=...)") from error
        except APIConnectionError as error:
            why = error.__cause__ or error
            raise AbsentError(f"{self.url} cannot be reached ({type(why).__name__}: {why})") from error
        except APIStatusError as error:
            said = shorten(error.message.replace(self._key, "***") if self._key else error.message, 300)
            hint = f"; set {KEY_VARIABLE} in the environment" if error.status_code in (401, 403) else ""
            raise JudgeError(f"{self.url} refused with status {error.status_code}: {said}{hint}") from error
        except (OpenAIError, ValueError) as error:
            raise JudgeError(f"{self.url} replied with something else than a chat completion: {error}") from error


def _reply(completion: Any) -> Reply:
    choices = getattr(completion, "choices", None)
    if not choices:
        raise ValueError(shorten(str(completion)))
    text, usage = choices[0].message.content or "", completion.usage
    if usage is None:
        return Reply(text)
    return Reply(text, usage.prompt_tokens or 0, usage.completion_tokens or 0)


def _key(host: str) -> str:
    """The key to send to a host; empty for none. A key of one company is never sent to another's machines."""
    key = os.environ.get(KEY_VARIABLE, "")
    if not key and (host == "openai.com" or host.endswith(".openai.com")):
        key = os.environ.get("OPENAI_API_KEY", "")
    return key


def _client(url: str, key: str, timeout: float, retries: int) -> OpenAI:
    try:
        from openai import OpenAI
    except ImportError as error:
        raise ConfigError("a judge needs the openai package: pip install 'rlhf-gym[judge]'") from error
    # The package would read its own variables: organisation and project must not be sent to other hosts.
    return OpenAI(
        base_url=url, api_key=key or "none", timeout=timeout, max_retries=retries, organization="", project=""
    )
