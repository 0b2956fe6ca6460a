"""The sizes of weights of which each process keeps a part, as :class:`~rlhf_gym.agents.common.sharding.Shards` cuts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rlhf_gym.agents.common.ranks import Ranks


def first_part(tensor: Tensor, ranks: Ranks) -> Tensor:
    """The part of the first process, which is the largest: a view of its rows of ``[n, ...]``; of a number ``[]`` all of it.

    Args:
        tensor: a weight that learns, or one of the reference.
        ranks: the processes. Where they keep whole weights, that is the tensor itself.
    """
    return tensor[: -(-len(tensor) // ranks.size)] if ranks.sharded and tensor.ndim else tensor


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the numbers of some tensors, ``[...]`` each."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Parts:
    """A process's parts of the weights that learn and of the reference, which it keeps beside whole ones, and what it lets go.

    Args:
        learning: the weights that learn, whole, ``[...]`` each.
        reference: the reference's, likewise, where it has its own; empty without.
        ranks: the processes.
        lets_reference_go: False where losses need passes of the reference.

    Attributes:
        kept: the parts.
    """

    def __init__(
        self, learning: Sequence[Tensor], reference: Sequence[Tensor], ranks: Ranks, *, lets_reference_go: bool
    ) -> None:
        self._learning, self._ranks = learning, ranks
        self.kept = [torch.empty_like(first_part(weight, ranks)) for weight in (*learning, *reference)]
        self.reference = size_of(reference) if lets_reference_go else 0

    def step(self, held: int) -> int:
        """Bytes in a step of the optimizer: gradients in parts, and neither whole weights nor a whole reference.

        Args:
            held: bytes with whole weights, without gradients.
        """
        return held - size_of(self._learning) - self.reference + self._own

    def resuming(self, held: int, moments: Sequence[Tensor]) -> int:
        """Most bytes while a checkpoint is loaded: its moments come whole, and are cut once the weights are.

        Args:
            held: bytes with whole weights, without gradients.
            moments: the parts of the optimizer's moments, ``[...]`` each.
        """
        whole = 2 * sum(weight.numel() for weight in self._learning) * moments[0].element_size()
        return held - size_of(self.kept) + self._own - size_of(moments) + whole

    @property
    def _own(self) -> int:
        """Bytes of the parts of the weights that learn, and of their gradients."""
        return size_of(first_part(weight, self._ranks) for weight in self._learning)
