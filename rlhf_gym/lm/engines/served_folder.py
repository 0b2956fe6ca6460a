"""Folders of weights for serving engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rlhf_gym.lm.language_model import LanguageModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OUTPUT_FILE = "model-output-layer.safetensors"


def shared_output(model: LanguageModel) -> tuple[str, str] | None:
    """The names of the weights of input and output embeddings where they are one tensor; None where they are not."""
    network: Any = model.model if model.base is None else model.base.model
    modules = {id(module): name for name, module in network.named_modules()}
    ends = network.get_input_embeddings(), network.get_output_embeddings()
    if ends[1] is None or ends[0].weight is not ends[1].weight:
        return None
    return f"{modules[id(ends[0])]}.weight", f"{modules[id(ends[1])]}.weight"


def save_untied(model: LanguageModel, folder: Path | str) -> None:
    """Write a model as :meth:`LanguageModel.save` does, with an output layer of its own where it shares the input's weights.

    vLLM on a CPU packs the output layer when it starts and, where that is the input's, never again: a server of such a folder
    takes new weights in full.

    Args:
        model: the model.
        folder: created if it is missing.
    """
    folder = Path(folder)
    model.save(folder)
    if (names := shared_output(model)) is None:
        return
    network: Any = model.model if model.base is None else model.base.model
    weight = network.get_output_embeddings().weight.detach().cpu().contiguous()
    save_file({names[1]: weight}, folder / OUTPUT_FILE, metadata={"format": "pt"})
    if (folder / SINGLE).exists():
        first = "model-trunk.safetensors"
        (folder / SINGLE).rename(folder / first)
        with safe_open(folder / first, "pt") as file:
            index: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), first)}
    else:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"][names[1]] = OUTPUT_FILE
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2), encoding="utf-8")


def save_uniform(model: LanguageModel, folder: Path | str) -> None:
    """Write a model whose tokens all have the embedding of the first, so that each is as probable as any other.

    They are not zeros: then an output layer of any weights would give every token the same.

    Args:
        model: a model whose input and output embeddings are one.
        folder: created if it is missing.
    """
    save_untied(model, folder)
    names = shared_output(model) or ()
    for file in Path(folder).glob("*.safetensors"):
        tensors = load_file(file)
        alike = {name: tensor[:1].repeat(len(tensor), 1) for name, tensor in tensors.items() if name in names}
        if alike:
            save_file(tensors | alike, file, metadata={"format": "pt"})
