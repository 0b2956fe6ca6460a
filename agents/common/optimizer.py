"""An agent's optimizer, its learning rate over the course of training, and a step that clips gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.agents.common.settings import AgentSettings
from rlhf_gym.agents.common.sharding import one_number
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.quantization import import_bitsandbytes, require_bitsandbytes

BLOCK_IN_8_BITS, SMALLEST_IN_8_BITS = 256, 4096
"""Of the moments that bitsandbytes keeps in 8 bits: the numbers that share a scale, and those of the smallest such tensor."""

FIRST_RATE = 0.1
"""Part of the learning rate that a warm-up begins with: at 0, the first iteration would be for nothing."""


def rate_at(progress_remaining: float, decay: str, warmup: float) -> float:
    """The part of the learning rate that holds at a place in training.

    Args:
        progress_remaining: from 1 at the start to 0 at the end.
        decay: ``"constant"``, ``"linear"`` or ``"cosine"``: over the part of training after the warm-up.
        warmup: the part of training in which the rate rises, in [0, 1).
    """
    done = 1 - progress_remaining
    if done < warmup:
        return FIRST_RATE + (1 - FIRST_RATE) * done / warmup
    left = progress_remaining / (1 - warmup)
    if decay == "linear":
        return left
    if decay == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return 1.0


def require_optimizer(name: str) -> None:
    """Refuse an optimizer, the setting ``optimizer``, that is not installed; nothing is imported for that.

    Raises:
        ConfigError: its library is missing.
    """
    if name == "adamw_8bit":
        require_bitsandbytes("optimizer='adamw_8bit'")


def check_parts(name: str, ranks: Ranks) -> None:
    """Refuse an optimizer that cannot step weights in parts, where ranks keep parts.

    Args:
        name: the setting ``optimizer``.
        ranks: the processes.

    Raises:
        ConfigError: it cannot.
    """
    if name == "adamw_8bit" and ranks.sharded and ranks.shared:
        raise ConfigError(
            "optimizer='adamw_8bit' cannot step weights of which each rank keeps a part: take optimizer='adamw', whose moments "
            "are shared out, or launch without accelerate's FSDP"
        )


def make_optimizer(policy: LMPolicy, given: AgentSettings, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019) for the weights that learn; with a learning rate of its own for the value function.

    With moments in 8 bits it is that of Dettmers et al. 2022, in blocks of :data:`BLOCK_IN_8_BITS` numbers.

    Args:
        policy: whose weights learn.
        given: the agent's settings.
        learning_rate: at the start.

    Returns:
        The optimizer. A group with a learning rate of its own has it under the key ``own_rate``; the others have None.
    """
    values, others = split_weights(policy)
    own_rate = getattr(given, "value_learning_rate", None)
    groups: list[dict[str, Any]] = [{"params": [*others, *values], "own_rate": None}]
    if own_rate is not None and values:
        groups = [{"params": others, "own_rate": None}, {"params": values, "own_rate": own_rate}]
    for group in groups:
        group["lr"] = learning_rate if group["own_rate"] is None else own_rate
    options: dict[str, Any] = {
        "betas": (given.adam_beta1, given.adam_beta2), "eps": given.adam_epsilon, "weight_decay": given.weight_decay
    }  # fmt: skip
    if given.optimizer == "adamw_8bit":
        optimizer: torch.optim.Optimizer = import_bitsandbytes().optim.AdamW8bit(groups, **options)
        optimizer.register_step_post_hook(_note_changes)
        return optimizer
    return torch.optim.AdamW(groups, **options, fused=policy.language_model.device.type in ("cpu", "cuda"))


def _note_changes(optimizer: torch.optim.Optimizer, args: Any, options: Any) -> None:
    """Count up the versions of weights, which bitsandbytes changes past torch; engines and caches go by them."""
    for group in optimizer.param_groups:
        increment_version([weight for weight in group["params"] if weight.grad is not None])


def split_weights(policy: LMPolicy) -> tuple[list[Tensor], list[Tensor]]:
    """The weights that learn, each in its own shape ``[...]``: those of the value function alone, and all others."""
    own: list[nn.Module] = [] if policy.value_head is None else [policy.value_head]
    if policy.value_trunk is not None:
        own.append(policy.value_network)
    values: dict[int, Tensor] = {id(p): p for module in own for p in module.parameters() if p.requires_grad}
    others: list[Tensor] = [p for p in policy.parameters() if p.requires_grad and id(p) not in values]
    return list(values.values()), others


def clip_gradients(policy: LMPolicy, max_norm: float, value_max_norm: float | None) -> dict[str, Tensor]:
    """Clip the norm of the gradient, and that of the value function's own weights by itself where it has a limit.

    Args:
        policy: with gradients.
        max_norm: of all weights; with ``value_max_norm``, of the others.
        value_max_norm: of the value function's own weights; None clips all weights by one norm.

    Returns:
        The norms before clipping, ``[]`` each, by the name of their metric.
    """

    def clip(weights: Iterable[Tensor], limit: float) -> Tensor:
        return one_number(torch.nn.utils.clip_grad_norm_(weights, limit))

    if value_max_norm is None:
        return {"train/grad_norm": clip(policy.parameters(), max_norm)}
    values, others = split_weights(policy)
    norms = {"train/grad_norm": clip(others, max_norm), "train/value_grad_norm": clip(values, value_max_norm)}
    # Where no weight has a gradient, as the policy's during a warm-up, torch gives a 0 on the CPU.
    return {name: norm.to(policy.language_model.device) for name, norm in norms.items()}
