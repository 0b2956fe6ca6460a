"""The library bitsandbytes (extra ``quantized``): numbers kept in few bits."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

from rlhf_gym.errors import ConfigError

_KERNEL_MISSING = "Failed to load CPU gemm_4bit_forward"


def require_bitsandbytes(what: str) -> None:
    """Refuse to go on without bitsandbytes; it is not imported, which takes seconds.

    Args:
        what: the setting that needs it.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{what} needs bitsandbytes: pip install 'rlhf-gym[quantized]'")


def import_bitsandbytes() -> Any:
    """The library, imported without its warning that an optional kernel for processors was not downloaded."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(_other_than_the_kernel)
    try:
        import bitsandbytes
    finally:
        logger.removeFilter(_other_than_the_kernel)
    return bitsandbytes


def _other_than_the_kernel(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_KERNEL_MISSING)
