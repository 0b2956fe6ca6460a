"""Files that another model left in a folder, and that would be read together with those of the model just saved there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "source.spm",
    "target.spm",
)  # fmt: skip
"""What tokenizers of transformers are read from."""
TEMPLATES = "additional_chat_templates"
WEIGHT_FILES = (
    "model.safetensors", "model.safetensors.index.json", "generation_config.json", "adapter_config.json",
    "adapter_model.safetensors",
)  # fmt: skip
"""What decides over a model besides ``config.json``: with an adapter's configuration a folder is no whole model."""


def remove_weights(folder: Path) -> None:
    """Remove what would be read before, or with, the weights that are to be written to a folder.

    Args:
        folder: it may be missing.
    """
    for name in WEIGHT_FILES:
        (folder / name).unlink(missing_ok=True)


def remove_other_tokenizers(folder: Path, written: Iterable[str | Path]) -> None:
    """Remove the tokenizer files of a folder that were not written just now: a chat template is read wherever it lies.

    Args:
        folder: where a model was saved.
        written: paths of the tokenizer's files. They are not removed beforehand, as a tokenizer may copy them from there.
    """
    kept = {Path(file).resolve() for file in written}
    for name in TOKENIZER_FILES:
        if (folder / name).resolve() not in kept:
            (folder / name).unlink(missing_ok=True)
    more = folder / TEMPLATES
    for file in more.glob("*.jinja"):
        if file.resolve() not in kept:
            file.unlink()
    if more.is_dir() and not any(more.iterdir()):
        shutil.rmtree(more)
