"""Keys and values of many sequences that start and end at different times, behind transformers' `Cache` interface.

Storage is one rectangle ``[rows, heads, capacity, head size]`` a layer. All rows end at a common cursor, so a decoding step
writes one column in place instead of concatenating. A row's own keys and values are in the columns ``start[row] .. cursor``;
the columns to the left of them hold earlier sequences and are masked. Positions count from a row's start, wherever it is
stored: so a row starts over while the others go on, and columns that no row needs any more are dropped on the left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.networks import tolerance
from rlhf_gym.lm.sequences import causal_mask

log = logging.getLogger(__name__)

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
        device = self.model.device
        lengths = torch.tensor([len(p) for p in prompts])
        width = int(lengths.max())
        columns = torch.arange(width)
        real = columns >= (width - lengths)[:, None]
        ids = torch.full((len(prompts), width), self.model.tokenizer.pad_id, dtype=torch.long)
        ids[real] = torch.tensor([token for prompt in prompts for token in prompt])
        positions = (columns - (width - lengths)[:, None]).clamp(min=0)
        prefilled = Layers(self.num_layers)
        hidden = self.model.hidden(
            ids.to(device),
            attention_mask=causal_mask(real.to(device)),
            position_ids=positions.to(device),
            cache=prefilled,
        )
        lengths = lengths.to(device)
        if self.num_rows == 0 and list(rows) == list(range(len(prompts))):
            self.layers, self.lengths, self._starts = prefilled, lengths, width - lengths
        else:
            self._insert(torch.tensor(rows, device=device), prefilled, lengths)
        return hidden[:, -1]

    def _insert(self, rows: Tensor, prefilled: Layers, lengths: Tensor) -> None:
        """Copy prefilled rows to their places, right-aligned at the cursor."""
        width = prefilled.rectangles[0].cursor
        held = self.num_columns
        left = max(0, width - held)
        new_rows = max(0, int(rows.max()) + 1 - self.num_rows)
        for mine, its in zip(self.layers.rectangles, prefilled.rectangles, strict=True):
            if left or new_rows:
                mine.move(slice(None), left + held + SPARE, left=left, new_rows=new_rows)
            place = slice(mine.cursor - width, mine.cursor)
            mine.keys[rows, :, place] = its.keys[:, :, :width]
            mine.values[rows, :, place] = its.values[:, :, :width]
        if new_rows:
            self.lengths = torch.nn.functional.pad(self.lengths, (0, new_rows))
            self._starts = torch.nn.functional.pad(self._starts, (0, new_rows))
        self._starts += left
        self.lengths[rows] = lengths
        self._starts[rows] = left + held - lengths

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which take the numbers 0, 1, ... in the order given."""
        index = torch.tensor(rows, device=self.lengths.device)
        self._starts, self.lengths = self._starts[index], self.lengths[index]
        self._drop_left(int(self._starts.min()))
        for layer in self.layers.rectangles:
            layer.move(index, layer.get_seq_length() + SPARE)

    def drop_columns(self, rows: Sequence[int]) -> None:
        """Drop the columns on the left that none of these rows needs; the other rows are free."""
        first = int(self._starts[torch.tensor(rows, device=self.lengths.device)].min())
        if first:
            self._drop_left(first)
            self._starts.clamp_(min=0)  # of free rows

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
        columns = torch.arange(self.num_columns + 1, device=self.lengths.device)
        # A free row stands at position 0, so that it never leaves the model's context however long it lies idle.
        positions = self.lengths if live is None else self.lengths * live
        hidden = self.model.hidden(
            tokens[:, None],
            attention_mask=(columns >= self._starts[:, None])[:, None, None, :],
            position_ids=positions[:, None],
            cache=self.layers,
        )
        self.lengths = self.lengths + (1 if live is None else live)
        return hidden[:, -1]


class RecomputedRows:
    """Rows of tokens with the methods of :class:`SlotCache`, for families that it does not fit.

    Positions of some families are bound to where a token is stored (ALiBi), others keep a state instead of keys and values
    (Mamba). Here every step runs the whole sequences again, padded on the right, which all causal models agree on: the cost of
    a response grows with the square of its length.

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
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Put prompts in these rows and run them; as :meth:`SlotCache.write`.

        Args:
            rows: a row for each prompt.
            prompts: ids of each prompt, at least one each.
            num_generated: not used.

        Returns:
            ``[len(prompts), D]``, the hidden state of each prompt's last token.
        """
        self._rows += [[] for _ in range(max(rows) + 1 - len(self._rows))]
        for row, prompt in zip(rows, prompts, strict=True):
            self._rows[row] = list(prompt)
        return self._run([self._rows[row] for row in rows])

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these; as :meth:`SlotCache.keep`."""
        self._rows = [self._rows[row] for row in rows]

    def drop_columns(self, rows: Sequence[int]) -> None:
        """Do nothing: no columns are stored."""

    def append(self, tokens: Tensor, live: Tensor | None = None) -> Tensor:
        """Feed one token to every row that is not free; as :meth:`SlotCache.append`.

        Args:
            tokens: int64 ``[rows]``.
            live: int64 ``[rows]``, 0 at free rows; None where there are none.

        Returns:
            ``[rows, D]``, the hidden state of each row's last token.
        """
        extend(self._rows, tokens, live)
        return self._run(self._rows)

    def _run(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states ``[len(rows), D]`` of each row's last token."""
        return self.model.last_states(rows, [0] * len(rows))


def extend(rows: list[list[int]], tokens: Tensor, live: Tensor | None) -> None:
    """Append a token to every row that is not free.

    Args:
        rows: ids of each row.
        tokens: int64 ``[rows]``.
        live: int64 ``[rows]``, 0 at free rows; None where there are none.
    """
    grows = [1] * len(rows) if live is None else live.tolist()
    for row, token, on in zip(rows, tokens.tolist(), grows, strict=True):
        if on:
            row.append(token)


def decoding_state(model: LanguageModel) -> SlotCache | RecomputedRows:
    """An empty state that fits a causal model: with a cache where cached rows give the model's own hidden states."""
    return SlotCache(model) if slots_work(model, lambda: _slots_agree(model)) else RecomputedRows(model)


def slots_work(model: LanguageModel, agree: Callable[[], bool]) -> bool:
    """True where cached rows that are padded and start over give the model's own hidden states; checked once a model.

    They do not for families that bind positions to where a token is stored, or keep no keys and values.

    Args:
        model: the model, which keeps the answer.
        agree: compares cached rows with plain passes.
    """
    if model.slots_work is None:
        try:
            model.slots_work = agree()
            reason = "its hidden states differ"
        except Exception as error:  # any error that a family raises when it is given masks, positions or a cache
            model.slots_work, reason = False, f"{type(error).__name__}: {error}"
        if not model.slots_work:
            family = type(model.model).__name__
            log.warning("%s (%s) decodes without a cache, which is slow: %s", model.name, family, reason)
    return model.slots_work


def agrees(ours: Tensor, plain: Tensor, model: LanguageModel) -> bool:
    """True where hidden states from cached rows differ from those of plain passes by rounding alone.

    Args:
        ours: ``[rows, D]``.
        plain: ``[rows, D]``.
        model: whose dtype says how large rounding is.
    """
    near = tolerance(model.model) * max(1.0, float(plain.abs().max()))
    return torch.allclose(ours.float(), plain.float(), rtol=0, atol=near)


@torch.no_grad()
def _slots_agree(model: LanguageModel) -> bool:
    """Decode two rows, of which the second starts over, and compare them with plain passes."""
    a, b, c, d, e = torch.randint(model.vocab_size, (5,), generator=torch.Generator().manual_seed(0)).tolist()

    def tokens(*ids: int) -> Tensor:
        return torch.tensor(ids, device=model.device)

    cache = SlotCache(model)
    cache.write([0, 1], [[a, b, c], [d]])
    cache.append(tokens(d, e))
    cache.write([1], [[b, a]])
    ours = cache.append(tokens(e, c))
    plain = torch.stack([model.hidden(tokens(*row)[None])[0, -1] for row in ([a, b, c, d, e], [b, a, c])])
    return agrees(ours, plain, model)
