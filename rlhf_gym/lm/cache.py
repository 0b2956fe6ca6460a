"""Keys and values of many sequences that start and end at different times, behind transformers' `Cache` interface.

Storage is one rectangle ``[rows, heads, capacity, head size]`` a layer. All rows end at a common cursor, so a decoding step
writes one column in place instead of concatenating. A row's own keys and values are in the columns ``start[row] .. cursor``;
the columns to the left of them hold earlier sequences and are masked. Positions count from a row's start, wherever it is
stored: so a row starts over while the others go on, and columns that no row needs any more are dropped on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sequences import distinct, index_on, pad_left

SPARE = 64  # columns of room that a new or grown rectangle has


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's rectangle; its columns ``first .. cursor`` are shown to attention."""

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.first = 0
        self.cursor = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate room for the first columns and some more.

        Args:
            key_states: ``[rows, heads, columns, head size]``.
            value_states: likewise.
        """
        self.keys = torch.nn.functional.pad(torch.empty_like(key_states), (0, 0, 0, SPARE))
        self.values = torch.nn.functional.pad(torch.empty_like(value_states), (0, 0, 0, SPARE))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns in place.

        Args:
            key_states: ``[rows, heads, new columns, head size]``.
            value_states: likewise.
            args: not used; here for transformers' signature.
            kwargs: not used.

        Returns:
            Keys and values of all columns that attention sees, the new ones included.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.cursor + key_states.shape[2]
        if end > self.keys.shape[2]:
            # Moving to a new rectangle is the moment to leave dropped columns behind; half as much again amortises it.
            kept = self.cursor - self.first
            self.move(slice(None), kept + key_states.shape[2] + max(SPARE, kept // 2))
            end = self.cursor + key_states.shape[2]
        self.keys[:, :, self.cursor : end] = key_states
        self.values[:, :, self.cursor : end] = value_states
        self.cursor = end
        return self.keys[:, :, self.first : end], self.values[:, :, self.first : end]

    def move(self, rows: Tensor | slice, capacity: int, *, left: int = 0, new_rows: int = 0) -> None:
        """Move to a new rectangle.

        Args:
            rows: the rows to take along.
            capacity: columns of the new rectangle.
            left: columns to leave free on the left.
            new_rows: rows to add below.
        """
        end = left + self.cursor - self.first

        def moved(old: Tensor) -> Tensor:
            kept = old[:, :, self.first : self.cursor][rows]
            new = old.new_zeros(kept.shape[0] + new_rows, old.shape[1], capacity, old.shape[3])
            new[: kept.shape[0], :, left:end] = kept
            return new

        self.keys, self.values = moved(self.keys), moved(self.values)
        self.first, self.cursor = 0, end

    def get_seq_length(self) -> int:
        """Columns that attention sees."""
        return self.cursor - self.first

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a query of this length attends to."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No limit: the rectangle grows."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.18


class Layers(Cache):
    """The layers as a transformers ``Cache``."""

    def __init__(self, num_layers: int) -> None:
        self.rectangles = [_Layer() for _ in range(num_layers)]
        super().__init__(layers=list(self.rectangles))

    def take(self, rows: Tensor) -> None:
        """Take these rows, int64 ``[n]``, in the place of all; one may come several times."""
        for layer in self.rectangles:
            layer.move(rows, layer.get_seq_length() + SPARE)


class SlotCache:
    """Decoding state of some rows.

    Rows may be free: nothing reads them, and their content does not matter. They are computed all the same, until :meth:`keep`
    takes them out.

    Args:
        model: the language model.

    Attributes:
        lengths: int64 ``[rows]``, tokens in each row so far: the position id of the next one.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.num_layers = int(model.model.config.get_text_config().num_hidden_layers)
        self.layers = Layers(self.num_layers)
        self.lengths = torch.zeros(0, dtype=torch.long, device=model.device)
        self._starts = torch.zeros(0, dtype=torch.long, device=model.device)  # [rows], columns counted from `first`

    @property
    def num_rows(self) -> int:
        """Rows held, free ones among them."""
        return self.lengths.shape[0]

    @property
    def num_columns(self) -> int:
        """Columns that attention reads: at least the longest row's tokens."""
        return self.layers.rectangles[0].get_seq_length() if self.num_rows else 0

    def write(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Run prompts through the model and put them in these rows, whose former content is lost.

        Args:
            rows: a row for each prompt; numbers from ``num_rows`` on, without gaps, add rows.
            prompts: ids of each prompt, at least one each.
            num_generated: number of each prompt's last ids that the model generated itself; a causal model does not need it.

        Returns:
            ``[len(prompts), D]``, the hidden state of each prompt's last token.
        """
        different, place = distinct(prompts)
        padded = pad_left(different, self.model.tokenizer.pad_id)
        ids, real = (table.to(self.model.device, non_blocking=True) for table in padded)
        width, lengths = ids.shape[1], real.sum(1)
        positions = torch.arange(width, device=ids.device) - (width - lengths)[:, None]
        prefilled = Layers(self.num_layers)
        hidden = self.model.hidden(ids, attention_mask=real, position_ids=positions.clamp(min=0), cache=prefilled)[
            :, -1
        ]
        if len(different) < len(prompts):  # a group's prompt is run once, and shared by its members
            index = self._index(place)
            prefilled.take(index)
            hidden, lengths = hidden[index], lengths[index]
        if self.num_rows == 0 and list(rows) == list(range(len(prompts))):
            self.layers, self.lengths, self._starts = prefilled, lengths, width - lengths
        else:
            self._insert(rows, prefilled, lengths)
        return hidden

    def extend(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Read on in these rows, several tokens at once; the other rows are not touched.

        Every row reads as many of its last ids as the row with the most new ones: tokens stand side by side, as families that
        look back through a window need it, and no row has a gap.

        Args:
            rows: rows that are read.
            ids: all ids of each of them; they begin with those that it holds.

        Returns:
            ``[len(rows), D]``, the hidden state of each row's last token.
        """
        index = self._index(rows)
        read = max(len(row) - held for row, held in zip(ids, self.lengths[index].tolist(), strict=True))
        numbers = [max(0, len(row) - read) for row in ids]
        kept, width = self._index(numbers), max(numbers)
        if width == 0:
            return self.write(rows, ids)
        # Gather what is kept of each row, right-aligned, in front of what is read.
        columns = self._starts[index, None] + torch.arange(width, device=index.device) - (width - kept)[:, None]
        columns = columns.clamp(min=0)[:, None, :, None]
        extended = Layers(self.num_layers)
        for mine, its in zip(self.layers.rectangles, extended.rectangles, strict=True):
            for_keys, for_values = (
                table[index, :, mine.first : mine.cursor].gather(
                    2, columns.expand(-1, table.shape[1], -1, table.shape[3])
                )
                for table in (mine.keys, mine.values)
            )
            its.update(for_keys, for_values)
        padded = pad_left([row[-read:] for row in ids], self.model.tokenizer.pad_id)
        fed, real = (table.to(index.device, non_blocking=True) for table in padded)
        lengths = self._index([len(row) for row in ids])
        held_columns = torch.arange(width, device=index.device) >= (width - kept)[:, None]
        hidden = self.model.hidden(
            fed,
            attention_mask=torch.cat([held_columns, real], dim=1),
            position_ids=(torch.arange(read, device=index.device) + lengths[:, None] - read).clamp(min=0),
            cache=extended,
        )
        self._insert(rows, extended, lengths)
        return hidden[:, -1]

    def _insert(self, rows: Sequence[int], prefilled: Layers, lengths: Tensor) -> None:
        """Copy prefilled rows to their places, right-aligned at the cursor."""
        index = self._index(rows)
        width = prefilled.rectangles[0].cursor
        held = self.num_columns
        left = max(0, width - held)
        new_rows = max(0, max(rows) + 1 - self.num_rows)
        for mine, its in zip(self.layers.rectangles, prefilled.rectangles, strict=True):
            if left or new_rows:
                mine.move(slice(None), left + held + SPARE, left=left, new_rows=new_rows)
            place = slice(mine.cursor - width, mine.cursor)
            mine.keys[index, :, place] = its.keys[:, :, :width]
            mine.values[index, :, place] = its.values[:, :, :width]
        if new_rows:
            self.lengths = torch.nn.functional.pad(self.lengths, (0, new_rows))
            self._starts = torch.nn.functional.pad(self._starts, (0, new_rows))
        self._starts += left
        self.lengths[index] = lengths
        self._starts[index] = left + held - lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which take the numbers 0, 1, ... in the order given."""
        index = self._index(rows)
        self._starts, self.lengths = self._starts[index], self.lengths[index]
        self._drop_left(int(self._starts.min()))
        self.layers.take(index)

    def drop_columns(self, rows: Sequence[int]) -> None:
        """Drop the columns on the left that none of these rows needs; the other rows are free."""
        first = int(self._starts[self._index(rows)].min())
        if first:
            self._drop_left(first)
            self._starts.clamp_(min=0)  # of free rows

    def _index(self, numbers: Sequence[int]) -> Tensor:
        return index_on(self.lengths.device, numbers)

    def _drop_left(self, columns: int) -> None:
        for layer in self.layers.rectangles:
            layer.first += columns
        self._starts = self._starts - columns

    def append(self, tokens: Tensor, live: Tensor | None = None) -> Tensor:
        """Feed one token to every row.

        Args:
            tokens: int64 ``[rows]``; any id for free rows.
            live: int64 ``[rows]``, 1 at rows that are read, 0 at free ones; None where all are read.

        Returns:
            ``[rows, D]``, the hidden state of each token.
        """
        if self.num_columns >= self.model.context_length:  # some families (GPT-Neo) hold masks of that many columns
            rows = range(self.num_rows) if live is None else live.nonzero().squeeze(1).tolist()
            self.drop_columns(list(rows))
        columns = torch.arange(self.num_columns + 1, device=self.lengths.device)
        # A free row stands at position 0, so that it never leaves the model's context however long it lies idle.
        positions = self.lengths if live is None else self.lengths * live
        hidden = self.model.hidden(
            tokens[:, None],
            attention_mask=columns >= self._starts[:, None],
            position_ids=positions[:, None],
            cache=self.layers,
        )
        self.lengths = self.lengths + (1 if live is None else live)
        return hidden[:, -1]
