"""Weights from files: safetensors or GGUF (a pickle only if asked), complete or refused, and ready for fast passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.utils import logging

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.source import ModelSource

UNLIMITED = 1 << 30
"""The context length of a model whose configuration states none."""


def pick_device(device: str) -> torch.device:
    """The device of that name; ``"auto"`` is a GPU where there is one.

    Raises:
        ModelError: no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"unknown device {device!r}; expected 'auto', 'cpu', 'cuda', 'cuda:1', ...") from error


def expect_model(source: ModelSource) -> None:
    """Refuse a folder that holds a LoRA adapter without its base: transformers would look for the base elsewhere.

    Raises:
        ModelError: says which base it was made for.
    """
    file = Path(source.location) / "adapter_config.json"
    if not source.is_folder or not file.is_file():
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise ModelError(
        f"{source.name!r} holds a LoRA adapter and not a whole model (its base: {base or 'not said'}): load the base, and "
        "rlhf_gym.lm.lora.load_adapter(base, folder); or merge the two with peft, and load the result"
    )


def load_weights(
    source: ModelSource, options: dict[str, Any], allow_pickle: bool, *, auto: Any = AutoModelForCausalLM,
    what: str = "language model",
) -> PreTrainedModel:  # fmt: skip
    """The model, all of its weights read from the files.

    Args:
        source: its place.
        options: for ``from_pretrained``.
        allow_pickle: take weights from a pickle where there are no safetensors.
        auto: the transformers class that knows what kind of model it is.
        what: what that kind is called in messages.

    Raises:
        ModelError: it cannot be loaded, is no such model, or lacks weights.
    """
    if source.gguf_file:
        from transformers import GgufConfig

        options = options | {"quantization_config": GgufConfig(dequantize=True)}
    elif not allow_pickle:
        options = options | {"use_safetensors": True}
        folder = Path(source.location)
        pickles = [*folder.glob("pytorch_model*.bin")] if source.is_folder else []
        if pickles and not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{source.name!r} has its weights only as a pickle ({pickles[0].name}), which can run any code when it "
                f"is opened. If you trust it, load it once with allow_pickle=True and save it again as safetensors."
            )
    with no_progress_bars():
        try:
            loaded: Any = auto.from_pretrained(source.location, output_loading_info=True, **options)
        except Exception as error:  # transformers raises a dozen kinds
            raise source.cannot_load(what, error) from error
    model, report = loaded
    if getattr(model, "peft_config", None):
        raise ModelError(
            f"{source.name!r} is a LoRA adapter and not a whole {what}: load its base, and rlhf_gym.lm.lora.load_adapter(base, "
            "folder); or merge the two with peft, and load the result"
        )
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers.
        raise ModelError(
            f"the files of {source.name!r} lack {len(missing)} of the weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}): no trained {what}"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def is_encoder_decoder(source: ModelSource, options: dict[str, Any]) -> bool:
    """Whether the files are of a model that reads prompts with an encoder of their own; False where they do not say."""
    from transformers import AutoConfig

    if source.gguf_file:
        return False  # no such family is stored so, and a GGUF file takes seconds to parse again
    options = {name: value for name, value in options.items() if name != "dtype"}
    try:
        config = AutoConfig.from_pretrained(source.location, **options)
    except Exception:  # loading the weights will say what is wrong
        return False
    return bool(getattr(config, "is_encoder_decoder", False))


def context_length(config: Any) -> int:
    """Most tokens that every layer sees all of."""
    # Names that transformers' configurations give it; GPT-2's n_positions answers to the first.
    names = ["max_position_embeddings", "max_seq_len", "max_sequence_length", "attention_chunk_size"]
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if slides and getattr(config, "use_sliding_window", True):
        names.append("sliding_window")
    return min(int(getattr(config, name, None) or UNLIMITED) for name in names)


@cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """What a network's ``forward`` calls keys and values: ``cache``, or ``past_key_values`` in older transformers."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def fuse_gelu(model: nn.Module) -> None:
    """GPT-2's GELU takes eight operations in transformers; torch's own takes one: a fifth of a decoding step less."""
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())


def expect_padding(model: nn.Module) -> None:
    """Keep transformers from warning of padding without an attention mask: it stands after every position that is read."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _say_nothing  # type: ignore[method-assign]


def _say_nothing(*_: object) -> None:
    pass


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' own progress bars, which would break ours."""
    hub_logging: Any = logging  # it has no types
    shown = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hub_logging.enable_progress_bar()
