"""The hidden states that a head reads from a frozen trunk: computed once for each text, and kept for every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.lm.chat_template import Messages
from rlhf_gym.lm.precision import Precision, product_dtype
from rlhf_gym.lm.sequences import batches_by_length
from rlhf_gym.reward_model.batches import Text
from rlhf_gym.reward_model.model import RewardModel

IN_MEMORY = 1 << 30
"""Most bytes of features that are kept in memory; more go to a temporary file."""


class Features:
    """Pooled hidden states ``[S, D]`` of texts, float32; each text goes through the trunk once.

    They hold as long as the trunk does not change. More than :data:`IN_MEMORY` bytes are kept in a file of the system's
    temporary folder, which is deleted with this object.

    Args:
        model: the reward model whose trunk is read; its head may change.
        precision: of the trunk's matrix products, see :mod:`rlhf_gym.lm.precision`.
        tokens_per_batch: most padded tokens of one forward pass.
    """

    def __init__(self, model: RewardModel, *, precision: Precision = "auto", tokens_per_batch: int = 8192) -> None:
        self.model = model
        self._cut = set[Text]()
        self._tokens_per_batch = tokens_per_batch
        self._dtype = product_dtype(precision, model.language_model.device)
        self._place: dict[Text, int] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._table: NDArray[np.float32] = np.zeros((0, model.head.in_features), np.float32)

    def __len__(self) -> int:
        return len(self._place)

    def rows(
        self, texts: Mapping[Text, Messages | None], on_progress: Callable[[int, int], None] | None = None
    ) -> list[int]:
        """The rows of texts; those that are not there yet are computed and added.

        Args:
            texts: prompts with their responses, each with the prompt's chat messages, if any.
            on_progress: called after each forward pass with the texts computed and all that are to be computed.
        """
        new = {text: messages for text, messages in texts.items() if text not in self._place}
        if new:
            self._add(new, on_progress)
        return [self._place[text] for text in texts]

    def n_cut(self, texts: Iterable[Text]) -> int:
        """The number of texts that exceeded the trunk's context, of which the beginning was cut."""
        return len(self._cut.intersection(texts))

    def __getitem__(self, rows: Sequence[int]) -> Tensor:
        """Features float32 ``[len(rows), D]``, on the head's device."""
        return torch.from_numpy(np.array(self._table[np.asarray(rows, dtype=np.int64)])).to(
            self.model.head.weight.device
        )

    def spread(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float32 ``[D]`` each, over some rows; a unit that never changes has 1.

        Args:
            rows: at least one row.
        """
        total, squares = np.zeros(self._table.shape[1]), np.zeros(self._table.shape[1])
        for begin in range(0, len(rows), 65536):  # chunked: the table may be larger than memory
            part = self._table[np.asarray(rows[begin : begin + 65536])].astype(np.float64)
            total += part.sum(axis=0)
            squares += (part**2).sum(axis=0)
        mean = total / len(rows)
        std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0.0))
        std[std < 1e-6 * (1 + np.abs(mean))] = 1.0
        device = self.model.head.weight.device
        return torch.tensor(mean, dtype=torch.float32, device=device), torch.tensor(
            std, dtype=torch.float32, device=device
        )

    @torch.no_grad()
    def _add(self, texts: dict[Text, Messages | None], on_progress: Callable[[int, int], None] | None) -> None:
        first, done = len(self._place), 0
        sequences, cut = self.model.encode_all([(*text, messages) for text, messages in texts.items()])
        table = self._grown(first + len(texts))
        device = self.model.language_model.device
        for batch in batches_by_length([len(s) for s in sequences], self._tokens_per_batch):
            with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
                states = self.model.states([sequences[i] for i in batch])
            table[[first + i for i in batch]] = states.float().cpu().numpy()
            done += len(batch)
            if on_progress:
                on_progress(done, len(texts))
        # Last: an interrupted pass leaves no text with an empty row.
        self._table = table
        self._place.update((text, first + i) for i, text in enumerate(texts))
        self._cut.update(text for text, is_cut in zip(texts, cut, strict=True) if is_cut)

    def _grown(self, rows: int) -> NDArray[np.float32]:
        """A table of more rows that begins with the present ones, in memory or in a file."""
        shape = (rows, self._table.shape[1])
        before = self._folder
        table: NDArray[np.float32]
        if rows * shape[1] * 4 <= IN_MEMORY:
            table = np.zeros(shape, np.float32)
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="rlhf-gym-features-", ignore_cleanup_errors=True)
            file = Path(self._folder.name) / "features.npy"
            table = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
        table[: len(self._table)] = self._table
        if before is not None:
            before.cleanup()
        return table
