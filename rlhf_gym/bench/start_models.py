"""The models that a suite's runs start from: any that a run loads, or small networks with random weights for symbol tasks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.whole_files import whole_folder
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

SIZES = {"layers": 2, "width": 64, "heads": 4}
POSITIONS = 128


def start_model(model: Mapping[str, Any], task: Task, seed: int, folder: Path) -> dict[str, Any]:
    """The settings of the section ``model`` for a run.

    Args:
        model: settings of that section, or ``{random: {layers, width, heads}}``.
        task: the task, whose own symbols a random network reads and writes.
        seed: of the random weights.
        folder: gets the random network, with a Hugging Face tokenizer, so that every trainer can load it.

    Raises:
        ConfigError: an unknown key, or a task without symbols of its own.
    """
    if "random" not in model:
        return dict(model)
    sizes = model["random"] or {}
    if unknown := sorted(set(sizes) - set(SIZES)):
        raise ConfigError(f"a random model has no size {unknown[0]!r}; expected some of {', '.join(SIZES)}")
    if not isinstance(task.tokenizer, SymbolTokenizer):
        raise ConfigError(
            f"a random model needs a task over symbols (copy, reverse, sort, brackets, arithmetic); {task.name!r} needs a "
            "language model"
        )
    if not (folder / "config.json").exists():
        sizes = SIZES | dict(sizes)
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=task.tokenizer.vocab_size, n_positions=POSITIONS, n_embd=sizes["width"], n_layer=sizes["layers"],
            n_head=sizes["heads"], bos_token_id=0, eos_token_id=0, pad_token_id=1,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        with whole_folder(folder) as target:
            GPT2LMHeadModel(config).save_pretrained(target)
            symbol_hub_tokenizer(task.tokenizer.symbols).save_pretrained(target)
    return {"name": str(folder)}


def symbol_hub_tokenizer(symbols: str) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer with the ids of :class:`~rlhf_gym.tasks.symbol_tokenizer.SymbolTokenizer`."""
    ids = {"<eos>": 0, "<pad>": 1} | {symbol: i for i, symbol in enumerate(symbols, start=2)}
    fast = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=fast, eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
