"""The memory that work on tensors would take, by running it on tensors that have a shape and no data.

Nothing is computed and next to nothing allocated: a model of 8 billion parameters is traced on a laptop. What kernels allocate
for themselves inside an operation, and what an allocator keeps in reserve, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations make while it is on, from their creation to their end.

    Attributes:
        now: bytes alive.
        peak: most bytes alive at once since :meth:`peak_of` began, or since the start.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count the storages that it made.

        Args:
            func: the operation.
            types: not used.
            args: its arguments.
            kwargs: its keywords.
        """
        return tree_map_only(torch.Tensor, self._count, func(*args, **(kwargs or {})))

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive:
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return tensor

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def peak_of(self, work: Callable[[], object]) -> int:
        """The most bytes alive while some work is done; its result is let go of."""
        self.peak = self.now
        work()
        return self.peak


@contextmanager
def traced_memory() -> Iterator[LiveBytes]:
    """A context in which tensors have no data, and their bytes are counted."""
    with FakeTensorMode(), LiveBytes() as live:
        yield live
