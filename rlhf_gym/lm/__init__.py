"""Language models: loading, tokenizers, adapters, caches of keys and values, decoding, log-probabilities.

The names below are imported when they are first used: torch and transformers take seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_gym.lm.decoding import CachedDecoder, Generation, generate
    from rlhf_gym.lm.language_model import LanguageModel, Seq2SeqModel
    from rlhf_gym.lm.log_probs import response_log_probs, token_log_probs
    from rlhf_gym.lm.lora import Lora, adapted, load_adapter, save_adapter
    from rlhf_gym.lm.sampling import Limits, Sampling
    from rlhf_gym.lm.tokenizer import HubTokenizer, Tokenizer, load_tokenizer

__all__ = [
    "CachedDecoder",
    "Generation",
    "HubTokenizer",
    "LanguageModel",
    "Limits",
    "Lora",
    "Sampling",
    "Seq2SeqModel",
    "Tokenizer",
    "adapted",
    "generate",
    "load_adapter",
    "load_tokenizer",
    "response_log_probs",
    "save_adapter",
    "token_log_probs",
]

_PLACES = {
    "decoding": ("CachedDecoder", "Generation", "generate"),
    "language_model": ("LanguageModel", "Seq2SeqModel"),
    "log_probs": ("response_log_probs", "token_log_probs"),
    "lora": ("Lora", "adapted", "load_adapter", "save_adapter"),
    "sampling": ("Limits", "Sampling"),
    "tokenizer": ("HubTokenizer", "Tokenizer", "load_tokenizer"),
}


def __getattr__(name: str) -> Any:
    """Import a name from its file when it is first used."""
    from importlib import import_module

    for file, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
