"""How a reward model reads its trunk: after how many layers, and at which tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class Readout:
    """Where a reward model's head reads the trunk's hidden states.

    Attributes:
        layers: number of the trunk's first layers to run; later ones are dropped, which also saves their time. None: all.
        pooling: ``"last"`` reads the state of the last token (EOS), ``"mean"`` the mean over all tokens.

    Raises:
        ConfigError: a value out of its range.
    """

    layers: int | None = None
    pooling: Pooling = "last"

    def __post_init__(self) -> None:
        if self.layers is not None and self.layers < 1:
            raise ConfigError(f"a reward model's layers must be at least 1, or None, got {self.layers}")
        if self.pooling not in get_args(Pooling):
            raise ConfigError(
                f"a reward model's pooling must be one of {', '.join(get_args(Pooling))}; got {self.pooling!r}"
            )


def layer_stack(language_model: LanguageModel) -> tuple[str, nn.ModuleList]:
    """The list of a trunk's layers, with its name in the trunk; an empty list where it is kept in a way that is not known."""
    stacks = [
        (name, child) for name, child in language_model.trunk.named_children() if isinstance(child, nn.ModuleList)
    ]
    return stacks[-1] if stacks else ("", nn.ModuleList())


def keep_layers(language_model: LanguageModel, number: int) -> None:
    """Drop all layers of a trunk after its first ones, in place; its final norm stays.

    Args:
        language_model: the model; its configuration is changed with it, so that it is saved and loaded as it is.
        number: layers to keep, at least 1.

    Raises:
        ModelError: there are fewer layers, or they are kept in a way that is not known.
    """
    name, stack = layer_stack(language_model)
    if number > len(stack):
        raise ModelError(
            f"cannot read {language_model.name!r} after {number} layers: it has {len(stack) or 'none'} that can be read apart; "
            "leave layers at None to read it after all of them"
        )
    if number == len(stack):
        return
    setattr(language_model.trunk, name, stack[:number])
    config: Any = language_model.model.config.get_text_config()
    config.num_hidden_layers = number
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:number]


def mean_states(hidden: Tensor, lengths: list[int]) -> Tensor:
    """Means of hidden states over the real tokens.

    Args:
        hidden: ``[N, T, D]``, padded on the right.
        lengths: number of real tokens of each row, ``N`` of them.

    Returns:
        float32 ``[N, D]``.
    """
    count = torch.tensor(lengths, device=hidden.device)
    real = torch.arange(hidden.shape[1], device=hidden.device) < count[:, None]  # [N, T]
    # masked_fill, not a product: states at padding may be anything.
    total = hidden.float().masked_fill(~real[..., None], 0.0).sum(dim=1)
    return total / count[:, None]
