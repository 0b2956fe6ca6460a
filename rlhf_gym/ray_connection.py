"""The connection of this process to Ray: on this machine, or a cluster. Needs ``pip install 'rlhf-gym[ray]'``."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from rlhf_gym.errors import ConfigError, first_line
from rlhf_gym.objects import import_path


def load_ray(instead: str) -> Any:
    """Import Ray.

    Args:
        instead: what works without it, for the message.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of a change to come
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(f"Ray is not installed: pip install 'rlhf-gym[ray]'; {instead}") from None
    return ray


def connect(address: str, ray: Any) -> None:
    """Connect this process to Ray, until it ends or calls ``ray.shutdown()``.

    Args:
        address: ``local`` starts Ray on this machine; else a cluster's address, or ``auto``.
        ray: as :func:`load_ray` returns it.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options["include_dashboard"] = False
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and "/" not in host:  # Ray itself waits for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**options)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"there is no Ray cluster at {address!r} ({first_line(error)}): start one with `ray start --head`, "
            "or give --ray local"
        ) from error


def worker_environment() -> dict[str, Any]:
    """The environment of Ray's workers: they import what this process imports, where the folders are there."""
    paths = [*import_path(), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
