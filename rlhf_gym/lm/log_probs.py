"""Log-probability of a chosen token, and entropy, of many categorical distributions at once: as fast as memory allows.

What ``log_softmax``, ``gather`` and a sum would give, without their intermediates of the size of the logits: the rows go
through in blocks that stay in the processor's cache, and the backward pass rebuilds probabilities from the logits and one
number a row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 1 << 18  # logits in a block: 1 MiB
_LOWEST = -1e30  # stands for -inf where it meets a probability of 0: their product must be 0, not NaN


def chosen_and_entropy(logits: Tensor, tokens: Tensor, *, entropy: bool = False) -> tuple[Tensor, Tensor | None]:
    """Log-probability of one token a row, and the row's entropy.

    Args:
        logits: float32 ``[N, V]``, not normalised; -inf where a token cannot be drawn.
        tokens: int64 ``[N]``.
        entropy: whether to compute entropies.

    Returns:
        float32 ``[N]`` log-probabilities, and float32 ``[N]`` entropies in nats or None. Differentiable once.
    """
    function: Any = _ChosenAndEntropy  # `apply` has no types
    chosen: Tensor
    entropies: Tensor
    chosen, entropies = function.apply(logits, tokens, entropy)
    return chosen, entropies if entropy else None


class _ChosenAndEntropy(torch.autograd.Function):
    """With ``p = softmax(z)`` and ``H`` its entropy: ``d log p_a / dz = 1_a - p`` and ``dH / dz = -p (log p + H)``."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        n = len(logits)
        chosen, norms, entropies = (logits.new_zeros(n) for _ in range(3))
        for rows in _blocks(logits):
            z = logits[rows]
            log_probs = torch.log_softmax(z, dim=-1)
            chosen[rows] = log_probs.gather(-1, tokens[rows, None]).squeeze(-1)
            top, where = z.max(dim=-1)
            norms[rows] = top - log_probs.gather(-1, where[:, None]).squeeze(-1)
            if entropy:
                entropies[rows] = -(torch.softmax(z, dim=-1).mul_(log_probs.clamp_(min=_LOWEST))).sum(-1)
        ctx.save_for_backward(logits, tokens, norms, entropies)
        ctx.entropy = entropy
        return chosen, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, chosen_grad: Tensor, entropy_grad: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, norms, entropies = ctx.saved_tensors
        grad = torch.empty_like(logits)
        with_entropy = ctx.entropy and bool(entropy_grad.any())
        for rows in _blocks(logits):
            block = grad[rows]
            by_chosen = chosen_grad[rows, None]
            if with_entropy:
                log_probs = logits[rows] - norms[rows, None]
                torch.exp(log_probs, out=block)
                by_entropy = entropy_grad[rows, None]
                log_probs.clamp_(min=_LOWEST).add_(entropies[rows, None]).mul_(-by_entropy).sub_(by_chosen)
                block.mul_(log_probs)
            else:
                torch.softmax(logits[rows], dim=-1, out=block)
                block.mul_(-by_chosen)
            block.scatter_add_(-1, tokens[rows, None], by_chosen)
        return grad, None, None


def _blocks(logits: Tensor) -> list[slice]:
    """Rows in blocks that fit in a processor's cache; on other devices, all at once."""
    n, size = logits.shape
    step = max(1, _BLOCK // size) if logits.device.type == "cpu" else max(1, n)
    return [slice(begin, begin + step) for begin in range(0, n, step)]
