"""Tiny language models with random weights, built in a moment, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import transformers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from rlhf_gym.lm.language_model import LanguageModel, Seq2SeqModel

# Threads cost more than they bring in matrices this small, and a test run may share its cores.
torch.set_num_threads(1)


class LetterTokenizer:
    """One token a character: id 0 is EOS, 1 is padding, 2 and on are ``chr(97)``, ``chr(98)``, ..."""

    name = "letters"
    eos_id = 0
    pad_id = 1

    def __init__(self, vocab_size: int = 28) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 97 + 2 for c in text]

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text) or [self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i - 2 + 97) for i in ids if i > 1)


def tiny_language_model(
    kind: Literal["gpt2", "llama"] = "gpt2",
    *,
    vocab_size: int = 28,
    hidden: int = 32,
    layers: int = 2,
    context: int = 64,
    seed: int = 0,
    scale: float = 1.0,
) -> LanguageModel:
    """A random model; ``llama`` has rotary positions and grouped keys, ``gpt2`` learned absolute positions.

    ``scale`` multiplies the weights: above 1, distributions get less even.
    """
    torch.manual_seed(seed)
    model: PreTrainedModel
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=context,
                n_embd=hidden,
                n_layer=layers,
                n_head=4,
                bos_token_id=0,
                eos_token_id=0,
            )
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
                num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return LanguageModel(model, LetterTokenizer(vocab_size), f"tiny-{kind}")


def family(name: str, **options: Any) -> LanguageModel:
    """A random model of any transformers family: ``{name}Config(**options)``, ``{name}ForCausalLM``; 28 letters."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    return LanguageModel(model, LetterTokenizer(28), name)


def tiny_seq2seq(
    kind: Literal["t5", "bart"] = "t5", *, vocab_size: int = 28, hidden: int = 32, seed: int = 0, scale: float = 1.0
) -> Seq2SeqModel:
    """A random encoder-decoder model; ``t5`` has relative positions, ``bart`` learned absolute ones."""
    torch.manual_seed(seed)
    ids: dict[str, Any] = {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1, "vocab_size": vocab_size}
    model: PreTrainedModel
    if kind == "t5":
        config = T5Config(
            d_model=hidden, d_kv=hidden // 4, d_ff=2 * hidden, num_layers=2, num_decoder_layers=2, num_heads=4, **ids
        )
        model = T5ForConditionalGeneration(config)
    else:
        model = BartForConditionalGeneration(
            BartConfig(
                d_model=hidden, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                encoder_ffn_dim=2 * hidden, decoder_ffn_dim=2 * hidden, max_position_embeddings=64, bos_token_id=0,
                forced_eos_token_id=None, **ids,
            )
        )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return Seq2SeqModel(model, LetterTokenizer(vocab_size), f"tiny-{kind}")
