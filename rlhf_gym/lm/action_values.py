"""Action values on top of a language model: two Q heads, the lesser of which shifts the logits of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_gym.errors import ModelError

FILE = "action_values.safetensors"
"""Stands beside a model's weights; transformers does not read it."""


class ActionValues(nn.Module):
    """The values of all next tokens by two linear heads on the last hidden states (Snell et al. 2022, ILQL).

    Responses are drawn from ``softmax(log pi + beta (min(Q1, Q2) - V))``. ``V`` is the same for all tokens, so the softmax
    cancels it, and ``beta min(Q1, Q2)`` is all that the logits need.

    Args:
        hidden_size: ``D``.
        vocab_size: ``V``.
        beta: weight of the values in the logits.
        scale: standard deviation of the first values.
    """

    def __init__(self, hidden_size: int, vocab_size: int, beta: float, *, scale: float = 0.01) -> None:
        super().__init__()
        self.q1, self.q2 = nn.Linear(hidden_size, vocab_size), nn.Linear(hidden_size, vocab_size)
        self.beta = beta
        for head in (self.q1, self.q2):
            nn.init.normal_(head.weight, std=scale / (hidden_size + 1) ** 0.5)
            nn.init.zeros_(head.bias)

    def both(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The two heads' values of all tokens, float32 ``[..., V]`` each, from hidden states ``[..., D]``."""
        hidden = hidden.to(self.q1.weight.dtype)
        return self.q1(hidden).float(), self.q2(hidden).float()

    def least_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """The lesser of the two values of one token in each state; no other token's is computed.

        Args:
            hidden: ``[N, D]``.
            tokens: int64 ``[N]``.

        Returns:
            float32 ``[N]``.
        """
        hidden = hidden.to(self.q1.weight.dtype)
        one, other = ((hidden * q.weight[tokens]).sum(-1) + q.bias[tokens] for q in (self.q1, self.q2))
        return torch.minimum(one, other).float()

    def forward(self, hidden: Tensor) -> Tensor:
        """What is added to the logits: ``beta min(Q1, Q2)``, float32 ``[..., V]`` from hidden states ``[..., D]``."""
        return self.beta * torch.minimum(*self.both(hidden))

    def save(self, folder: Path | str) -> None:
        """Write the values to the folder of a model that is there already."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file({**tensors, "beta": torch.tensor(self.beta, dtype=torch.float64)}, Path(folder) / FILE)

    @classmethod
    def load(cls, folder: Path | str, hidden_size: int, vocab_size: int, device: torch.device) -> Self | None:
        """The values in a model's folder, frozen; None where it has none.

        Args:
            folder: the model's.
            hidden_size: ``D`` of the model.
            vocab_size: ``V`` of the model.
            device: device of the heads.

        Raises:
            ModelError: the file is damaged, or belongs to another model.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            return None
        try:
            tensors = load_file(file)
            found = cls(hidden_size, vocab_size, float(tensors.pop("beta")))
            found.load_state_dict(tensors)
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the action values in {file} do not go with the model beside them ({error}): write the folder anew, by the "
                "save of the model or the agent that made it"
            ) from error
        return found.requires_grad_(False).to(device)
