"""A device that is pretended on the processor: it refuses what a GPU refuses, and counts what would wait for it.

Its tensors hold ordinary ones and report another device. Operations follow CUDA's rules: tensors of two devices may not meet,
but for single numbers (``[]``) of the processor, the processor's indices, and copies. What makes the processor wait is noted:
reading a number or a size that depends on numbers, and copies in either direction that are not ``non_blocking``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "pretended"
aten = torch.ops.aten

# What makes a tensor out of sizes and numbers alone.
FACTORIES = (
    "empty", "empty_strided", "zeros", "ones", "full", "scalar_tensor", "arange", "eye", "linspace", "rand", "randn", "randint",
    "randperm", "tril_indices", "triu_indices",
)  # fmt: skip
# What gives sizes that depend on numbers, which the processor must know.
SIZES_OF_NUMBERS = {
    aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten._unsafe_index.Tensor}
INDEXED_WRITES = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
# Beside pointwise operations, these take a single number from the processor.
TAKES_NUMBERS = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill.Tensor,
    aten.fill_.Tensor,
    *INDEXED_WRITES,
}


STORAGE = {Tensor.untyped_storage, Tensor.storage, Tensor.data_ptr}  # of which a wrapper has none
# Products, whose two sides autocast rounds; and what it computes in float32.
ROUNDED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention")
EXACT = (
    "softmax.int",
    "log_softmax.int",
    "layer_norm",
    "cumsum",
    "pow.Tensor_Scalar",
    "sum",
    "sum.dim_IntList",
    "exp",
    "log",
    "rsqrt",
)


class DeviceMismatchError(RuntimeError):
    """Tensors of two devices met in one operation."""


class Waits:
    """The times that the processor waited for the device.

    Attributes:
        places: one entry a time: why, and the lines of the library and of other code that led there.
    """

    def __init__(self) -> None:
        self.places: list[str] = []

    def note(self, why: str) -> None:
        """Remember one, with its place."""
        self.places.append(f"{why} at {_place()}")

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Count those in a block, by place; the counter is filled in at its end."""
        begin, found = len(self.places), Counter[str]()
        yield found
        found.update(self.places[begin:])


WAITS = Waits()
LIBRARY = ("/rlhf_gym/", "/agents/", "/envs/")


def _place() -> str:
    """The innermost line of the library, and the innermost line of Python."""
    frame, lines = sys._getframe(2), list[str]()
    while frame is not None and not (lines and any(part in lines[-1] for part in LIBRARY)):
        name = frame.f_code.co_filename
        own = any(part in name for part in LIBRARY) and "/site-packages/torch" not in name
        if own or (not lines and "/torch/" not in name and name != __file__):
            lines.append(f"{'/'.join(Path(name).parts[-3:])}:{frame.f_lineno}")
            if own:
                break
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines)


class DeviceTensor(Tensor):
    """A tensor on the pretended device."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> DeviceTensor:
        made: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=f"{NAME}:0"
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.raw!r})"

    def tolist(self) -> Any:
        return self.cpu().tolist()  # which torch refuses for subclasses

    # A module's `to` exchanges whole tensors that have these, in the place of their data alone.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["raw"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["raw"])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in STORAGE:
                return func(args[0].raw)
            out = func(*args, **(kwargs or {}))
            if func is Tensor.data.__set__:  # type: ignore[attr-defined]
                args[0].raw = args[1].raw
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, dict(kwargs or {}))


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is aten._to_copy.default:
        return _copied(args[0], kwargs)
    if func is aten.copy_.default:
        return _written(*args, **kwargs)
    if func is aten._local_scalar_dense.default:
        WAITS.note("a number read")
    if func in SIZES_OF_NUMBERS:
        WAITS.note(func._schema.name)
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        WAITS.note("repeat_interleave")
    place = kwargs.get("device")
    here = place is None or torch.device(place).type == NAME
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    if (generator := kwargs.get("generator")) is not None and here:
        raise DeviceMismatchError(f"{func}: a generator of {generator.device.type!r}, expected one of the device")
    if func in INDEXING or func in INDEXED_WRITES:
        _check_indices(func, *args)
    else:
        _check_devices(func, args, kwargs)
    out = func(*_raw(args), **{name: _raw(value) for name, value in kwargs.items()})
    if written := _written_places(func):
        changed = [args[place] if place < len(args) else kwargs["out"] for place in written]
        for tensor in changed:
            if isinstance(tensor, DeviceTensor) and tensor.shape != tensor.raw.shape:
                raise NotImplementedError(f"{func} changes a tensor's shape in place")
        returned = len(func._schema.returns)
        return None if not returned else changed[0] if returned == 1 else tuple(changed)
    return _wrapped(out) if here else out


@cache
def _written_places(func: Any) -> list[int]:
    """The places of the arguments that an operation writes to."""
    named = enumerate(func._schema.arguments)
    return [place for place, argument in named if argument.alias_info is not None and argument.alias_info.is_write]


def _raw(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.raw
    return type(value)(map(_raw, value)) if isinstance(value, list | tuple) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, Tensor):
        return DeviceTensor(value)
    return type(value)(map(_wrapped, value)) if isinstance(value, list | tuple) else value


def _check_devices(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Refuse tensors of the processor, as CUDA does."""
    for place, value in enumerate([*args, *kwargs.values()]):
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(tensor, Tensor) or isinstance(tensor, DeviceTensor):
                continue
            takes_numbers = func in TAKES_NUMBERS or torch.Tag.pointwise in func.tags
            if tensor.ndim or not takes_numbers or place in _written_places(func):
                got = f"a tensor {list(tensor.shape)} on {tensor.device}"
                raise DeviceMismatchError(f"{func}: {got} meets one on {NAME} at {_place()}")


def _check_indices(
    func: Any, table: Tensor, indices: Sequence[Tensor | None], value: Tensor | None = None, *_: Any
) -> None:
    given = [index for index in indices if index is not None]
    if not isinstance(table, DeviceTensor) and any(isinstance(index, DeviceTensor) for index in given):
        raise DeviceMismatchError(f"{func}: indices on {NAME} of a tensor on the processor, at {_place()}")
    if value is not None and isinstance(value, DeviceTensor) != isinstance(table, DeviceTensor):
        if value.ndim or isinstance(value, DeviceTensor):
            raise DeviceMismatchError(f"{func}: from {value.device} into {table.device}, at {_place()}")
        WAITS.note("a number copied to the device")
    # A mask with one number to write is filled, and needs no places.
    filled = func in INDEXED_WRITES and value is not None and value.numel() == 1 and len(given) == 1
    for index in given:
        if not isinstance(index, DeviceTensor):
            WAITS.note("an index copied to the device")
        elif index.dtype in (torch.bool, torch.uint8) and not filled:
            WAITS.note("an index by a mask")


def _copied(tensor: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Another dtype, another device, or both."""
    place = kwargs.pop("device", None)
    waits = not kwargs.pop("non_blocking", False)
    target = tensor.device if place is None else torch.device(place)
    out: Tensor = aten._to_copy.default(tensor.raw if isinstance(tensor, DeviceTensor) else tensor, **kwargs)
    if target.type != tensor.device.type and waits:
        WAITS.note(f"a copy from {tensor.device.type} to {target.type}")
    return DeviceTensor(out) if target.type == NAME else out


def _written(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if target.device.type != source.device.type and not non_blocking:
        WAITS.note(f"a copy from {source.device.type} to {target.device.type}")
    raws = [t.raw if isinstance(t, DeviceTensor) else t for t in (target, source)]
    aten.copy_.default(*raws)
    return target


def _factory(operation: Any) -> Callable[..., Tensor]:
    def make(*args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("generator") is not None:
            raise DeviceMismatchError(f"{operation}: a generator of the processor for a tensor on {NAME}")
        return DeviceTensor(operation(*args, **(kwargs | {"device": "cpu", "pin_memory": False})))

    return make


def _cast(operation: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    """An operation as autocast runs it: its floating-point tensors in float32, or in the dtype that products are rounded to."""
    here = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(tensor: Tensor) -> Tensor:
        small = tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        return tensor.to(dtype or torch.get_autocast_dtype(NAME)) if tensor.device.type == NAME and small else tensor

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(here):
            return operation(*pytree.tree_map_only(Tensor, cast, args), **pytree.tree_map_only(Tensor, cast, kwargs))

    return run


_kept: list[Any] = []  # a registration lasts as long as its object
_state = SimpleNamespace(available=False)


class _Module:
    """What torch asks of a device's module; there is no device outside of :func:`pretended_device`."""

    def is_initialized(self) -> bool:
        return _state.available

    def is_available(self) -> bool:
        return _state.available

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(_state.available)

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _register() -> None:
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    _kept.append(library)
    for name in FACTORIES:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            operation = getattr(packet, overload)
            arguments = {argument.name for argument in operation._schema.arguments}
            if "device" in arguments and "out" not in arguments:
                library.impl(operation, _factory(operation), "PrivateUse1")
    library.impl(
        "_copy_from", lambda source, target, non_blocking=False: _written(target, source, non_blocking), "PrivateUse1"
    )
    for names, dtype in ((ROUNDED, None), (EXACT, torch.float32)):
        for name in names:
            packet, _, overload = name.partition(".")
            operation = getattr(getattr(aten, packet), overload or "default")
            library.impl(operation, _cast(operation, dtype), "AutocastPrivateUse1")
    everything = torch.library.Library("_", "IMPL")
    _kept.append(everything)
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """The device, for a block; the processor computes gradients in its own thread."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch cannot register a device from Python")
    if not _kept:
        _register()
    _state.available = True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield torch.device(NAME, 0)
    finally:
        _state.available = False
