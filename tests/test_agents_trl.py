"""Agreement with TRL: its trainers' own loss functions, run on the same tensors, give the same losses and gradients."""

from __future__ import annotations

import inspect
import textwrap
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl.experimental.online_dpo import OnlineDPOTrainer
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

from rlhf_gym.agents.common.advantages import group_relative, leave_one_out
from rlhf_gym.agents.common.kl import kl_estimate
from rlhf_gym.agents.common.losses import token_weights
from rlhf_gym.agents.common.policy_losses import policy_loss
from rlhf_gym.agents.common.preference_losses import preference_loss

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
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=settings.pop("delta", None), steps_per_generation=1,
            sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
        ),
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
    kind = clip.pop("kind", "ppo")
    loss = policy_loss(kind, flat, tensors["old"][MASK], advantages, LENGTHS, **clip).loss
    loss = loss + beta * kl_estimate(flat, tensors["ref"][MASK], "k3")
    weights = token_weights(LENGTHS, aggregation, constant_length=LIMIT)
    return (loss * weights.repeat_interleave(LENGTHS)).sum()


def assert_same(theirs: Any, mine: Any, tensors: dict[str, Tensor]) -> None:
    """Losses and gradients with respect to every log-probability; padding gets none."""
    results = []
    for function in (theirs, mine):
        new = tensors["new"].clone().requires_grad_(True)
        loss = function(new)
        loss.backward()
        results.append((loss.detach(), new.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
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
        lambda new: ours(new, tensors, "sequence", kind="gspo", clip_low=low, clip_high=high),
        tensors,
    )


@pytest.mark.parametrize("advantages", [1.0, -1.0])
def test_rloo_with_its_ratio_and_clip(tensors: dict[str, Tensor], advantages: float) -> None:
    """The ratio of the whole response, after the policy has moved; some of the four are clipped."""
    tensors = tensors | {"advantages": advantages * tensors["advantages"]}
    assert_same(
        lambda new: trl_loss(RLOOTrainer, new, tensors, epsilon_low=0.1, epsilon_high=0.3),
        lambda new: ours(new, tensors, "sequence", kind="response", clip_low=0.1, clip_high=0.3),
        tensors,
    )


def test_cispo(tensors: dict[str, Tensor]) -> None:
    """TRL's `epsilon_high` is the largest weight, 1.3; it has no smallest one."""
    assert_same(
        lambda new: trl_loss(GRPOTrainer, new, tensors, loss_type="cispo", epsilon_high=1.3),
        lambda new: ours(new, tensors, "token", kind="cispo", clip_low=1.0, clip_high=0.3),
        tensors,
    )


def test_sapo(tensors: dict[str, Tensor]) -> None:
    assert_same(
        lambda new: trl_loss(GRPOTrainer, new, tensors, loss_type="sapo"),
        lambda new: ours(new, tensors, "sequence", kind="sapo", clip_low=0.0),
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


def run_lines(method: Any, first: str, last: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the part of a TRL method that reaches from one line to another: it has no function of its own."""
    lines = inspect.getsource(method).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i >= begin and line.strip().startswith(last))
    exec(textwrap.dedent("\n".join(lines[begin : end + 1])), names)
    return names


SCORES = torch.tensor([1.0, 3.0, 0.5, -2.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 5.0, 7.5])


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_relative_to_the_group(scale: Any) -> None:
    trainer = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize", scale_rewards=scale, reward_weights=torch.ones(1)
    )
    found = run_lines(
        GRPOTrainer._generate_and_score_completions,
        "if self.multi_objective_aggregation",
        "advantages = torch.nan_to_num",
        {
            **vars(grpo_trainer), "self": trainer, "device": "cpu", "num_generations": 4,
            "rewards_per_func": SCORES[:, None], "unscorable_mask": torch.zeros(12, dtype=torch.bool),
        },
    )  # fmt: skip
    torch.testing.assert_close(group_relative(SCORES, 4, scale, epsilon=1e-4), found["advantages"])


def test_advantages_that_leave_one_out() -> None:
    found = run_lines(
        RLOOTrainer._generate_and_score_completions,
        "grouped_rewards = rewards.view",
        "advantages = torch.nan_to_num",
        {
            **vars(rloo_trainer), "self": SimpleNamespace(normalize_advantages=False), "num_generations": 4,
            "rewards": SCORES,
        },
    )  # fmt: skip
    torch.testing.assert_close(leave_one_out(SCORES, 4), found["advantages"])


@pytest.mark.parametrize(("theirs", "mine"), [("sigmoid", "dpo"), ("ipo", "ipo")])
def test_losses_of_pairs(theirs: str, mine: Any) -> None:
    margins = torch.linspace(-8, 8, 9, requires_grad=True)
    found = run_lines(
        OnlineDPOTrainer.training_step,
        "if self.args.loss_type",
        "raise NotImplementedError",
        {
            "self": SimpleNamespace(args=SimpleNamespace(loss_type=theirs), beta=0.3), "logits": margins,
            "F": torch.nn.functional,
        },
    )  # fmt: skip
    losses = [preference_loss(margins, 0.3, mine), found["losses"]]
    torch.testing.assert_close(losses[0], losses[1])
    slopes = [torch.autograd.grad(loss.sum(), margins)[0] for loss in losses]
    torch.testing.assert_close(slopes[0], slopes[1])
