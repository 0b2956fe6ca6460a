"""Decoding without a cache of keys and values: the slower path, for families that `SlotCache` does not fit.

Positions of some families are bound to where a token is stored (ALiBi), others keep a state instead of keys and values
(Mamba). Here every step runs the whole sequences again, padded on the right, which all causal models agree on: the cost of
a response grows with the square of its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_gym.lm.language_model import LanguageModel


class RecomputedRows:
    """Rows of tokens with the methods of :class:`~rlhf_gym.lm.cache.SlotCache`.

    Args:
        model: the language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._rows: list[list[int]] = []

    @property
    def num_rows(self) -> int:
        """Rows held, free ones among them."""
        return len(self._rows)

    @property
    def num_columns(self) -> int:
        """The longest row's tokens."""
        return max(map(len, self._rows), default=0)

    def write(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], written: Sequence[int] | None = None
    ) -> Tensor:
        """Put prompts in these rows and run them; as :meth:`SlotCache.write`."""
        self._rows += [[] for _ in range(max(rows) + 1 - len(self._rows))]
        for row, prompt in zip(rows, prompts, strict=True):
            self._rows[row] = list(prompt)
        return self._run([self._rows[row] for row in rows])

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these; as :meth:`SlotCache.keep`."""
        self._rows = [self._rows[row] for row in rows]

    def drop_columns(self, rows: Sequence[int]) -> None:
        """Nothing is stored that could be dropped."""

    def append(self, tokens: Tensor, live: Tensor | None = None) -> Tensor:
        """Feed one token to every row that is not free; as :meth:`SlotCache.append`."""
        grows = [1] * self.num_rows if live is None else live.tolist()
        for row, token, on in zip(self._rows, tokens.tolist(), grows, strict=True):
            if on:
                row.append(token)
        return self._run(self._rows)

    def _run(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states ``[len(rows), D]`` of each row's last token."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.model.tokenizer.pad_id, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.model.device)
        hidden = self.model.hidden(ids.to(self.model.device))
        return hidden[torch.arange(len(rows), device=hidden.device), last]
