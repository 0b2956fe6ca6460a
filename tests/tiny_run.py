"""A tiny language model and a configuration of the whole loop that runs in seconds, for tests of loop and CLI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

from waiting import LONG

from rlhf_gym.loop.config_file import Settings, merge

TINY: Settings = {
    "task": {"max_new_tokens": 6},
    "sampling": {"prompts": 12, "candidates": 2, "batch_size": 8},
    "reward_model": {"epochs": 1, "batch_size": 8},
    "agent": {
        "iterations": 4,
        "n_episodes": 8,
        "batch_size": 4,
        "n_epochs": 1,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
    },
    "evaluation": {"prompts": 10, "judge": "readability"},
    "run": {"threads": 1},
}


def save_tiny_model(folder: Path, *, context: int = 64) -> Path:
    """A random GPT-2 of two thin layers with the embedded model's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from rlhf_gym.lm.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("embedded")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=context, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.hub.save_pretrained(folder)
    return folder


def tiny_settings(model: Path, **sections: dict[str, Any]) -> Settings:
    """The tiny configuration, with some sections' values changed."""
    return merge(TINY, {"model": {"name": str(model), "device": "cpu"}}, sections)


def command(*arguments: str | Path) -> list[str]:
    """The command line of a real process of `rlhf-gym`."""
    return [sys.executable, "-m", "rlhf_gym", *map(str, arguments)]


def rlhf_gym(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `rlhf-gym` as a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=LONG, **options)


def closed_pipe() -> TextIO:
    """A pipe to write to that nobody reads, as ``| head`` leaves it."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def metrics_table(run_dir: Path) -> str:
    """The run's table of metrics, as text."""
    return (run_dir / "metrics.csv").read_text()
