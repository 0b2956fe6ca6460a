"""Decoding state of encoder-decoder models: the encoder's states of each prompt, and the cache of the responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from rlhf_gym.lm.cache import Layers, SlotCache, agrees, extend, slots_work
from rlhf_gym.lm.language_model import Seq2SeqModel
from rlhf_gym.lm.sequences import causal_mask, pad_right


class Encoded:
    """Prompts of some rows as the encoder's states, and each decoder layer's keys and values of them.

    Attributes:
        seen: bool ``[rows, S]``, True at tokens.
        states: ``[rows, S, D]``.
        crossed: keys and values ``[rows, heads, S, head size]`` of each layer, one after the other; empty without a cache.

    Args:
        seen: bool ``[rows, S]``, True at tokens.
        states: ``[rows, S, D]``.
        crossed: keys and values of each layer, as in the attribute; ``()`` without a cache.
    """

    def __init__(self, seen: Tensor, states: Tensor, crossed: Sequence[Tensor] = ()) -> None:
        self.seen, self.states, self.crossed = seen, states, list(crossed)

    def keep(self, rows: Tensor) -> Encoded:
        """Take the rows ``[n]`` of these indices, without columns that are padding in all of them."""
        width = int(self.seen[rows].sum(1).max())
        crossed = [table[rows, :, :width] for table in self.crossed]
        return Encoded(self.seen[rows, :width], self.states[rows, :width], crossed)

    def put(self, rows: Tensor, other: Encoded) -> Encoded:
        """Put another's rows in these places, which may lie beyond the last one.

        Args:
            rows: int64 ``[n]``, the places.
            other: ``n`` rows.
        """
        count = max(len(self.seen), int(rows.max()) + 1)

        def placed(old: Tensor, new: Tensor, dim: int) -> Tensor:
            shape = [count, *old.shape[1:]]
            shape[dim] = max(old.shape[dim], new.shape[dim])
            table = old.new_zeros(shape)
            table.narrow(dim, 0, old.shape[dim])[: len(old)] = old
            table[rows] = 0
            table.narrow(dim, 0, new.shape[dim])[rows] = new
            return table

        crossed = [placed(a, b, 2) for a, b in zip(self.crossed, other.crossed, strict=True)]
        return Encoded(placed(self.seen, other.seen, 1), placed(self.states, other.states, 1), crossed)

    def cache(self) -> DynamicCache:
        """The keys and values as a transformers cache."""
        cache = DynamicCache()
        for layer in range(len(self.crossed) // 2):
            cache.update(self.crossed[2 * layer], self.crossed[2 * layer + 1], layer)
        return cache


def apart(
    rows: Sequence[Sequence[int]], num_generated: Sequence[int] | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Split rows of ids into prompts and responses.

    Args:
        rows: ids of each row.
        num_generated: number of each row's last ids that are its response; None: none.
    """
    counts = [0] * len(rows) if num_generated is None else list(num_generated)
    splits = [len(row) - n for row, n in zip(rows, counts, strict=True)]
    return [list(r[:s]) for r, s in zip(rows, splits, strict=True)], [
        list(r[s:]) for r, s in zip(rows, splits, strict=True)
    ]


class EncodedRows(SlotCache):
    """A :class:`~rlhf_gym.lm.cache.SlotCache` for decoders whose positions are relative (T5): a row is stored anywhere.

    Args:
        model: the model.
    """

    model: Seq2SeqModel

    def __init__(self, model: Seq2SeqModel) -> None:
        super().__init__(model)
        self.num_layers = model.num_decoder_layers
        self.layers = Layers(self.num_layers)
        self.encoded: Encoded | None = None
        self._crossed = DynamicCache()

    def write(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Encode prompts, prefill their responses and store both in these rows. See :meth:`SlotCache.write`.

        Args:
            rows: indices of the rows to write, ``n`` of them.
            prompts: ids of each row: its prompt, then what there is of its response.
            num_generated: number of each row's last ids that are its response; None is none.

        Returns:
            Hidden state of each row's last token, ``[n, D]``.
        """
        device = self.model.device
        sources, responses = apart(prompts, num_generated)
        states, seen = self.model.encode(sources)
        lengths = torch.tensor([len(response) + 1 for response in responses])
        width = int(lengths.max())
        real = torch.arange(width) >= (width - lengths)[:, None]
        ids = torch.full((len(prompts), width), self.model.tokenizer.pad_id, dtype=torch.long)
        ids[real] = torch.tensor([token for response in responses for token in (self.model.start_id, *response)])
        prefilled, crossed = Layers(self.num_layers), DynamicCache()
        hidden = self.model.decode(
            ids.to(device),
            states,
            seen,
            mask=causal_mask(real.to(device)),
            cache=EncoderDecoderCache(prefilled, crossed),
        )
        layers: list[Any] = list(crossed.layers)
        fresh = Encoded(seen, states, [table for layer in layers for table in (layer.keys, layer.values)])
        lengths = lengths.to(device)
        if self.encoded is None and list(rows) == list(range(len(prompts))):
            self.layers, self.lengths, self._starts = prefilled, lengths, width - lengths
            self._set(fresh)
        else:
            assert self.encoded is not None
            index = torch.tensor(rows, device=device)
            self._insert(index, prefilled, lengths)
            self._set(self.encoded.put(index, fresh))
        return hidden[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """See :meth:`SlotCache.keep`."""
        super().keep(rows)
        assert self.encoded is not None
        self._set(self.encoded.keep(torch.tensor(rows, device=self.lengths.device)))

    def append(self, tokens: Tensor, live: Tensor | None = None) -> Tensor:
        """Append one token to every row. See :meth:`SlotCache.append`.

        Args:
            tokens: int64 ``[rows]``.
            live: int64 ``[rows]``, 1 at rows that are read, 0 at free ones; None where all are read.

        Returns:
            Hidden state of each row's last token, ``[rows, D]``.
        """
        assert self.encoded is not None
        columns = torch.arange(self.num_columns + 1, device=self.lengths.device)
        mask = (columns >= self._starts[:, None])[:, None, None, :]
        cache = EncoderDecoderCache(self.layers, self._crossed)
        hidden = self.model.decode(tokens[:, None], self.encoded.states, self.encoded.seen, mask=mask, cache=cache)
        self.lengths = self.lengths + (1 if live is None else live)
        return hidden[:, -1]

    def _set(self, encoded: Encoded) -> None:
        self.encoded, self._crossed = encoded, encoded.cache()


class RecomputedResponses:
    """Rows with the methods of :class:`EncodedRows`, for decoders whose positions count from where a token is stored (BART).

    The response is read again at every step. The prompt is still encoded once.

    Args:
        model: the model.
    """

    def __init__(self, model: Seq2SeqModel) -> None:
        self.model = model
        self._read: list[list[int]] = []
        self._encoded: Encoded | None = None

    @property
    def num_rows(self) -> int:
        """Rows held, free ones among them."""
        return len(self._read)

    @property
    def num_columns(self) -> int:
        """The longest row's tokens."""
        return max(map(len, self._read), default=0)

    def write(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Encode prompts, put their responses in these rows and run them; as :meth:`EncodedRows.write`.

        Args:
            rows: a row for each prompt.
            prompts: ids of each prompt with its response so far.
            num_generated: number of each row's last ids that are its response; None: none.

        Returns:
            ``[len(prompts), D]``, the hidden state of each row's last token.
        """
        sources, responses = apart(prompts, num_generated)
        states, seen = self.model.encode(sources)
        fresh, index = Encoded(seen, states), torch.tensor(rows, device=self.model.device)
        self._encoded = fresh if self._encoded is None else self._encoded.put(index, fresh)
        self._read += [[] for _ in range(max(rows) + 1 - len(self._read))]
        for row, response in zip(rows, responses, strict=True):
            self._read[row] = [self.model.start_id, *response]
        return self._run()[index]

    def keep(self, rows: Sequence[int]) -> None:
        """As :meth:`EncodedRows.keep`."""
        self._read = [self._read[row] for row in rows]
        if self._encoded is not None:
            self._encoded = self._encoded.keep(torch.tensor(rows, device=self.model.device))

    def drop_columns(self, rows: Sequence[int]) -> None:
        """Do nothing: no columns are stored."""

    def append(self, tokens: Tensor, live: Tensor | None = None) -> Tensor:
        """Feed one token to every row that is not free; as :meth:`EncodedRows.append`.

        Args:
            tokens: int64 ``[rows]``.
            live: int64 ``[rows]``, 0 at free rows; None where there are none.

        Returns:
            ``[rows, D]``, the hidden state of each row's last token.
        """
        extend(self._read, tokens, live)
        return self._run()

    def _run(self) -> Tensor:
        """Hidden states ``[rows, D]`` of each row's last token."""
        assert self._encoded is not None
        ids = pad_right(self._read, self.model.tokenizer.pad_id)
        last = torch.tensor([len(row) - 1 for row in self._read], device=self.model.device)
        hidden = self.model.decode(ids.to(self.model.device), self._encoded.states, self._encoded.seen)
        return hidden[torch.arange(len(last), device=hidden.device), last]


def seq2seq_decoding_state(model: Seq2SeqModel) -> EncodedRows | RecomputedResponses:
    """An empty state that fits a model: with a cache where cached rows give the model's own hidden states."""
    return EncodedRows(model) if slots_work(model, lambda: _rows_agree(model)) else RecomputedResponses(model)


@torch.no_grad()
def _rows_agree(model: Seq2SeqModel) -> bool:
    """Decode two rows and compare with plain passes; the second starts over with a longer prompt and a shorter response."""
    a, b, c, d, e = torch.randint(model.vocab_size, (5,), generator=torch.Generator().manual_seed(0)).tolist()

    def tokens(*ids: int) -> Tensor:
        return torch.tensor(ids, device=model.device)

    rows = EncodedRows(model)
    rows.write([0, 1], [[a, b], [c]])
    rows.append(tokens(d, e))
    rows.write([1], [[b, a, d]])
    ours = rows.append(tokens(e, c))
    return agrees(ours, model.last_states([[a, b, d, e], [b, a, d, c]], [2, 1]), model)
