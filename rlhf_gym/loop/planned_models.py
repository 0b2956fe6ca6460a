"""Language models and adapters of which a memory plan needs the shapes alone: nothing can be checked by running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, target_layers
from rlhf_gym.loop.planned_four_bits import widths


class NoTokens:
    """A tokenizer of no text: a plan needs lengths alone."""

    name = "plan"
    vocab_size = eos_id = pad_id = 0

    def encode(self, text: str) -> list[int]:
        """No ids."""
        return []

    encode_prompt = encode

    def decode(self, ids: Sequence[int]) -> str:
        """No text."""
        return ""


class Outline(LanguageModel):
    """A language model without data, which cannot be checked by running it."""

    def _check_model(self) -> tuple[int, int]:
        self._head_is_plain = True
        head: Any = self.head
        return int(head.weight.shape[0]), int(head.weight.shape[1])


class _LowRank(nn.Module):
    """A linear layer with the adapter that peft would give it; peft cannot work on tensors without data."""

    def __init__(self, layer: nn.Module, lora: Lora) -> None:
        super().__init__()
        self.layer = layer
        rows, columns = widths(layer)
        self.down, self.up = nn.Linear(rows, lora.rank, bias=False), nn.Linear(lora.rank, columns, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``W x + B A x``.

        Args:
            x: ``[..., in]``.
        """
        change: Tensor = self.up(self.down(x.to(self.down.weight.dtype)))
        out: Tensor = self.layer(x)
        return out + change.to(out.dtype)


def adapt(model: LanguageModel, lora: Lora) -> None:
    """Put an adapter on a model, and freeze all other weights.

    Args:
        model: the model.
        lora: the adapter's settings.
    """
    model.model.requires_grad_(False)
    for name, layer in target_layers(model, lora.targets):
        parent, _, last = name.rpartition(".")
        setattr(model.model.get_submodule(parent), last, _LowRank(layer, lora))


def share(network: nn.Module, base: nn.Module) -> None:
    """Have a network use a base's frozen weights in place of its own.

    Args:
        network: an adapted network.
        base: the same network with another adapter.
    """
    for ours, theirs in zip(network.modules(), base.modules(), strict=True):
        for name, weight in theirs.named_parameters(recurse=False):
            if not weight.requires_grad:
                setattr(ours, name, weight)
