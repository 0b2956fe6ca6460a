"""The engine ``transformers``: its continuous batching, with the very weights that learn, or their values rounded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed
from typing import Any

import torch
import transformers

from rlhf_gym.errors import ConfigError, EngineError
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.engines.engine import Engine, ResponseReader, ResponseSettings, request_seed
from rlhf_gym.lm.language_model import LanguageModel

TRANSFORMERS = "transformers"
_LOG = logging.getLogger("ContinuousBatchingLogger")
PAGE = 32
"""Tokens of a block of keys and values on the CPU, where transformers' own size would waste most of each."""


class TransformersEngine(Engine):
    """``generate_batch`` of transformers.

    Raises:
        ConfigError: the installed version has no continuous batching that returns log-probabilities.
    """

    def __init__(self) -> None:
        super().__init__(TRANSFORMERS)
        try:
            self._make_config: Any = getattr(transformers.generation, "ContinuousBatchingConfig")  # noqa: B009
            self._make_config(return_logprobs=True, seed=0)
        except (AttributeError, TypeError):
            raise ConfigError(
                "engine 'transformers' needs a transformers whose continuous batching returns log-probabilities (5.24 does), "
                f"found {installed('transformers')}"
            ) from None
        self._model: LanguageModel | None = None
        self._rounded: torch.nn.Module | None = None

    def refuse(self, model: LanguageModel, settings: ResponseSettings) -> None:
        """Refuse models that cannot, and a minimum length, which continuous batching has no means for.

        Args:
            model: the model that learns.
            settings: what responses are drawn with.

        Raises:
            ConfigError: names the engine and what it cannot do.
        """
        if model.encoder_decoder or not isinstance(model.model, transformers.GenerationMixin):
            raise ConfigError(
                f"engine {self.name!r} generates with causal models of transformers, and {model.name!r} is none (an adapter "
                "is not, either)"
            )
        if settings.limits.min_new_tokens:
            raise ConfigError(
                f"engine {self.name!r} cannot keep responses from ending before min_new_tokens="
                f"{settings.limits.min_new_tokens}: take another engine, or no minimum length"
            )

    def load_weights(self, model: LanguageModel, version: int) -> None:
        """Take the model itself; where its products are rounded, a copy of its network whose weights are.

        Batching runs in a thread of its own, which autocast does not reach.

        Args:
            model: the model that learns.
            version: number of its weights.
        """
        self._model, self.version = model, version
        if model.product_dtype is None:
            return
        if self._rounded is None:
            self._rounded = copy.deepcopy(model.model).requires_grad_(False)
            for weight in self._rounded.parameters():  # not buffers: rotary frequencies are float32 in every precision
                weight.data = weight.data.to(model.product_dtype)
        with torch.no_grad():
            for rounded, weight in zip(self._rounded.parameters(), model.model.parameters(), strict=True):
                rounded.copy_(weight)

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

        The noise depends on the seed and the whole batch. Stop sequences are looked for afterwards.

        Args:
            prompts: ids of each prompt.
            settings: what the responses are drawn with.
            seed: seed of the noise.
            episodes: number of each response.
            on_progress: called once, at the end.

        Raises:
            EngineError: transformers failed.
        """
        assert self._model is not None
        if not prompts:
            return []
        limits, sampling = settings.limits, settings.sampling
        network = self._model.model if self._rounded is None else self._rounded
        config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=True, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
            max_new_tokens=limits.max_new_tokens, eos_token_id=list(limits.eos_ids),
            pad_token_id=self._model.tokenizer.pad_id, suppress_tokens=list(limits.suppress_tokens) or None,
        )  # fmt: skip
        batching: dict[str, Any] = {"return_logprobs": True, "seed": request_seed(seed, episodes[0]) % (1 << 31)}
        if self._model.device.type == "cpu":
            longest = max(map(len, prompts)) + limits.max_new_tokens
            batching |= {"page_size": PAGE, "num_blocks": len(prompts) * -(-longest // PAGE) + 1}
        state, level = torch.random.get_rng_state(), _LOG.level
        _LOG.setLevel(
            logging.ERROR
        )  # it warns of processors of logits that it does not know; the reader checks their work
        try:
            outputs = network.generate_batch(  # type: ignore[operator]
                [list(prompt) for prompt in prompts], generation_config=config, progress_bar=False,
                continuous_batching_config=self._make_config(**batching), warmup=self._model.device.type != "cpu",
            )  # fmt: skip
        finally:
            torch.random.set_rng_state(state)  # training's own noise goes on as if nobody had drawn
            _LOG.setLevel(level)
        failed = [output.error for output in outputs.values() if output.error]
        if len(outputs) != len(prompts) or failed:
            why = failed[0] if failed else f"{len(outputs)} of {len(prompts)} responses came"
            raise EngineError(f"engine {self.name}: {why}")
        reader, responses = ResponseReader(self.name, self._model, settings), []
        for prompt, output in zip(prompts, outputs.values(), strict=True):
            responses.append(reader.read_whole(prompt, output.generated_tokens, output.logprobs, self.version))
        if on_progress is not None:
            on_progress(len(responses))
        return responses

    def close(self) -> None:
        """Let go of the copy."""
        self._rounded = None
