"""Decoding state of encoder-decoder models: the encoder's states of each prompt, and the cache of the responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from rlhf_gym.lm.cache import Layers, SlotCache
from rlhf_gym.lm.decoding_state import RecomputedRows, slots_work
from rlhf_gym.lm.language_model import Seq2SeqModel
from rlhf_gym.lm.sequences import distinct, pad_left, split_responses


@dataclass(frozen=True)
class Encoded:
    """Prompts of some rows as the encoder's states, and each decoder layer's keys and values of them.

    Attributes:
        seen: bool ``[rows, S]``, True at tokens.
        states: ``[rows, S, D]``.
        crossed: keys and values ``[rows, heads, S, head size]`` of each layer, one after the other; empty without a cache.
    """

    seen: Tensor
    states: Tensor
    crossed: Sequence[Tensor] = ()

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
        model = self.model
        sources, responses = split_responses(prompts, num_generated)
        different, place = distinct(sources)
        states, seen = model.encode(different)
        if len(different) < len(sources):  # a group's prompt is encoded once
            index = self._index(place)
            states, seen = states[index], seen[index]
        padded = pad_left([[model.start_id, *response] for response in responses], model.tokenizer.pad_id)
        ids, real = (table.to(model.device, non_blocking=True) for table in padded)
        width, lengths = ids.shape[1], real.sum(1)
        prefilled, crossed = Layers(self.num_layers), DynamicCache()
        positions = torch.arange(width, device=ids.device) - (width - lengths)[:, None]
        hidden = model.decode(
            ids, states, seen, attention_mask=real, position_ids=positions.clamp(min=0),
            cache=EncoderDecoderCache(prefilled, crossed),
        )  # fmt: skip
        layers: list[Any] = list(crossed.layers)
        fresh = Encoded(seen, states, [table for layer in layers for table in (layer.keys, layer.values)])
        if self.encoded is None and list(rows) == list(range(len(prompts))):
            self.layers, self.lengths, self._starts = prefilled, lengths, width - lengths
            self._set(fresh)
        else:
            assert self.encoded is not None
            self._insert(rows, prefilled, lengths)
            self._set(self.encoded.put(self._index(rows), fresh))
        return hidden[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """See :meth:`SlotCache.keep`."""
        super().keep(rows)
        assert self.encoded is not None
        self._set(self.encoded.keep(self._index(rows)))

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
        positions = self.lengths if live is None else self.lengths * live
        hidden = self.model.decode(
            tokens[:, None], self.encoded.states, self.encoded.seen, attention_mask=columns >= self._starts[:, None],
            position_ids=positions[:, None], cache=EncoderDecoderCache(self.layers, self._crossed),
        )  # fmt: skip
        self.lengths = self.lengths + (1 if live is None else live)
        return hidden[:, -1]

    def _set(self, encoded: Encoded) -> None:
        self.encoded, self._crossed = encoded, encoded.cache()


class RecomputedResponses(RecomputedRows):
    """Rows with the methods of :class:`EncodedRows`, for decoders whose positions count from where a token is stored (BART).

    Every step runs the decoder over the whole responses again. A prompt is still encoded once.

    Args:
        model: the model.
    """

    model: Seq2SeqModel

    def __init__(self, model: Seq2SeqModel) -> None:
        super().__init__(model)
        self._encoded: Encoded | None = None

    def write(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], num_generated: Sequence[int] | None = None
    ) -> Tensor:
        """Encode prompts, put their responses in these rows and run them; as :meth:`EncodedRows.write`.

        Args:
            rows: a row for each prompt.
            prompts: ids of each prompt with its response so far.
            num_generated: number of each row's last ids that are its response; None is 0 for every row.

        Returns:
            ``[len(prompts), D]``, the hidden state of each row's last token.
        """
        sources, responses = split_responses(prompts, num_generated)
        states, seen = self.model.encode(sources)
        fresh, index = Encoded(seen, states), torch.tensor(rows, device=self.model.device)
        self._encoded = fresh if self._encoded is None else self._encoded.put(index, fresh)
        self._store(rows, [[self.model.start_id, *response] for response in responses])
        return self._last_states(rows)

    def keep(self, rows: Sequence[int]) -> None:
        """As :meth:`EncodedRows.keep`."""
        super().keep(rows)
        if self._encoded is not None:
            self._encoded = self._encoded.keep(torch.tensor(rows, device=self.model.device))

    def _last_states(self, rows: Sequence[int]) -> Tensor:
        assert self._encoded is not None
        hidden = self.model.last_decoded(self._rows, self._encoded.states, self._encoded.seen)
        return hidden[torch.tensor(rows, device=hidden.device)]


def seq2seq_decoding_state(model: Seq2SeqModel) -> EncodedRows | RecomputedResponses:
    """An empty state that fits a model: with a cache where cached rows give the model's own hidden states."""
    return EncodedRows(model) if slots_work(model, lambda: _row_states(model)) else RecomputedResponses(model)


def _row_states(model: Seq2SeqModel) -> tuple[Tensor, Tensor]:
    """Decode two rows with a cache and by plain passes; the second starts over, its prompt longer, its response shorter."""
    a, b, c, d, e = torch.randint(model.vocab_size, (5,), generator=torch.Generator().manual_seed(0)).tolist()

    def tokens(*ids: int) -> Tensor:
        return torch.tensor(ids, device=model.device)

    rows = EncodedRows(model)
    rows.write([0, 1], [[a, b], [c]])
    rows.append(tokens(d, e))
    rows.write([1], [[b, a, d]])
    return rows.append(tokens(e, c)), model.last_states([[a, b, d, e], [b, a, d, c]], [2, 1])
