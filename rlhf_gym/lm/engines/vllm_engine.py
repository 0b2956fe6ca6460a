"""The engine ``vllm``: vLLM in this process, beside the weights that learn."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_gym.errors import ConfigError, EngineError
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.engines.completions_engine import refuse_for_vllm, sampling_fields
from rlhf_gym.lm.engines.engine import ResponseReader, ResponseSettings, request_seed
from rlhf_gym.lm.engines.folder_engine import FolderEngine
from rlhf_gym.lm.engines.served_folder import save_untied
from rlhf_gym.lm.language_model import LanguageModel

VLLM = "vllm"


class VLLMEngine(FolderEngine):
    """vLLM's ``LLM``, made when the first weights come; later weights are reloaded in place from a folder.

    An adapter is merged into the weights. vLLM takes the precision that the model learns with, and the GPU memory that its own
    variables and defaults say.

    Args:
        folder: where weights are written; None takes a new folder for temporary files.

    Raises:
        ConfigError: vllm is not installed.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        try:
            import vllm
        except ImportError as error:
            raise ConfigError(
                f"engine 'vllm' needs vllm in this environment ({error}): install it, or run a server elsewhere and give "
                "vllm:http://host:port"
            ) from None
        super().__init__(VLLM, folder)
        self._vllm: Any = vllm
        self._llm: Any = None

    def refuse(self, model: LanguageModel, settings: ResponseSettings) -> None:
        """Refuse what no vLLM engine can do, and several processes, whose group vLLM would take for its own.

        Args:
            model: the model that learns.
            settings: what responses are drawn with.

        Raises:
            ConfigError: names it.
        """
        if torch.distributed.is_initialized() and (processes := torch.distributed.get_world_size()) > 1:
            raise ConfigError(
                f"engine 'vllm' generates inside of one process, and {processes} learn together: start a server, and give "
                "engine vllm:http://host:port"
            )
        refuse_for_vllm(self.name, model, settings)

    def put(self, model: LanguageModel, label: str, *, is_new: bool) -> None:
        """Write the weights in the place of the last ones, and load them.

        Args:
            model: the model that learns.
            label: of these weights.
            is_new: True where the weights before were another model's.

        Raises:
            EngineError: vLLM does not load them.
        """
        target = self._folder / "weights"
        shutil.rmtree(target, ignore_errors=True)
        save_untied(model, target)
        try:
            if self._llm is None:
                dtype = str(model.product_dtype or model.model.dtype).removeprefix("torch.")
                self._llm = self._vllm.LLM(
                    model=str(target), dtype=dtype, logprobs_mode="processed_logprobs", generation_config="vllm"
                )
            else:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(target)})
                self._llm.reset_prefix_cache()
        except Exception as error:  # vLLM raises what its workers raise
            raise EngineError(f"engine {self.name} cannot load the weights: {error}") from error

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
            episodes: number of each response, for the noise.
            on_progress: called once, at the end.

        Raises:
            EngineError: vLLM failed.
        """
        assert self._model is not None
        limits = settings.limits
        # Stop sequences are looked for afterwards, by our rules: their text may end a response early by vLLM's own.
        fields = sampling_fields(
            ResponseSettings(limits, settings.sampling), limits.max_new_tokens, limits.min_new_tokens
        )
        bias = {int(token): amount for token, amount in fields.pop("logit_bias", {}).items()}
        each = [
            self._vllm.SamplingParams(
                **fields, logit_bias=bias or None, seed=request_seed(seed, episode), detokenize=False
            )
            for episode in episodes
        ]
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            outputs = self._llm.generate(given, each, use_tqdm=False)
        except Exception as error:
            raise EngineError(f"engine {self.name} failed: {error}") from error
        reader, responses = ResponseReader(self.name, self._model, settings), []
        for prompt, output in zip(prompts, outputs, strict=True):
            drawn = output.outputs[0]
            ids = list(drawn.token_ids)
            log_probs = [float(at[token].logprob) for token, at in zip(ids, drawn.logprobs, strict=True)]
            responses.append(reader.read_whole(prompt, ids, log_probs, self.version))
        if on_progress is not None:
            on_progress(len(responses))
        return responses

    def close(self) -> None:
        """Let vLLM and its memory go, and remove temporary weights."""
        self._llm = None
        super().close()
