"""The benchmark's tokenizer, a character a token, as a Hugging Face tokenizer for TRL."""

from __future__ import annotations

from contenders import PROMPT, SYMBOLS, prompts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = {"<eos>": 0, "<pad>": 1} | {symbol: i for i, symbol in enumerate(SYMBOLS, start=2)}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with the ids of `contenders.py`'s."""
    fast = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<eos>"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def prompt_ids() -> list[list[int]]:
    """The prompts' ids."""
    rows = [[VOCABULARY[symbol] for symbol in prompt] for prompt in prompts()]
    assert all(len(row) == PROMPT for row in rows)
    return rows
