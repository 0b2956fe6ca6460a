"""Norms of gradients and of updates, by group of layers: where a network learns, and where it comes apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_gym.agents.common.optimizer import BLOCK_IN_8_BITS, split_weights
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.sharding import one_number
from rlhf_gym.lm.quantization import import_bitsandbytes

GROUPS = ("embeddings", "first_layers", "middle_layers", "last_layers", "head", "value")
"""The groups of layers: thirds of the blocks; ``head`` is the last norm and an output layer that is not tied."""
_BLOCK = re.compile(r"\.(\d+)\.")
_EMBEDDINGS = re.compile(r"emb|wte|wpe|shared")


def layer_groups(policy: LMPolicy) -> dict[str, list[Tensor]]:
    """The weights that learn, of any shape ``[...]``, by group of layers; the value function's own are the group ``value``."""
    own = {id(weight) for weight in split_weights(policy)[0]}
    named = [(name, weight) for name, weight in policy.named_parameters() if weight.requires_grad]
    blocks = [int(found[1]) for name, weight in named if id(weight) not in own and (found := _BLOCK.search(name))]
    count = max(blocks, default=0) + 1
    groups: dict[str, list[Tensor]] = {group: [] for group in GROUPS}
    for name, weight in named:
        groups["value" if id(weight) in own else _group_of(name, count)].append(weight)
    return {group: weights for group, weights in groups.items() if weights}


def _group_of(name: str, count: int) -> str:
    """The group of a weight of the policy's trunk that has so many blocks."""
    if (found := _BLOCK.search(name)) is None:
        return "embeddings" if _EMBEDDINGS.search(name) else "head"
    third, block = max(1, round(count / 3)), int(found[1])
    return "first_layers" if block < third else "last_layers" if block >= count - third else "middle_layers"


def gradient_norms(groups: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
    """The norm of each group's gradient as it is now, ``[]``, as ``gradient_norm/GROUP``.

    Args:
        groups: weights of any shape ``[...]``, by group; those without a gradient count as 0.
    """
    return {
        f"gradient_norm/{group}": _norm(weight.grad for weight in weights if weight.grad is not None)
        for group, weights in groups.items()
    }


@torch.no_grad()
def update_norms(groups: Mapping[str, list[Tensor]], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The norm of each group's last step of Adam, ``[]``, as ``update_norm/GROUP``.

    It is computed from Adam's moments (Kingma and Ba 2015, algorithm 1), without weight decay, so that no copy of the weights
    is kept: one weight's step at a time is in memory. Of moments in 8 bits it is the step that the rounded ones make.

    Args:
        groups: weights of any shape ``[...]``, by group.
        optimizer: has made a step; weights that it has not moved count as 0.
    """
    options = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    norms = {}
    for group, weights in groups.items():
        moved = [weight for weight in weights if optimizer.state.get(weight)]
        steps = [_norm([_adam_step(optimizer.state[weight], options[id(weight)])]) for weight in moved]
        norms[f"update_norm/{group}"] = _norm(steps)
    return norms


def _adam_step(state: Mapping[str, Any], options: Mapping[str, Any]) -> Tensor:
    beta1, beta2 = options["betas"]
    step = state["step"]  # stays on its device: a transfer for each weight would wait for it
    mean, mean_square = moments(state)
    scale = (mean_square / (1 - beta2**step)).sqrt_().add_(options["eps"])
    return mean.div(scale).mul_(options["lr"] / (1 - beta1**step))


def moments(state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Adam's means of the gradient and of its square, of the weight's shape ``[...]`` each, in float32.

    Args:
        state: an optimizer's of one weight that it has moved: torch's AdamW, or that of bitsandbytes.
    """
    if "exp_avg" in state:
        return state["exp_avg"], state["exp_avg_sq"]
    if "absmax1" not in state:  # a small tensor
        return state["state1"], state["state2"]
    decode = import_bitsandbytes().functional.dequantize_blockwise
    mean, mean_square = (
        decode(state[f"state{n}"], absmax=state[f"absmax{n}"], code=state[f"qmap{n}"], blocksize=BLOCK_IN_8_BITS)
        for n in (1, 2)
    )
    return mean, mean_square


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of all these numbers together; 0 for none."""
    found = list(tensors)
    if not found:
        return torch.zeros(())
    return one_number(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(found))))
