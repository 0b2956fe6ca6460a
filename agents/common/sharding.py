"""Weights, gradients and an optimizer's state of which each rank keeps a part, as accelerate's FSDP configuration asks for.

A part is a ``DTensor`` cut along the first dimension, as FSDP2's are. FSDP2's own ``fully_shard`` gathers weights inside every
forward pass, which all ranks must then take together; here they take different numbers of passes (each generates until its own
responses end, and cuts its own micro-batches), and rank 0 takes some alone. So weights are gathered once, for all passes
between two optimizer steps, and let go for the step itself; a reference is let go while the agent learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.errors import NotFiniteError, RankError, first_line

T = TypeVar("T")


class Shards:
    """The weights of a module, of which each rank keeps a part, and all ranks gather the whole for passes.

    While they are whole, the module is as it would be in one process, and may be changed in place by all ranks alike. While
    they are apart, its parameters are the parts, and no pass is possible.

    Args:
        module: its weights must be the same on every rank. They are whole in the end, too.
        ranks: the processes.
        learning: keep parts of the weights that learn, and of no others; False keeps parts of all weights.
    """

    def __init__(self, module: nn.Module, ranks: Ranks, *, learning: bool) -> None:
        self._ranks = ranks
        self._places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        for owner in module.modules():
            for name, weight in owner.named_parameters(recurse=False, remove_duplicate=False):
                if weight.requires_grad or not learning:
                    self._places.setdefault(weight, []).append((owner, name))  # tied weights have several
        device = next(module.parameters()).device
        self._mesh = init_device_mesh(device.type, (ranks.size,))
        # Parameters that are DTensors, which types cannot say.
        self._parts: dict[Tensor, Any] = {
            weight: nn.Parameter(self.part(weight.detach()), requires_grad=weight.requires_grad)
            for weight in self._places
        }

    def part(self, tensor: Tensor) -> DTensor:
        """This rank's part of a tensor ``[n, ...]``, a copy: about ``n / ranks`` of its rows; of a number ``[]`` all of it."""
        placement = Shard(0) if tensor.ndim else Replicate()
        return DTensor.from_local(
            self._own(tensor).clone(memory_format=torch.contiguous_format), self._mesh, [placement], run_check=False,
            shape=tensor.shape, stride=torch.empty(tensor.shape, device="meta").stride(),
        )  # fmt: skip

    def _own(self, tensor: Tensor) -> Tensor:
        """This rank's rows of ``[n, ...]``, a view; none where the other ranks have all of them."""
        if not tensor.ndim:
            return tensor
        rows = -(-len(tensor) // self._ranks.size)
        return tensor[self._ranks.rank * rows : (self._ranks.rank + 1) * rows]

    @torch.no_grad()
    def let_go(self) -> None:
        """Keep only this rank's part of the weights as they are; each rank does so by itself."""
        for weight, part in self._parts.items():
            part.to_local().copy_(self._own(weight))
            weight.data = weight.new_empty(0)
            self._put(part, weight)

    @torch.no_grad()
    def gather(self) -> None:
        """Make the weights whole again; all ranks together.

        Raises:
            RankError: a rank is gone.
        """
        self._ranks.gather(lambda: None)  # all are there
        with self._exchanges():
            for weight, part in self._parts.items():
                weight.data = part.full_tensor()
                increment_version(weight)
                self._put(weight, weight)

    def _put(self, weight: Tensor, place: Tensor) -> None:
        """Make a weight the parameter in the places of another."""
        for owner, name in self._places[place]:
            setattr(owner, name, weight)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let the weights go, and gather them in the end, and after an error that all ranks have alike."""
        self.let_go()
        try:
            with self._exchanges():
                yield
        except NotFiniteError:
            self.gather()
            raise
        self.gather()

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Add up the gradients of all ranks, each of which has that of its own share, and keep this rank's part of the sums.

        The weights are whole. Their gradients go over to the parts; a weight without a gradient on any rank still has none.

        Raises:
            RankError: a rank is gone.
        """
        had = self._ranks.gather(lambda: [weight.grad is not None for weight in self._parts])
        has = map(any, zip(*had, strict=True))
        with self._exchanges():
            for (weight, part), any_has in zip(self._parts.items(), has, strict=True):
                gradient, weight.grad, part.grad = weight.grad, None, None
                if any_has:
                    own = torch.zeros_like(weight) if gradient is None else gradient.contiguous()
                    summed = DTensor.from_local(own, self._mesh, [Partial()], run_check=False)
                    part.grad = summed.redistribute(placements=part.placements)

    def parts_of(self, tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
        """Tensors by the names of a module's parameters, those of weights in parts cut like the weights.

        Args:
            tensors: whole ones, ``[...]`` each, on any device.
            module: its weights are apart.
        """
        weights = {name: weight for name, weight in module.named_parameters() if isinstance(weight, DTensor)}
        return {name: self._like(tensor, weights.get(name)) for name, tensor in tensors.items()}

    def state_in_parts(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's whole state, its moments cut like the weights.

        Args:
            state: a ``state_dict`` whose tensors are whole.
            optimizer: of the parts.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        moments = {
            place: {name: self._like(tensor, weights[place]) for name, tensor in entry.items()}
            for place, entry in state["state"].items()
        }
        return {**state, "state": moments}

    def _like(self, tensor: Tensor, weight: Tensor | None) -> Tensor:
        """A tensor, in parts where it is one for each number of a weight in parts."""
        if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
            return tensor
        return self.part(tensor.to(weight.device))

    @contextmanager
    def _exchanges(self) -> Iterator[None]:
        """Exchanges of torch's own, which say in words of their own that a rank is gone."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RankError(
                f"rank {self._ranks.rank} of {self._ranks.size} could not exchange parts of weights with the others: has "
                f"another process ended? ({first_line(error) or type(error).__name__})"
            ) from error


@torch.no_grad()
def whole(value: T, *, keep: bool = True) -> T:
    """A value with all tensors in parts that it holds made whole, on the CPU; all ranks together.

    Args:
        value: nested dicts, lists and tensors; the same names in the same order on every rank.
        keep: False gives an empty tensor for each: this rank only helps the others.
    """
    found: Any = value
    if isinstance(value, dict):
        found = {name: whole(one, keep=keep) for name, one in value.items()}
    elif isinstance(value, list):
        found = [whole(one, keep=keep) for one in value]
    elif isinstance(value, DTensor):
        gathered = value.full_tensor()
        found = gathered.cpu() if keep else gathered.new_empty(0)
    return found  # type: ignore[no-any-return]


def one_number(value: Tensor) -> Tensor:
    """A number ``[]`` of all ranks' parts as an ordinary tensor; any other tensor as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value
