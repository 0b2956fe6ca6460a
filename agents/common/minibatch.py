"""The gradient of a minibatch, added up over micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rlhf_gym.agents.common.forward import micro_batches
from rlhf_gym.agents.common.losses import Aggregation, token_weights
from rlhf_gym.agents.common.metrics import check_finite, ratio_metrics, read_once
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Rollout, flat

Terms = dict[str, Tensor]
Losses = Callable[[Rollout, list[int], Tensor, Tensor | None], tuple[Terms, Terms]]
"""``(rollout, rows, log_probs [N], values [N] or None)`` to losses by name, ``[N]``, and metrics summed over tokens."""


def accumulate_gradient(
    policy: LMPolicy,
    rollout: Rollout,
    rows: list[int],
    losses: Losses,
    coefficient: Callable[[str], float],
    *,
    aggregation: Aggregation,
    tokens_per_batch: int,
    entropy: bool,
    where: str,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    own: list[int] | None = None,
) -> tuple[dict[str, float], Tensor]:
    """Add the gradient of a minibatch's loss to the policy's weights.

    Args:
        policy: the policy.
        rollout: the episodes, advantages filled in.
        rows: the minibatch's episodes.
        losses: the losses of a micro-batch's tokens.
        coefficient: the weight of a loss in the total, by its name; an entropy bonus is the loss ``"entropy"``.
        aggregation: how token losses are averaged.
        tokens_per_batch: padded tokens per micro-batch.
        entropy: compute entropies exactly.
        where: the place in training, for messages.
        scale: multiplies the loss ``[]`` before its gradient is taken, as float16 needs it; the optimizer divides again.
        own: the part of ``rows`` whose gradient and metrics are computed, with the weights that they have in the whole
            minibatch; None for all of them. The parts' results add up to the minibatch's.

    Returns:
        The minibatch's metrics, means over tokens, and its losses, each as ``"NAME loss"`` and together as ``"loss"``; and the
        ratios of the tokens, float32 ``[N]`` on the CPU.

    Raises:
        TrainingError: a loss is NaN or infinite.
    """
    lengths = torch.tensor([rollout.lengths[i] for i in rows])
    # A token has its weight in the whole minibatch, so the cut into micro-batches changes nothing.
    weights = token_weights(lengths, aggregation, constant_length=policy.limits.max_new_tokens)
    weight_of, share = dict(zip(rows, weights, strict=True)), 1 / int(lengths.sum())
    device = policy.language_model.device
    sums: Terms = {}
    log_ratios: list[Tensor] = []
    for micro, log_probs, entropies, values in micro_batches(
        policy, rollout, rows if own is None else own, tokens_per_batch, entropy=entropy
    ):
        weight = torch.cat([weight_of[i].expand(rollout.lengths[i]) for i in micro]).to(device, non_blocking=True)
        terms, metrics = losses(rollout, micro, log_probs, values)
        terms["policy"] = terms["policy"] * flat(rollout.importance, micro, rollout.mask).to(device, non_blocking=True)
        means = {name: (loss * weight).sum() for name, loss in terms.items()}
        means["entropy"] = -(entropies * weight).sum()
        check_finite({f"the {name} loss is": loss.detach() for name, loss in means.items()}, where)
        total = torch.stack([means[name] * coefficient(name) for name in means]).sum()
        scale(total).backward()  # type: ignore[no-untyped-call]
        old_log_probs = flat(rollout.log_probs, micro, rollout.mask).to(device, non_blocking=True)
        metrics |= ratio_metrics(log_probs, old_log_probs)
        log_ratios.append(log_probs.detach() - old_log_probs)
        metrics["entropy"] = entropies.detach().sum()
        amounts = {name: amount * share for name, amount in metrics.items()}
        amounts |= {f"{name} loss": loss.detach() for name, loss in means.items()} | {"loss": total.detach()}
        sums = {name: sums.get(name, 0) + amount for name, amount in amounts.items()}
    if not sums:
        return {}, torch.zeros(0)
    return read_once(sums), torch.cat(log_ratios).exp().cpu()


def add_gradients(
    passes: Iterable[tuple[Tensor, Terms]], scaler: torch.amp.GradScaler, where: str, *, what: str
) -> dict[str, float]:
    """Add the gradients of a loss's parts to the weights.

    Args:
        passes: for each micro-batch its part of the minibatch's loss, ``[]``, and its part of the metrics.
        scaler: of the loss.
        where: the place in training, for messages.
        what: the loss's name, for messages.

    Returns:
        The sums of the metrics.

    Raises:
        TrainingError: a loss is NaN or infinite.
    """
    parts = []
    for loss, metrics in passes:
        check_finite({what: loss.detach()}, where)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        parts.append(metrics)
    return read_once(sum_terms(parts))


def sum_terms(parts: Iterable[Terms]) -> Terms:
    """The sums of numbers ``[]`` by name; a part may lack some."""
    out: Terms = {}
    for part in parts:
        for name, amount in part.items():
            out[name] = out[name] + amount if name in out else amount
    return out
