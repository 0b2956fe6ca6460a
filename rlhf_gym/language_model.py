"""A causal language model from Hugging Face, as the house uses it: last hidden states first, logits only where needed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as hub_logging

from rlhf_gym.errors import ModelError
from rlhf_gym.tokenizer import HubTokenizer, Tokenizer, cannot_load, load_tokenizer, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LanguageModel:
    """Any Hugging Face causal language model, with its tokenizer.

    Dropout is off and stays off: a policy whose log-probabilities change from call to call has no ratio of 1.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        name: the name it was loaded from.

    Attributes:
        context_length: most tokens (prompt and response) that the model can see.
        vocab_size: number of logits.
        hidden_size: width ``D`` of the last hidden states.

    Raises:
        ModelError: the model's logits are not a known function of its last hidden states.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, name: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        config = model.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.context_length = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
        head = model.get_output_embeddings()
        if head is None:
            raise ModelError(f"{name!r} ({type(model).__name__}) has no language-model head; expected a causal LM")
        self.vocab_size = int(head.weight.shape[0])
        tokenizer.vocab_size = max(tokenizer.vocab_size, self.vocab_size)
        self._check_logits()

    @classmethod
    def load(
        cls,
        name_or_path: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "float32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        tokenizer: Tokenizer | None = None,
    ) -> LanguageModel:
        """Load a model and its tokenizer.

        Args:
            name_or_path: ``"embedded"``, a folder, ``folder:file.gguf``, or a name on the Hugging Face hub.
            device: ``"cpu"``, ``"cuda"``, ..., or ``"auto"``: a GPU where there is one.
            dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            revision: commit, tag or branch on the hub.
            trust_remote_code: let the hub's repository run its own Python code here. Off unless you trust it.
            tokenizer: use this one instead of the model's own.

        Raises:
            ModelError: nothing by that name can be loaded, or it is not a causal language model.
        """
        if dtype not in DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        tokenizer = tokenizer or load_tokenizer(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        source, gguf = resolve(name_or_path)
        options: dict[str, Any] = {
            "dtype": DTYPES[dtype],
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        if gguf:
            from transformers import GgufConfig

            options |= {"gguf_file": gguf, "quantization_config": GgufConfig(dequantize=True)}
        else:
            # A pickle can run code when it is opened; safetensors cannot.
            options["use_safetensors"] = True
        bars = hub_logging.is_progress_bar_enabled()
        hub_logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(source, **options)
        except Exception as error:  # transformers raises a dozen kinds
            raise cannot_load("language model", name_or_path, error) from error
        finally:
            if bars:
                hub_logging.enable_progress_bar()
        return cls(model.to(device), tokenizer, name_or_path)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def trunk(self) -> nn.Module:
        """The model without its head."""
        trunk = self.model.base_model
        assert isinstance(trunk, nn.Module)
        return trunk

    def hidden(
        self,
        ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states, after the final norm.

        Args:
            ids: int64 ``[B, T]``.
            attention_mask: None for plain causal attention (right padding needs no more), or bool ``[B, 1, T, K]``, True
                where a query may look at a key.
            position_ids: int64 ``[B, T]``; None counts from 0.
            cache: a transformers ``Cache`` to read from and append to.

        Returns:
            ``[B, T, D]`` in the model's dtype.
        """
        if attention_mask is not None and self.model.config._attn_implementation == "eager":
            low = torch.finfo(self.model.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=self.model.dtype).masked_fill(~attention_mask, low)
        out = self.trunk(
            input_ids=ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden = out.last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` in float32 from last hidden states ``[..., D]``."""
        config = self.model.config.get_text_config()
        logits = self.model.get_output_embeddings()(hidden).float()
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        assert isinstance(logits, Tensor)
        return logits

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Hidden states and head must give what the whole model gives; a family that post-processes logits is refused."""
        ids = torch.arange(1, 5, device=self.device)[None] % self.vocab_size
        whole = self.model(ids).logits.float()
        ours = self.logits(self.hidden(ids))
        tolerance = 1e-4 if self.model.dtype == torch.float32 else 5e-2
        if not torch.allclose(whole, ours, rtol=tolerance, atol=tolerance):
            raise ModelError(
                f"{type(self.model).__name__} computes its logits in a way that rlhf-gym does not know (largest "
                f"difference {(whole - ours).abs().max():.3g}); use another model family, or report this one"
            )

    def frozen_copy(self) -> LanguageModel:
        """A deep copy that takes no gradients: the reference that KL divergence is measured from."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model).requires_grad_(False).eval()
        return other

    def check_fits(self, prompt_length: int, max_new_tokens: int) -> None:
        """Raise :class:`ModelError` unless a prompt and a response of these lengths fit in the context."""
        if prompt_length + max_new_tokens > self.context_length:
            raise ModelError(
                f"a prompt of {prompt_length} tokens and a response of up to {max_new_tokens} do not fit in the "
                f"{self.context_length} tokens of {self.name!r}: shorten the prompt to at most "
                f"{self.context_length - max_new_tokens} tokens, or allow shorter responses"
            )

    def save(self, path: Path | str) -> None:
        """Write weights (safetensors), configuration and tokenizer to a folder that :meth:`load` reads."""
        path = Path(path)
        bars = hub_logging.is_progress_bar_enabled()
        hub_logging.disable_progress_bar()
        try:
            self.model.save_pretrained(path)
        finally:
            if bars:
                hub_logging.enable_progress_bar()
        if isinstance(self.tokenizer, HubTokenizer):
            self.tokenizer.hub.save_pretrained(path)
