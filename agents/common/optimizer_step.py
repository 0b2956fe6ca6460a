"""One step of the optimizer: the gradient clipped and checked, its norms and the update's measured."""

from __future__ import annotations

import torch

from rlhf_gym.agents.common.metrics import check_finite, read_once
from rlhf_gym.agents.common.norms import gradient_norms, layer_groups, update_norms
from rlhf_gym.agents.common.optimizer import clip_gradients
from rlhf_gym.agents.common.policy import LMPolicy


def clipped_step(
    policy: LMPolicy, scaler: torch.amp.GradScaler, *, max_norm: float, value_max_norm: float | None, where: str,
    measure_update: bool,
) -> dict[str, float]:  # fmt: skip
    """Clip the gradient, refuse NaN and infinity in it, step, and clear it.

    Args:
        policy: with gradients.
        scaler: of the loss; with float16 it skips a step whose scaled gradient overflowed, and lowers the scale.
        max_norm: of the gradient of all weights; with ``value_max_norm``, of the others.
        value_max_norm: of the value function's own weights; None clips all weights by one norm.
        where: the place in training, for the message.
        measure_update: also give the norms of the update, which costs as much as the step.

    Returns:
        Metrics of the step by name.

    Raises:
        NotFiniteError: the gradient is NaN or infinite, and not because of the scale.
    """
    optimizer = policy.optimizer
    scaler.unscale_(optimizer)
    groups = layer_groups(policy)
    by_group = gradient_norms(groups)  # before clipping
    clipped = clip_gradients(policy, max_norm, value_max_norm)
    norms = read_once(clipped | by_group, policy.language_model.device)
    of_all = torch.tensor([norms[name] for name in clipped])
    metrics: dict[str, float] = {}
    if scaler.is_enabled():
        scale = scaler.get_scale()
        metrics |= {"train/loss_scale": scale, "train/overflows": float(not of_all.isfinite().all())}
        if scale < 1:  # overflow is not the reason any more
            check_finite({"the gradient is": of_all}, where)
    else:
        check_finite({"the gradient is": of_all}, where)
    if of_all.isfinite().all():
        metrics |= norms
    scaler.step(optimizer)
    scaler.update()
    if measure_update:
        metrics |= read_once(update_norms(groups, optimizer), policy.language_model.device)
    optimizer.zero_grad(set_to_none=True)
    return metrics
