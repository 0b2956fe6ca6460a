"""Weights in 4 bits, of a base that an adapter learns on (QLoRA; Dettmers et al. 2023).

A frozen model's linear layers hold 4-bit NormalFloat numbers, a scale for each 64 of them, and one for each 256 scales: about
half a byte a weight. They are decoded for every product, which is then computed in the dtype of the other weights (or rounded
further by :mod:`rlhf_gym.lm.precision`). Embeddings, norms and the output layer stay whole. The library is bitsandbytes
(extra ``quantized``), for GPUs; it computes on processors too, slowly.
"""

from __future__ import annotations

import copy
import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_gym.errors import ConfigError, ModelError


def require_bitsandbytes(what: str, *others: str) -> None:
    """Refuse to go on without bitsandbytes; it is not imported, which takes seconds.

    Args:
        what: the setting that needs it.
        others: further libraries of the extra that it needs.

    Raises:
        ConfigError: it is not installed.
    """
    if missing := [name for name in ("bitsandbytes", *others) if find_spec(name) is None]:
        raise ConfigError(f"{what} needs {' and '.join(missing)}: pip install 'rlhf-gym[quantized]'")


def import_bitsandbytes() -> Any:
    """The library, whose own types are incomplete."""
    import bitsandbytes

    return bitsandbytes


def _other_than_the_kernel(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")


# It warns of an optional kernel for processors that was not downloaded, whoever imports it (peft does, where it is installed).
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_other_than_the_kernel)


def quantized_options(quantization: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Options of ``from_pretrained`` for a model whose weights are quantized while they are read.

    Args:
        quantization: ``"nf4"``.
        dtype: of the weights that stay whole, and of products.
        device: where the weights are to be: they never stand there whole.

    Raises:
        ModelError: there is no such quantization.
        ConfigError: bitsandbytes is not installed.
    """
    if quantization != "nf4":
        raise ModelError(f"unknown quantization {quantization!r}; expected 'nf4', or None for whole weights")
    require_bitsandbytes(f"quantization={quantization!r}", "accelerate")
    from transformers import BitsAndBytesConfig

    untyped: Any = BitsAndBytesConfig
    config = untyped(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def quantization_of(network: nn.Module) -> str | None:
    """The kind of 4-bit numbers that a network's linear layers hold; None where they hold whole ones."""
    return next((str(layer.weight.quant_type) for layer in network.modules() if in_four_bits(layer)), None)  # type: ignore[union-attr]


def in_four_bits(layer: nn.Module) -> bool:
    """True of a linear layer of bitsandbytes with weights in 4 bits."""
    # Its own weight: peft's layers answer with that of the layer beneath them.
    return getattr(layer._parameters.get("weight"), "quant_state", None) is not None


def settle(network: PreTrainedModel) -> None:
    """Freeze a loaded network that is quantized, and have its layers leave their weights alone.

    On processors with units for bfloat16 bitsandbytes rearranges them in the first pass, for one kernel; copies that share
    tensors, and what is saved, count on their order.

    Raises:
        ModelError: it is quantized in a way that is not known here (a repository may hold such weights).
    """
    kind = getattr(network, "quantization_method", None)
    if kind is None:
        return
    if not getattr(network, "is_loaded_in_4bit", False):
        raise ModelError(
            f"the weights of {network.config.name_or_path!r} are stored quantized ({getattr(kind, 'value', kind)}), which is "
            "not read here; give a repository with whole weights, and quantization='nf4' where they are to take 4 bits"
        )
    network.requires_grad_(False)
    for layer in network.modules():
        if in_four_bits(layer):
            vars(layer)["support_avx512bf16_for_cpu"] = False


@torch.no_grad()
def whole_weight(layer: nn.Module) -> Tensor:
    """A 4-bit layer's weight as numbers, as its network's family stores it: ``[out, in]``, of a Conv1D ``[in, out]``."""
    weight: Any = layer.weight
    return as_stored(layer, import_bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state))


def as_stored(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix of a linear layer as its network's family stores it.

    Args:
        layer: the layer; in 4 bits its weight is ``[out, in]`` whatever the family.
        matrix: of the layer's own shape, ``[out, in]`` in 4 bits.

    Returns:
        ``[out, in]``; ``[in, out]`` of a Conv1D.
    """
    turned = in_four_bits(layer) and issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
    return matrix.T.contiguous() if turned else matrix


def without_codes(network: nn.Module) -> dict[str, Tensor]:
    """A network's ``state_dict``, each tensor of its own shape ``[...]``, without what 4-bit weights are decoded by."""
    codes = tuple(f"{name}.weight." for name, layer in network.named_modules() if in_four_bits(layer))
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(codes)}


def whole_weights(network: nn.Module) -> dict[str, Tensor]:
    """A network's ``state_dict``, each tensor of its own shape ``[...]``, with all weights as numbers."""
    layers = {name: layer for name, layer in network.named_modules() if in_four_bits(layer)}
    return without_codes(network) | {f"{name}.weight": whole_weight(layer) for name, layer in layers.items()}


def save_whole(network: PreTrainedModel, weights: dict[str, Tensor], folder: Any) -> None:
    """Save a network that is quantized as one that is not.

    Args:
        network: gives class and configuration.
        weights: all of them as numbers, each of its own shape ``[...]``.
        folder: for ``save_pretrained``.
    """
    config = copy.deepcopy(network.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        whole = type(network)(config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = network.generation_config
    whole.save_pretrained(folder)
