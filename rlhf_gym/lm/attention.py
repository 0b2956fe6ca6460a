"""Attention on processors: never in half precision, whatever other products have, and by plain products where rows are short.

PyTorch's fused attention on processors is made for long rows: for 16 rows of 64 tokens, forward and backward, it takes twice to
four times the time of plain products where oneDNN multiplies (:func:`~rlhf_gym.lm.precision.use_fast_float32`). In bfloat16 it
is slower than in float32, five times for a single query, and rounds more.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

SHORT = 2**20
"""Most weights of a layer's attention that plain products compute: they are kept for the backward pass (4 MiB)."""


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
        if _is_short(query, key, attention_mask, given):
            out = _by_products(module, query, key, value, attention_mask, given)
        else:
            out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    return out.to(dtype), None


def _is_short(query: Tensor, key: Tensor, mask: Tensor | None, given: dict[str, Any]) -> bool:
    rows, heads, queries, _ = query.shape
    keys = key.shape[2]
    plain = not given.get("dropout") and given.get("position_bias") is None and given.get("softcap") is None
    return plain and queries > 1 and (mask is not None or keys == queries) and rows * heads * queries * keys <= SHORT


def _by_products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
) -> Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, group), repeat_kv(value, group)
    causal = given.get("is_causal")
    if mask is None and (getattr(module, "is_causal", True) if causal is None else causal):
        mask = query.new_ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    scale = given.get("scaling")
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-1, -2)
    if mask is not None:
        # The least number, not minus infinity: a row of padding that may look at nothing gets some weights, not NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    out: Tensor = scores.softmax(-1) @ value
    return out.transpose(1, 2)


@cache
def use_short_attention() -> None:
    """Have every model of this process whose attention is transformers' ``sdpa`` compute it by :func:`attend`."""
    AttentionInterface.register("sdpa", attend)
