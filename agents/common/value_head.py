"""Value functions: a linear head on the policy's hidden states, or a network of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.action_values import ActionValues
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import adapter_weights
from rlhf_gym.reward_model import RewardModel


class ValueHead(nn.Module):
    """A value from a hidden state: ``[..., D] -> [...]``.

    It starts near zero: weights are normal with standard deviation ``scale / sqrt(D + 1)``, and the bias is 0, so the values
    of normalised hidden states have a standard deviation of about ``scale`` whatever the width. A head with larger random
    weights would add noise to the first advantages, and to the gradient of a shared trunk.

    Args:
        hidden_size: ``D``.
        scale: standard deviation of the first values, in units of :attr:`unit`.

    Attributes:
        unit: the head's output is multiplied by it; 1, or the returns' root mean square (:meth:`measure`).
        seen: number of returns that the unit was measured on.
    """

    unit: Tensor
    seen: Tensor

    @property
    def acts_by(self) -> ActionValues | None:
        """Action values that the policy acts by, too; None where it acts by its model's logits alone."""
        return None

    def __init__(self, hidden_size: int, scale: float = 0.01) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.linear.weight, std=scale / (hidden_size + 1) ** 0.5)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in float32, whatever the model's precision: targets and clipping need it.

        Args:
            hidden: ``[..., D]``, the trunk's hidden states.

        Returns:
            float32 ``[...]``.
        """
        values = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
        assert isinstance(values, Tensor)
        return values.float() * self.unit

    @torch.no_grad()
    def measure(self, returns: Tensor) -> float:
        """Take the root mean square of all returns so far, these included, as the unit.

        The head's weights are divided by what the unit is multiplied by, so that no value changes (van Hasselt et al. 2016,
        "Learning values across many orders of magnitude", without the shift). The first unit alone multiplies
        them: the head starts near zero in units of the returns, whatever the scale of the rewards.

        Args:
            returns: ``[N]``, in units of the reward.

        Returns:
            The factor by which this changes the head's values: 1 but for the first unit.
        """
        squares = float(returns.double().square().sum())
        if squares == 0:
            return 1.0
        old, seen = float(self.unit), float(self.seen)
        new = math.sqrt((seen * old**2 + squares) / (seen + returns.numel()))
        self.unit.fill_(new)
        self.seen.fill_(seen + returns.numel())
        if seen == 0:
            return new / old
        for weight in self.linear.parameters():
            weight.mul_(old / new)
        return 1.0


def value_trunk(model: LanguageModel, start: RewardModel | None = None) -> LanguageModel:
    """A trainable trunk for a value network of its own.

    Args:
        model: the policy, whose weights it starts from; of an adapted model it is another adapter on the same base.
        start: a reward model, whose trunk it starts from instead. Its head is not taken over: it was fitted to the ends of
            texts, and is wrong in their middle (docs/ppo-details.md has numbers).

    Raises:
        ConfigError: the reward model's trunk or tokenizer is not of the policy's kind.
    """
    if start is not None:
        check_start(model, start)
    copy = (model if start is None else start.language_model).frozen_copy()
    if model.adapter is not None:
        for parameter in adapter_weights(copy):
            parameter.requires_grad_(True)
        return copy
    copy.unfreeze()
    # The copy's vocabulary head is never used; without gradients it does not count among the weights that learn.
    network: Any = copy.model
    for parameter in network.get_output_embeddings().parameters():
        if not any(parameter is p for p in copy.trunk.parameters()):  # tied embeddings belong to the trunk
            parameter.requires_grad_(False)
    return copy


SECOND_BASE = (
    "value_start with lora would take a second base into memory: leave one of them out (with lora, a separate value network is "
    "another adapter on the policy's base)"
)

PROBE = "theseareusualwords"
"""Letters alone: a text that every tokenizer can encode."""


def check_start(model: LanguageModel, start: RewardModel) -> None:
    """Refuse a reward model that no value network can start from: its trunk and tokenizer must be like the policy's.

    Args:
        model: the policy.
        start: the reward model.

    Raises:
        ConfigError: they differ, or the policy has an adapter.
    """
    other = start.language_model
    if model.adapter is not None:
        raise ConfigError(SECOND_BASE)

    def built(one: LanguageModel) -> tuple[object, ...]:
        return type(one.model), {name: weight.shape for name, weight in one.trunk.named_parameters()}

    if built(model) != built(other):
        raise ConfigError(
            f"value_start: the trunk of the reward model ({type(other.model).__name__}, width {other.hidden_size}) is not "
            f"built as the policy's ({type(model.model).__name__}, width {model.hidden_size}); fit it on the "
            "policy's base"
        )
    ours, theirs = model.tokenizer, other.tokenizer
    if ours.eos_id != theirs.eos_id or list(ours.encode(PROBE)) != list(theirs.encode(PROBE)):
        raise ConfigError(
            f"value_start: the tokenizers of the reward model ({theirs.name!r}) and of the policy ({ours.name!r}) differ; "
            "fit it on the policy's base"
        )
