"""Value functions: a linear head on the policy's hidden states, or a network of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rlhf_gym.language_model import LanguageModel
from rlhf_gym.lora import adapter_weights


class ValueHead(nn.Module):
    """A value from a hidden state: ``[..., D] -> [...]``.

    Starts near zero: weights normal with deviation ``scale / sqrt(D + 1)`` and bias 0, so that values of normalised hidden
    states have a deviation of about ``scale`` whatever the width. A head that starts at random would make the first
    advantages noise, and push that noise into a shared trunk.

    Args:
        hidden_size: ``D``.
        scale: deviation of the first values, in units of the reward.
    """

    def __init__(self, hidden_size: int, scale: float = 0.01) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.normal_(self.linear.weight, std=scale / (hidden_size + 1) ** 0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values in float32, whatever the model's precision: targets and clipping need it."""
        values = self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1)
        assert isinstance(values, Tensor)
        return values.float()


def value_trunk(model: LanguageModel) -> LanguageModel:
    """A trainable copy of a language model for a value network of its own, which starts from the policy's weights.

    Of an adapted model it is another adapter on the same base.
    """
    copy = model.frozen_copy()
    if model.adapter is not None:
        for parameter in adapter_weights(copy):
            parameter.requires_grad_(True)
        return copy
    copy.model.requires_grad_(True)
    # The copy's vocabulary head is never used; without gradients it is not mistaken for something that learns.
    network: Any = copy.model
    for parameter in network.get_output_embeddings().parameters():
        if not any(parameter is p for p in copy.trunk.parameters()):  # tied embeddings belong to the trunk
            parameter.requires_grad_(False)
    return copy
