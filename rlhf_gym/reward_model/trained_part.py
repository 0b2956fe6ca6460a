"""The weights that a fit changes: trunk (or its last layers) and head, or the head alone on features of a frozen trunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from rlhf_gym.errors import ModelError
from rlhf_gym.reward_model.features import Features
from rlhf_gym.reward_model.model import RewardModel


class TrainedPart(AbstractContextManager["TrainedPart"]):
    """What is trained of a reward model; as a context, it leaves everything else as it was found, even after Ctrl-C.

    Attributes:
        model: the reward model.
        trunk: weights of the trunk that are trained.
        head: weights of the head that are trained.
    """

    model: RewardModel
    trunk: list[nn.Parameter]
    head: list[nn.Parameter]

    def parameters(self) -> list[nn.Parameter]:
        """All weights that are trained."""
        return [*self.trunk, *self.head]

    def scores(self, sequences: Sequence[Sequence[int]], *, dropout: bool = True) -> Tensor:
        """Raw scores of encoded sequences by each head, differentiable.

        Args:
            sequences: ``N`` sequences.
            dropout: with the dropout of the fit.

        Returns:
            ``[N, A]``; ``[N, 1]`` with one head.
        """
        raise NotImplementedError

    def settle(self) -> None:
        """Write what was learned to the model, where it is not there already."""

    def weights(self) -> dict[str, Tensor]:
        """Copies of the model's weights that are trained, by name, each in its own shape (the head's ``[A, D]``)."""
        return {name: tensor.detach().clone() for name, tensor in self._changing()}

    @torch.no_grad()
    def restore(self, weights: dict[str, Tensor]) -> None:
        """Give the model weights of an earlier moment, as :meth:`weights` copied them: the head's ``[A, D]``."""
        for name, tensor in self._changing():
            tensor.copy_(weights[name])

    def _changing(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((f"head.{name}", p) for name, p in self.model.head.named_parameters())


class TrunkAndHead(TrainedPart):
    """The trunk, or its last layers, with the head.

    Args:
        model: the reward model.
        last_layers: number of the trunk's last layers to train; None: all of it.
        dropout: rate, while scores are computed.

    Raises:
        ModelError: the trunk is quantized, has fewer layers, or keeps them in a way that is not known.
    """

    def __init__(self, model: RewardModel, last_layers: int | None, dropout: float) -> None:
        if (kind := model.language_model.quantization) is not None:
            raise ModelError(
                f"the weights of {model.language_model.name!r} are in 4 bits ({kind}) and cannot learn: fit the head alone, "
                "trunk_layers=0, or load the model without quantization"
            )
        self.model, self._dropout = model, dropout
        self._before = [(p, p.requires_grad) for p in model.parameters()]
        self._modules = None if last_layers is None else [model.head, *model.last_layers(last_layers)]

    def __enter__(self) -> Self:
        for p, _ in self._before:
            p.requires_grad_(self._modules is None)
        for module in self._modules or ():
            module.requires_grad_(True)
        self.trunk = [p for p in self.model.language_model.trunk.parameters() if p.requires_grad]
        self.head = list(self.model.head.parameters())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        for p, flag in self._before:
            p.requires_grad_(flag)
            p.grad = None

    def scores(self, sequences: Sequence[Sequence[int]], *, dropout: bool = True) -> Tensor:
        """See :meth:`TrainedPart.scores`.

        Args:
            sequences: ``N`` sequences.
            dropout: with the dropout of the fit.

        Returns:
            ``[N, A]``.
        """
        with self.model.dropout(
            self._dropout * dropout
        ):  # not around a whole fit: the held-out loss is measured without
            return self.model.read_heads(self.model.states(sequences))

    def _changing(self) -> Iterator[tuple[str, nn.Parameter]]:
        named = self.model.language_model.trunk.named_parameters()
        yield from ((f"trunk.{name}", p) for name, p in named if p.requires_grad)
        yield from super()._changing()


class HeadOnFeatures(TrainedPart):
    """The head alone. It learns, from 0, on features of mean 0 and standard deviation 1: units differ a thousandfold.

    A sequence is one number here, its row of the features.

    Args:
        model: the reward model.
        features: its trunk's features.
        rows: the rows that are trained on, whose mean and standard deviation are taken.
        dropout: rate, before the head.
    """

    def __init__(self, model: RewardModel, features: Features, rows: Sequence[int], dropout: float) -> None:
        self.model, self._features, self._dropout = model, features, dropout
        self._mean, self._std = features.spread(rows)
        head = model.head
        self._head = nn.Linear(head.in_features, head.out_features, device=head.weight.device)
        with torch.no_grad():
            self._head.weight.zero_()
            self._head.bias.zero_()
        self.trunk, self.head = [], list(self._head.parameters())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Nothing to put back: the model's own weights took no gradients."""

    def scores(self, sequences: Sequence[Sequence[int]], *, dropout: bool = True) -> Tensor:
        """See :meth:`TrainedPart.scores`.

        Args:
            sequences: ``N`` sequences, each a row of the features.
            dropout: with the dropout of the fit.

        Returns:
            ``[N, A]``.
        """
        states = (self._features[[row for (row,) in sequences]] - self._mean) / self._std
        scores = self._head(nn.functional.dropout(states, self._dropout * dropout))
        assert isinstance(scores, Tensor)
        return scores

    @torch.no_grad()
    def settle(self) -> None:
        """Write the head to the model, in units of the features themselves."""
        weight = self._head.weight / self._std
        self.model.head.weight.copy_(weight)
        self.model.head.bias.copy_(self._head.bias - weight @ self._mean)
