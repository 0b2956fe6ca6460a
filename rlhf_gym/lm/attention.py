"""Attention on processors: never in half precision, whatever other products have, and its small products not by oneDNN.

PyTorch's fused attention multiplies block by block. By oneDNN, which is faster for a model's own products
(:func:`~rlhf_gym.lm.precision.use_fast_float32`), blocks of over 64 keys take four times as long for a token that is decoded,
and twice as long forward and backward. In bfloat16 it is slower than in float32, and rounds more.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhf_gym.lm.precision import multiply_by_onednn, multiplying_by_blas


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    """What transformers calls ``sdpa``, computed on processors as this module says.

    Args:
        module: the attention layer.
        query: ``[B, H, T, D]``.
        key: ``[B, H or a divisor of it, K, D]``.
        value: likewise.
        attention_mask: bool, or a number to be added, broadcast to ``[B, H, T, K]``; None for causal attention.
        given: what the layer gives besides.

    Returns:
        ``[B, T, H, D]``, in the precision of the layer's other products, and None for the weights.
    """
    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else value.dtype
    wide = torch.promote_types(dtype, torch.float32)
    if attention_mask is not None and attention_mask.dtype != torch.bool:
        attention_mask = attention_mask.to(wide)
    with torch.autocast("cpu", enabled=False) if autocast else nullcontext():
        query, key, value = query.to(wide), key.to(wide), value.to(wide)
        with multiplying_by_blas():
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    if (fused := _fused_node(out)) is not None:
        fused.register_prehook(_before_gradient)
        fused.register_hook(_after_gradient)
    return out.to(dtype), None


def _fused_node(out: Tensor) -> Node | None:
    """The node of autograd's graph that computes the gradient of fused attention; None where there is no such gradient."""
    node = out.grad_fn  # of a copy, which a transposition came before
    while node is not None and not node.name().startswith("ScaledDotProduct"):
        node = node.next_functions[0][0] if node.next_functions else None
    return node


def _before_gradient(_: object) -> None:
    multiply_by_onednn(False)


def _after_gradient(_: object, __: object) -> None:
    multiply_by_onednn(True)


@cache
def use_own_attention() -> None:
    """Have every model of this process whose attention is transformers' ``sdpa`` compute it by :func:`attend`."""
    AttentionInterface.register("sdpa", attend)
