"""Keys and values of many sequences that start and end at different times, behind transformers' `Cache` interface.

Storage is one rectangle ``[rows, heads, capacity, head size]`` a layer, all rows right-aligned at a common cursor, so that
a decoding step writes one column in place instead of concatenating. Which columns a row may look at is said by ``mask`` and
where a token stands by its position id, never by where it is stored: so a row can start over while the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rlhf_gym.language_model import LanguageModel
from rlhf_gym.sequences import causal_mask

SPARE = 64  # columns of room that a new or grown rectangle has


class _Layer(CacheLayerMixin):
    """One layer's rectangle; the cursor belongs to :class:`SlotCache`."""

    def __init__(self) -> None:
        super().__init__()
        self.cursor = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate room for the first columns and some to come."""
        rows, heads, width, size = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, width + SPARE, size)
        self.values = value_states.new_zeros(rows, value_states.shape[1], width + SPARE, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns in place and return all columns up to them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        end = self.cursor + key_states.shape[2]
        if end > self.keys.shape[2]:
            grow = (0, 0, 0, end + max(SPARE, end // 2) - self.keys.shape[2])
            self.keys = torch.nn.functional.pad(self.keys, grow)
            self.values = torch.nn.functional.pad(self.values, grow)
        self.keys[:, :, self.cursor : end] = key_states
        self.values[:, :, self.cursor : end] = value_states
        self.cursor = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Columns written so far."""
        return self.cursor

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query of this length meets."""
        return self.cursor + query_length, 0

    def get_max_length(self) -> int:
        """No limit of its own: the rectangle grows."""
        return -1

    get_max_cache_shape = get_max_length

    def rearrange(self, rows: Tensor, drop_left: int) -> None:
        """Keep these rows, without the first ``drop_left`` columns."""
        assert self.keys is not None
        assert self.values is not None
        self.keys = self.keys[rows][:, :, drop_left:]
        self.values = self.values[rows][:, :, drop_left:]
        self.cursor -= drop_left


class _Layers(Cache):  # type: ignore[misc]
    """The layers as transformers wants them."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_Layer() for _ in range(num_layers)])


class SlotCache:
    """Decoding state of ``n`` rows.

    Args:
        model: the language model.

    Attributes:
        lengths: int64 ``[rows]``, tokens in each row so far: the position id of the next one.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.num_layers = int(model.model.config.get_text_config().num_hidden_layers)
        self.layers = _Layers(self.num_layers)
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=model.device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=model.device)

    @property
    def num_rows(self) -> int:
        """Rows held."""
        return self.lengths.shape[0]

    def add_rows(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Run prompts through the model and append their rows.

        Args:
            prompts: ids of each prompt, at least one each.

        Returns:
            ``[len(prompts), D]``, the hidden state of each prompt's last token.
        """
        device = self.model.device
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        width = int(lengths.max())
        ids = torch.full((len(prompts), width), self.model.tokenizer.pad_id, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
        columns = torch.arange(width, device=device)
        real = columns[None] >= (width - lengths)[:, None]
        positions = (columns[None] - (width - lengths)[:, None]).clamp(min=0)
        layers = _Layers(self.num_layers)
        hidden = self.model.hidden(
            ids.to(device), attention_mask=causal_mask(real), position_ids=positions, cache=layers
        )
        if self.num_rows:
            self._merge(layers, real)
            self.lengths = torch.cat([self.lengths, lengths])
        else:
            self.layers, self.mask, self.lengths = layers, real, lengths
        return hidden[:, -1]

    def _merge(self, other: _Layers, real: Tensor) -> None:
        """Append another cache's rows, right-aligned at the wider of the two cursors."""
        width = max(self.mask.shape[1], real.shape[1])

        def widen(t: Tensor, cursor: int, dim: int) -> Tensor:
            t = t.narrow(dim, 0, cursor)
            pad = [0, 0] * (t.ndim - 1 - dim) + [width - cursor, 0]
            return torch.nn.functional.pad(t, pad)

        for mine, its in zip(self.layers.layers, other.layers, strict=True):
            spare = torch.nn.functional.pad
            mine.keys = spare(torch.cat([widen(x.keys, x.cursor, 2) for x in (mine, its)]), (0, 0, 0, SPARE))
            mine.values = spare(torch.cat([widen(x.values, x.cursor, 2) for x in (mine, its)]), (0, 0, 0, SPARE))
            mine.cursor = width
        self.mask = torch.cat([widen(m, m.shape[1], 1) for m in (self.mask, real)])

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all rows but these (in this order), and the columns that none of them uses."""
        self.mask = self.mask[rows]
        self.lengths = self.lengths[rows]
        used = self.mask.any(dim=0).nonzero()
        drop = int(used[0]) if len(used) else 0
        for layer in self.layers.layers:
            layer.rearrange(rows, drop)
        self.mask = self.mask[:, drop:]

    def append(self, tokens: Tensor) -> Tensor:
        """Feed one token to every row.

        Args:
            tokens: int64 ``[rows]``.

        Returns:
            ``[rows, D]``, the hidden state of each token.
        """
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        hidden = self.model.hidden(
            tokens[:, None],
            attention_mask=self.mask[:, None, None, :],
            position_ids=self.lengths[:, None],
            cache=self.layers,
        )
        self.lengths = self.lengths + 1
        return hidden[:, -1]
