"""Hidden states for `predict`: observations come one by one, and nobody says which of them go on from the last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_gym.lm.decoding import CachedDecoder
from rlhf_gym.lm.language_model import LanguageModel


class CachedPredictor:
    """Decodes incrementally for callers that pass whole observations.

    A row that is the row seen last in its place plus one token is fed that token; any other row starts over. So it does not
    matter who resets what, and `evaluate_policy`, which does not tell of every restart, gets what it should. When a weight
    has changed (training went on, parameters were loaded) everything starts over.

    Args:
        model: the language model.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._decoder = CachedDecoder(model)
        self._rows: list[list[int]] = []
        self._version: tuple[object, ...] = ()

    @torch.no_grad()
    def last_hidden(self, rows: Sequence[list[int]], written: Sequence[int]) -> Tensor:
        """Hidden state of each row's last token: ``[len(rows), D]``; ``written`` counts the response's tokens in each row."""
        version = self._weights_version()
        if len(rows) != len(self._rows) or version != self._version:
            self._decoder, self._rows, self._version = CachedDecoder(self.model), [[] for _ in rows], version
        going = [i for i, row in enumerate(rows) if len(row) > 1 and row[:-1] == self._rows[i]]
        fresh = [i for i in range(len(rows)) if i not in set(going)]
        parts = []
        if going:
            tokens = torch.tensor([rows[i][-1] for i in going], device=self.model.device)
            parts.append(self._decoder.append(going, tokens))  # lets the other rows go
        if fresh:
            parts.append(self._decoder.start(fresh, [rows[i] for i in fresh], [written[i] for i in fresh]))
        self._rows = [list(row) for row in rows]
        order = torch.tensor(going + fresh, device=self.model.device).argsort()
        return torch.cat(parts)[order]

    def _weights_version(self) -> tuple[object, ...]:
        """Changes whenever a weight is written to in place or moved (torch counts writes to each tensor)."""
        parameters = list(self.model.model.parameters())
        return (self.model.device, parameters[0].dtype, sum(p._version for p in parameters))
