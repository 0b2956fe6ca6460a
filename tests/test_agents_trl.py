"""Agreement with TRL: its trainers' own loss functions, run on the same tensors, give the same losses and gradients."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from rlhf_gym.agents.kl import kl_estimate
from rlhf_gym.agents.losses import clipped_policy_loss, sequence_clipped_policy_loss, token_weights

LENGTHS = torch.tensor([5, 3, 1, 4])
LIMIT = 5
MASK = torch.arange(LIMIT)[None] < LENGTHS[:, None]


class Accelerator:
    """One process, which has nothing to gather."""

    num_processes = 1

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    gather_for_metrics = gather

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    old = -2 * torch.rand(4, LIMIT) - 0.1
    return {
        "old": old,
        "new": old + 0.3 * torch.randn(4, LIMIT),
        "ref": old + 0.2 * torch.randn(4, LIMIT),
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.5]),
    }


def trl_loss(kind: Any, new: Tensor, tensors: dict[str, Tensor], **settings: Any) -> Tensor:
    """The trainer's own ``_compute_loss``, given log-probabilities in the place of a model."""
    trainer = SimpleNamespace(
        accelerator=Accelerator(), model=SimpleNamespace(training=False), _metrics={"eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=settings.pop("delta", None), steps_per_generation=1),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1, max_completion_length=LIMIT,
        **{"importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2} | settings,
    )  # fmt: skip
    ids = torch.zeros(4, LIMIT, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :2], "prompt_mask": torch.ones(4, 2), "completion_ids": ids, "completion_mask": MASK.float(),
        "advantages": tensors["advantages"], "old_per_token_logps": tensors["old"], "ref_per_token_logps": tensors["ref"],
        "old_logps": (tensors["old"] * MASK).sum(1), "num_items_in_batch": LENGTHS.sum(),
    }  # fmt: skip
    loss: Tensor = kind._compute_loss(trainer, None, inputs)
    return loss


def ours(new: Tensor, tensors: dict[str, Tensor], aggregation: Any, beta: float = 0.0, **clip: Any) -> Tensor:
    flat = new[MASK]
    advantages = tensors["advantages"][:, None].expand_as(new)[MASK]
    if clip.pop("sequence", False):
        loss = sequence_clipped_policy_loss(flat, tensors["old"][MASK], advantages, LENGTHS, **clip).loss
    else:
        loss = clipped_policy_loss(flat, tensors["old"][MASK], advantages, **clip).loss
    loss = loss + beta * kl_estimate(flat, tensors["ref"][MASK], "k3")
    weights = token_weights(LENGTHS, aggregation, constant_length=LIMIT)
    return (loss * weights.repeat_interleave(LENGTHS)).sum()


def assert_same(theirs: Any, mine: Any, tensors: dict[str, Tensor], scale: float = 1.0) -> None:
    """Losses and gradients with respect to every log-probability; padding gets none."""
    results = []
    for function in (theirs, mine):
        new = tensors["new"].clone().requires_grad_(True)
        loss = function(new)
        loss.backward()
        results.append((loss.detach(), new.grad))
    torch.testing.assert_close(results[0][0], results[1][0] * scale)
    torch.testing.assert_close(results[0][1], results[1][1] * scale)
    assert results[1][1] is not None
    assert not results[1][1][~MASK].any()


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("loss_type", "aggregation"), [("grpo", "sequence"), ("dapo", "token"), ("bnpo", "token"), ("dr_grpo", "constant")]
)
def test_grpo_and_its_descendants(tensors: dict[str, Tensor], loss_type: str, aggregation: str, beta: float) -> None:
    assert_same(
        lambda new: trl_loss(GRPOTrainer, new, tensors, loss_type=loss_type, beta=beta),
        lambda new: ours(new, tensors, aggregation, beta, clip_low=0.2),
        tensors,
    )


def test_clip_higher_and_dual_clip(tensors: dict[str, Tensor]) -> None:
    assert_same(
        lambda new: trl_loss(GRPOTrainer, new, tensors, loss_type="dapo", epsilon_high=0.28, delta=1.5),
        lambda new: ours(new, tensors, "token", clip_low=0.2, clip_high=0.28, dual_clip=1.5),
        tensors,
    )


@pytest.mark.parametrize("clips", [(3e-4, 4e-4), (0.1, 0.2)])
def test_gspo(tensors: dict[str, Tensor], clips: tuple[float, float]) -> None:
    low, high = clips
    assert_same(
        lambda new: trl_loss(
            GRPOTrainer,
            new,
            tensors,
            loss_type="grpo",
            importance_sampling_level="sequence",
            epsilon_low=low,
            epsilon_high=high,
        ),
        lambda new: ours(new, tensors, "sequence", sequence=True, clip_low=low, clip_high=high),
        tensors,
    )


def test_rloo_follows_the_same_gradient(tensors: dict[str, Tensor]) -> None:
    """TRL's ratio is 1 where the policy has not moved; there its gradient is REINFORCE's, ours times the constant length."""
    gradients = []
    for function in (
        lambda new: trl_loss(RLOOTrainer, new, tensors),
        lambda new: -(new[MASK] * (tensors["advantages"][:, None].expand_as(new) / (4 * LIMIT))[MASK]).sum() * LIMIT,
    ):
        new = tensors["old"].clone().requires_grad_(True)
        function(new).backward()
        gradients.append(new.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
