"""Joining the processes that learn together, as a launcher has started them: `accelerate launch` or `torchrun`."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.distributed as dist

from rlhf_gym.agents.common.ranks import TIMEOUT, Ranks
from rlhf_gym.errors import ConfigError, first_line

OLDEST_ACCELERATE = (1, 0)
NOT_BUILT = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "PARALLELISM_CONFIG": "a parallelism configuration", "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}  # fmt: skip
"""Variables by which accelerate's configuration asks for sharded weights in ways that are not built."""
FSDP = "ACCELERATE_USE_FSDP"
FSDP_NOT_BUILT = {
    "FSDP_OFFLOAD_PARAMS": "parts in the CPU's memory are not built; set fsdp_offload_params to false",
    "FSDP_ACTIVATION_CHECKPOINTING": "give the agent's own setting, gradient_checkpointing=True (--set "
    "agent.gradient_checkpointing=true), and set fsdp_activation_checkpointing to false",
}
"""Variables of accelerate's FSDP configuration that are refused where they are true, with what to do instead."""

_joined = Ranks()
"""A process can be one rank only: torch.distributed's own state is the process's, too."""


def process_ranks() -> Ranks:
    """The ranks that this process belongs to; it joins the others at the first call.

    Raises:
        ConfigError: it was launched as one of several, and cannot join them, or in a way that is not built.
    """
    global _joined
    if _joined.size == 1:
        begun = dist.is_available() and dist.is_initialized()
        size = dist.get_world_size() if begun else _number("WORLD_SIZE", 1)
        _joined = Ranks() if size == 1 else _join(size)
    return _joined


def joined_ranks() -> Ranks:
    """The ranks that this process has joined; it joins none."""
    return _joined


def _join(size: int) -> Ranks:
    check_launch(size)
    from accelerate import PartialState

    minutes = _minutes()
    try:
        # Of GPUs, it also chooses this process's own; "cuda" is that one from then on.
        cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
        state = PartialState(cpu=cpu, timeout=timedelta(minutes=min(minutes, 10.0)))
        if state.num_processes != size:
            raise RuntimeError(f"accelerate has found {state.num_processes} processes")
        control = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise ConfigError(
            f"rank {os.environ.get('RANK', '?')} of {size} cannot join the others at {where} ({first_line(error)}): start all "
            "processes by one launcher, `accelerate launch` or `torchrun`, on a free port (--main_process_port, --master-port)"
        ) from error
    return Ranks(state.process_index, state.num_processes, control, 60 * minutes, sharded=_is_true(FSDP))


def check_launch(size: int) -> None:
    """Refuse what accelerate is missing, too old or configured for.

    Args:
        size: the number of processes.

    Raises:
        ConfigError: with the reason.
    """
    try:
        found = version("accelerate")
    except PackageNotFoundError:
        raise ConfigError(
            f"this is one of {size} processes (WORLD_SIZE), and learning in several needs the accelerate library: "
            "pip install 'rlhf-gym[distributed]'"
        ) from None
    numbers = tuple(int(part) if part.isdecimal() else 0 for part in found.split(".")[:2])
    if numbers < OLDEST_ACCELERATE:
        raise ConfigError(
            f"accelerate {found} is too old for learning in several processes, which needs "
            f"{'.'.join(map(str, OLDEST_ACCELERATE))} or newer: pip install -U accelerate"
        )
    for name, what in NOT_BUILT.items():
        if _is_true(name):
            raise ConfigError(
                f"accelerate's configuration asks for {what}, which is not built here. Launch with --multi_gpu (or torchrun), "
                "where every process holds all weights, or with --use_fsdp --fsdp_version 2, where each keeps a part of them; "
                "docs/scaling.md says what fits"
            )
    if _is_true(FSDP):
        _check_fsdp()
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if mixed not in ("no", ""):
        raise ConfigError(
            f"accelerate's mixed_precision is {mixed!r}, which agents do not use: give the agent's own setting, "
            f"precision={mixed!r} (--set agent.precision={mixed}), and launch with --mixed_precision no"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", ""):
        raise ConfigError(
            f"accelerate's gradient_accumulation_steps is {steps}, which agents do not use: they cut a minibatch (batch_size) "
            "into micro-batches of tokens_per_batch by themselves; leave it at 1"
        )


def _check_fsdp() -> None:
    """Refuse what accelerate's FSDP configuration asks for and is not built."""
    if (number := os.environ.get("FSDP_VERSION", "1")) != "2":
        raise ConfigError(
            f"accelerate's configuration asks for version {number} of FSDP, and version 2 is built: launch with --use_fsdp "
            "--fsdp_version 2 (in a configuration file, fsdp_version: 2)"
        )
    for name, advice in FSDP_NOT_BUILT.items():
        if _is_true(name):
            raise ConfigError(f"accelerate's FSDP configuration has {name.lower()}: {advice}")


def _is_true(name: str) -> bool:
    """True where an environment variable says so."""
    return os.environ.get(name, "").lower() in ("true", "1", "yes")


def _minutes() -> float:
    text = os.environ.get(TIMEOUT, "120")
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 525600:
        raise ConfigError(f"{TIMEOUT} must be a number of minutes above 0 and below a year, got {text!r}")
    return minutes


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"the environment variable {name} must be a whole number of at least 1, got {text!r}")
    return int(text)
