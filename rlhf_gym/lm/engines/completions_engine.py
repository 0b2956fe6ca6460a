"""An engine behind HTTP: a vLLM server, or another that speaks its completions protocol.

Requests are OpenAI's completions with token-id prompts, one response each, so that every response has a seed of its own. The
reply must have the drawn tokens' ids (``return_token_ids``) and their log-probabilities. The server is asked for the version of
its weights before and after each batch; responses of a batch in which it changed are dropped and generated again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rlhf_gym.errors import ConfigError, EngineError
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.engines.engine import ResponseReader, ResponseSettings, request_seed
from rlhf_gym.lm.engines.folder_engine import FolderEngine
from rlhf_gym.lm.engines.server_connection import ServerAbsentError, ServerConnection, ServerRefusedError
from rlhf_gym.lm.engines.server_weights import ServerWeights, choose_weights
from rlhf_gym.lm.language_model import LanguageModel

ATTEMPTS = 5
"""Times that the missing responses of a batch are sent before the engine counts as dead."""
SUPPRESSED = -100.0
"""The bias of tokens that must not be drawn, the lowest that OpenAI's protocol has."""
MOST_TEMPERATURE = 4.0
"""The temperature above which that bias, divided by it, would not be near to never."""


def sampling_fields(settings: ResponseSettings, max_tokens: int, min_tokens: int) -> dict[str, Any]:
    """The settings in vLLM's words: those of its completions protocol and of its ``SamplingParams``.

    Args:
        settings: what responses are drawn with.
        max_tokens: most tokens to draw.
        min_tokens: no end is drawn before this many.
    """
    limits, sampling = settings.limits, settings.sampling
    fields: dict[str, Any] = {
        "max_tokens": max_tokens, "min_tokens": min_tokens, "temperature": sampling.temperature, "top_k": sampling.top_k,
        "top_p": sampling.top_p, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        # The ends are ours, whatever the server's own configuration says.
        "ignore_eos": True, "stop_token_ids": list(limits.eos_ids), "logprobs": 0,
    }  # fmt: skip
    if settings.stop:
        fields |= {"stop": list(settings.stop), "include_stop_str_in_output": True, "skip_special_tokens": False}
    if limits.suppress_tokens:
        fields["logit_bias"] = {str(token): SUPPRESSED for token in limits.suppress_tokens}
    return fields


def refuse_for_vllm(name: str, model: LanguageModel, settings: ResponseSettings) -> None:
    """Refuse what no vLLM engine can do.

    Args:
        name: the engine's name.
        model: the model that learns.
        settings: what responses are drawn with.

    Raises:
        ConfigError: names the engine and the setting.
    """
    if model.encoder_decoder:
        raise ConfigError(
            f"engine {name!r} generates with causal models only, and {model.name!r} is an encoder-decoder model"
        )
    if settings.limits.suppress_tokens and settings.sampling.temperature > MOST_TEMPERATURE:
        raise ConfigError(
            f"engine {name!r} keeps tokens from being drawn by a bias of {SUPPRESSED:g}, which a temperature above "
            f"{MOST_TEMPERATURE:g} weakens: got {settings.sampling.temperature:g}"
        )


class CompletionsEngine(FolderEngine):
    """A server of OpenAI-compatible completions.

    Args:
        name: the engine's name, for messages.
        url: the server's address.
        folder: a folder that this machine and the server's see under one path; None takes a new one for temporary files.
        timeout: seconds to wait for one response, the time that it waits at the server for others included.
        patience: seconds to go on trying where the server does not answer.
        concurrency: most requests at once.

    Attributes:
        stale: responses that were dropped since they may come from other weights.
        reloads: times that a server had lost the weights and got them again.

    Raises:
        ConfigError: no address, or numbers out of their range.
    """

    def __init__(
        self, name: str, url: str, *, folder: str | Path | None = None, timeout: float = 600.0, patience: float = 120.0,
        concurrency: int = 256,
    ) -> None:  # fmt: skip
        super().__init__(name, folder)
        self.connection = ServerConnection(name, url, timeout=timeout, patience=patience)
        self.concurrency = concurrency
        self.stale = self.reloads = self.resent = 0
        self._run = uuid.uuid4().hex[:8]  # two runs at one server must not take each other's weights for their own
        self._weights: ServerWeights | None = None

    def refuse(self, model: LanguageModel, settings: ResponseSettings) -> None:
        """Refuse encoder-decoder models, and temperatures that would weaken the ban of tokens.

        Args:
            model: the model that learns.
            settings: what responses are drawn with.
        """
        refuse_for_vllm(self.name, model, settings)

    def connect(self) -> None:
        """Ask the server which paths it offers."""
        self._paths()

    def _paths(self) -> list[str]:
        said = self.connection.call("GET", "/openapi.json")
        paths = said.get("paths") if isinstance(said, dict) else None
        if not isinstance(paths, dict) or "/v1/completions" not in paths:
            raise EngineError(
                f"{self.connection.url} offers no /v1/completions: expected a vLLM server, or one that speaks like it"
            )
        return list(paths)

    def put(self, model: LanguageModel, label: str, *, is_new: bool) -> None:
        """Send the weights to the server, in the way that it can take this model's.

        Args:
            model: the model that learns.
            label: of these weights.
            is_new: True where the weights before were another model's.
        """
        if is_new:
            self._weights = None  # what follows may fail, and this way was the other model's
        if self._weights is None:
            self._weights = choose_weights(self.connection, self._folder, model, self._paths())
        self._weights.put(model, f"rlhf-gym-{self._run}-{label}")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: ResponseSettings,
        *,
        seed: int,
        episodes: Sequence[int],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Generate one response to each prompt; see :meth:`Engine.generate`.

        Args:
            prompts: ids of each prompt.
            settings: what the responses are drawn with.
            seed: seed of the noise.
            episodes: number of each response; its noise is the same whenever it is sent.
            on_progress: called with the number of responses finished so far.

        Raises:
            EngineError: the server does not answer, refuses, or fails again and again.
        """
        assert self._weights is not None
        assert self._model is not None
        if not prompts:
            return []
        reader = ResponseReader(self.name, self._model, settings)

        def respond(i: int) -> Generation:
            return self._respond(prompts[i], settings, reader, request_seed(seed, episodes[i]))

        done: dict[int, Generation] = {}
        problem: EngineError | None = None
        for attempt in range(ATTEMPTS):
            if problem is not None:  # it may be overloaded, or about to end
                time.sleep(min(self.connection.patience, 0.25 * 2**attempt))
            if not self._weights.held():  # a server that was restarted, or another run's weights
                self.reloads += 1
                self._weights.load()
            missing = [i for i in range(len(prompts)) if i not in done]
            self.resent += len(missing) if attempt else 0
            fresh, problem = self._send(missing, respond, len(done), on_progress)
            if self._weights.held():
                done |= fresh
            else:
                self.stale += len(fresh)
            if len(done) == len(prompts):
                return [done[i] for i in range(len(prompts))]
        why = problem or EngineError(
            f"the weights of engine {self.name} were changed by somebody else: give each run a server"
        )
        raise EngineError(f"{why} ({len(done)} of {len(prompts)} responses after {ATTEMPTS} attempts)")

    def _send(
        self,
        wanted: list[int],
        respond: Callable[[int], Generation],
        before: int,
        on_progress: Callable[[int], None] | None,
    ) -> tuple[dict[int, Generation], EngineError | None]:
        """Send requests, each once; returns the responses that came, and what kept the others from coming.

        Args:
            wanted: numbers of the responses.
            respond: sends a request.
            before: responses that came earlier.
            on_progress: called with the number of responses so far.
        """
        finished: dict[int, Generation] = {}
        problem: EngineError | None = None
        pool = ThreadPoolExecutor(min(self.concurrency, len(wanted)), thread_name_prefix="engine")
        whole = False
        try:
            number = {pool.submit(respond, i): i for i in wanted}
            for future in as_completed(number):
                if future.cancelled():
                    continue
                try:
                    finished[number[future]] = future.result()
                except (ServerAbsentError, ServerRefusedError) as error:
                    # 404: the adapter is gone with the server that was told of it. 5xx: the server's engine has died.
                    if isinstance(error, ServerRefusedError) and error.status < 500 and error.status != 404:
                        raise
                    problem = problem or error
                    for other in number:
                        other.cancel()
                if on_progress is not None:
                    on_progress(before + len(finished))
            whole = True
        finally:
            if not whole:  # an error or Ctrl-C: do not wait for the rest
                self.connection.abort()
            pool.shutdown(wait=whole, cancel_futures=True)
        return finished, problem

    def _respond(
        self, prompt: Sequence[int], settings: ResponseSettings, reader: ResponseReader, seed: int
    ) -> Generation:
        """One response. Where the server's text ends at a stop sequence that ours does not have, it goes on from there."""
        limits = settings.limits
        ids, log_probs = self._complete(prompt, settings, limits.max_new_tokens, limits.min_new_tokens, seed)
        response = reader.read(prompt, ids, log_probs, self.version)
        if response is None:
            rest = limits.max_new_tokens - len(ids)
            without = ResponseSettings(limits, settings.sampling)
            begun = [*prompt, *ids]
            more = self._complete(begun, without, rest, max(0, limits.min_new_tokens - len(ids)), request_seed(seed, 1))
            response = reader.read(prompt, [*ids, *more[0]], [*log_probs, *more[1]], self.version)
        if response is None:
            raise EngineError(
                f"engine {self.name} ended a response after {len(ids)} of {limits.max_new_tokens} tokens without an end: give "
                f"its server room for prompts of {len(prompt)} tokens and responses (--max-model-len)"
            )
        return response

    def _complete(
        self, prompt: Sequence[int], settings: ResponseSettings, max_tokens: int, min_tokens: int, seed: int
    ) -> tuple[list[int], list[float]]:
        assert self._weights is not None
        model = self._weights.model
        reply = self.connection.call_once("POST", "/v1/completions", {
            "model": model, "prompt": list(prompt), "seed": seed, "return_token_ids": True,
            **sampling_fields(settings, max_tokens, min_tokens),
        })  # fmt: skip
        try:
            choice = reply["choices"][0]
            ids, log_probs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
            served, reason = reply.get("model", model), choice.get("finish_reason")
        except (TypeError, KeyError, IndexError, AttributeError):
            raise EngineError(f"engine {self.name} replied with something else than a completion") from None
        for value, kind, field, words in (
            (ids, int, "return_token_ids", "ids of the drawn tokens"),
            (log_probs, int | float, "logprobs", "log-probabilities of the drawn tokens"),
        ):
            if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
                raise EngineError(f"engine {self.name} returns no {words} ({field}), which learning needs; vLLM does")
        if served != model or reason == "abort":
            raise ServerAbsentError(f"engine {self.name} answered for {served!r} in place of {model!r} ({reason})")
        assert ids is not None
        assert log_probs is not None
        return ids, [float(one) for one in log_probs]

    def metrics(self) -> dict[str, float]:
        """Counts of responses dropped and sent again, and of weights loaded again, since the last call."""
        counts = {"engine/stale": self.stale, "engine/resent": self.resent, "engine/reloads": self.reloads}
        self.stale = self.resent = self.reloads = 0
        return {name: float(count) for name, count in counts.items()}

    def close(self) -> None:
        """End requests under way, and remove temporary weights."""
        self.connection.abort()
        self._weights = None
        super().close()
