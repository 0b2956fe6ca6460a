"""The precision that matrices are multiplied in: float32, or bfloat16 or float16 with float32 weights.

Weights, their gradients and the optimizer's state stay float32. Autocast rounds the two sides of a product, which hardware for
bfloat16 multiplies several times as fast, and leaves residual sums and norms in float32; softmax, log-probabilities, losses
and advantages are computed in float32 from the logits (Micikevicius et al. 2018).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch

from rlhf_gym.errors import ConfigError

Precision = Literal["float32", "bf16", "fp16", "auto"]
DTYPE_OF = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FASTER = 1.5
"""auto takes bfloat16 where a product is at least this many times as fast in it."""


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype that products are computed in.

    Args:
        precision: ``"auto"`` takes bfloat16 where this device multiplies faster in it, else float32.
        device: the device of the weights.

    Raises:
        ConfigError: the device cannot compute in that precision.
    """
    if precision == "auto":
        return torch.bfloat16 if bf16_is_faster(device.type) else torch.float32
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("precision='bf16': this GPU does not compute in bfloat16; take 'fp16' or 'float32'")
    return DTYPE_OF[precision]


@cache
def bf16_is_faster(device_type: str) -> bool:
    """True where a device multiplies faster in bfloat16: known of GPUs, measured once a process on processors.

    Args:
        device_type: ``"cuda"``, ``"cpu"``, ...
    """
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device_type != "cpu":
        return False
    return product_seconds(torch.bfloat16) * FASTER < product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of the fastest of several products of two matrices of 512 x 512 on the processor.

    Args:
        dtype: of the matrices.
    """
    left = torch.ones(512, 512, dtype=dtype)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(left, left)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@cache
def use_fast_float32() -> bool:
    """Have oneDNN multiply float32 matrices on processors, where it keeps float32's accuracy; returns True if it does.

    PyTorch's default takes AVX2 kernels on some processors that have AVX-512. The setting that leads to oneDNN's kernels also
    lets it round to bfloat16 where the processor has units for that; a product is compared with float64, and the setting taken
    back where it was rounded. GPUs keep their own setting.
    """
    if (products := _products()) is None:
        return False
    before = products.fp32_precision
    products.fp32_precision = "bf16"
    if product_error() < 1e-6:
        return True
    products.fp32_precision = before
    return False


def multiply_by_onednn(on: bool) -> None:
    """Multiply float32 matrices on processors by oneDNN, where :func:`use_fast_float32` does; or by BLAS, as accurately.

    Args:
        on: for the whole process. Another thread's products differ by rounding meanwhile.
    """
    if use_fast_float32():
        _products().fp32_precision = "bf16" if on else "none"


def _products() -> Any:
    """What holds oneDNN's setting for products of matrices; None in a torch that has none."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@contextmanager
def multiplying_by_blas() -> Iterator[None]:
    """A block in which oneDNN does not multiply."""
    multiply_by_onednn(False)
    try:
        yield
    finally:
        multiply_by_onednn(True)


def product_error() -> float:
    """The relative error of a product of two float32 matrices of 256 x 256 on the processor: about 3e-7 in full float32."""
    left, right = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    return float(((left @ right).double() - exact).norm() / exact.norm())
