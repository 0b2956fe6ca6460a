"""How a reward model reads its trunk: after how many layers, and at which tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel

Pooling = Literal["last", "mean", "response", "both"]


if TYPE_CHECKING:
    _Ids = array[int]
else:
    _Ids = array  # Python 3.11 knows no array[int]


class EncodedText(_Ids):
    """Ids of a prompt with its response and EOS, which know how many of them are the response's.

    An array, of four bytes an id, where a list takes up to 40: a fit holds all texts of its data.

    Args:
        ids: all ids.
        num_response: number of the last ids that are the response's, EOS included; at least 1.
    """

    __slots__ = ("num_response",)
    num_response: int

    def __new__(cls, ids: Iterable[int], num_response: int) -> Self:
        """An array of 32-bit integers."""
        made: Self = super().__new__(cls, "i", ids)  # type: ignore[assignment]  # typeshed says array
        made.num_response = min(num_response, len(made))
        return made


def first_read(sequence: Sequence[int], pooling: Pooling) -> int:
    """The place of the first id whose state a mean is taken of: 0, or the response's begin where that is known.

    Args:
        sequence: ids.
        pooling: any but ``"last"``.
    """
    if pooling != "mean" and isinstance(sequence, EncodedText):
        return len(sequence) - sequence.num_response
    return 0


@dataclass(frozen=True)
class Readout:
    """Where a reward model's head reads the trunk's hidden states.

    Attributes:
        layers: number of the trunk's first layers to run; later ones are dropped, which also saves their time. None: all.
        pooling: ``"last"`` reads the state of the last token (EOS), ``"mean"`` the mean over all tokens, ``"response"`` that
            over the response's tokens, EOS included, ``"both"`` the last and the response's, one behind the other.

    Raises:
        ConfigError: a value out of its range.
    """

    layers: int | None = None
    pooling: Pooling = "last"

    def width(self, hidden_size: int) -> int:
        """The number of values that the head reads, of a trunk with states of this size."""
        return hidden_size * (2 if self.pooling == "both" else 1)

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


def mean_states(hidden: Tensor, begins: list[int], ends: list[int]) -> Tensor:
    """Means of hidden states over some tokens of each row.

    Args:
        hidden: ``[N, T, D]``, padded on the right.
        begins: the place of each row's first token that counts, ``N`` of them.
        ends: the place after each row's last one, ``N`` of them.

    Returns:
        float32 ``[N, D]``.
    """
    first, after = torch.tensor(begins, device=hidden.device), torch.tensor(ends, device=hidden.device)
    place = torch.arange(hidden.shape[1], device=hidden.device)
    counts = (place >= first[:, None]) & (place < after[:, None])  # [N, T]
    # masked_fill, not a product: states at padding may be anything.
    total = hidden.float().masked_fill(~counts[..., None], 0.0).sum(dim=1)
    return total / (after - first)[:, None]
