"""Objects as bytes for workers on Ray: tensors of any device, a user's own functions, and objects that hold locks."""

from __future__ import annotations

import io
import threading
from collections import ChainMap
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_gym.errors import ConfigError, first_line
from rlhf_gym.objects import modules_of_files

Packed = NDArray[np.uint8]
"""Bytes, uint8 ``[n]``: Ray shares arrays between the processes of a machine without copies."""


def packed(what: Any, ray: Any) -> Packed:
    """Pack an object for other processes.

    A user's own functions go along, whatever file they come from. A lock goes as a new one: it guards its own process.

    Args:
        what: the object.
        ray: the library.

    Raises:
        ConfigError: it holds something that belongs to this process.
    """
    pickle, file, modules = ray.cloudpickle, io.BytesIO(), modules_of_files()

    class Pickler(pickle.Pickler):  # type: ignore[name-defined, misc]
        dispatch_table: ClassVar[Any] = ChainMap(
            {type(threading.Lock()): _new_lock, type(threading.RLock()): _new_lock}, pickle.Pickler.dispatch_table
        )

    for module in modules:
        pickle.register_pickle_by_value(module)
    try:
        torch.save(what, file, pickle_module=SimpleNamespace(Pickler=Pickler, __name__=pickle.__name__))
    except Exception as error:
        raise ConfigError(
            f"the task or its reward cannot be sent to workers on Ray ({type(error).__name__}: {first_line(error)}): "
            "a reward must not hold connections, threads or open files before it is first called; or leave ray out"
        ) from error
    finally:
        for module in modules:
            pickle.unregister_pickle_by_value(module)
    return np.frombuffer(file.getbuffer(), dtype=np.uint8)


def _new_lock(lock: Any) -> tuple[Any, tuple[()]]:
    return (threading.Lock if isinstance(lock, type(threading.Lock())) else threading.RLock), ()


def unpacked(what: Packed, device: str) -> Any:
    """The object that :func:`packed` was given, in another process of the same cluster.

    Args:
        what: its bytes, uint8 ``[n]``.
        device: where its tensors are to be.
    """
    return torch.load(io.BytesIO(what.tobytes()), map_location=device, weights_only=False)
