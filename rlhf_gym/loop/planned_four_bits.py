"""Linear layers in 4 bits as a memory plan needs them: the bytes they hold, and those that a product takes for a while.

bitsandbytes cannot work on tensors without data.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_gym.lm.language_model import LanguageModel

BLOCK, BLOCK_OF_SCALES = 64, 256
"""Weights that share a scale of 8 bits, and scales that share one of 32 (Dettmers et al. 2023, section 3)."""


class _Product(torch.autograd.Function):
    """``x W'`` with a weight that is whole during the product alone, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: int) -> Tensor:
        ctx.rows = x.shape[-1]
        return x @ x.new_empty(ctx.rows, columns)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad @ grad.new_empty(grad.shape[-1], ctx.rows), None


def widths(layer: Any) -> tuple[int, int]:
    """The numbers that a linear layer reads of each row, and those that it gives."""
    return (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)


class FourBits(nn.Module):
    """A linear layer whose weight takes half a byte for each number, and its scales.

    Args:
        layer: a whole one of the same shape.
    """

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        self.in_features, self.out_features = widths(layer)
        number = self.in_features * self.out_features
        scales = -(-number // BLOCK)
        self.weight, self.scales, self.scales_of_scales = (
            nn.Parameter(torch.empty(size, dtype=dtype), requires_grad=False)
            for size, dtype in (
                (-(-number // 2), torch.uint8), (scales, torch.uint8), (-(-scales // BLOCK_OF_SCALES), torch.float32)
            )
        )  # fmt: skip
        vars(self.weight)["quant_state"] = "nf4"  # known as bitsandbytes' own layers are
        self.bias = layer.bias

    @property
    def uncounted(self) -> int:
        """The weights that its tensors' sizes do not count."""
        held = self.weight.numel() + self.scales.numel() + self.scales_of_scales.numel()
        return self.in_features * self.out_features - held

    def forward(self, x: Tensor) -> Tensor:
        """``x W' + b``.

        Args:
            x: ``[..., in]``.

        Returns:
            ``[..., out]``.
        """
        out: Tensor = _Product.apply(x, self.out_features)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias


def number_of_weights(network: nn.Module) -> int:
    """The weights of a network, those in 4 bits too."""
    fours = [layer for layer in network.modules() if isinstance(layer, FourBits)]
    return sum(p.numel() for p in network.parameters()) + sum(layer.uncounted for layer in fours)


def quantize(model: LanguageModel) -> None:
    """Put layers in 4 bits in the place of a model's linear layers, but for its output layer."""
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear | Conv1D) and layer is not model.head:
            model.model.set_submodule(name, FourBits(layer))
    model.model.requires_grad_(False)
