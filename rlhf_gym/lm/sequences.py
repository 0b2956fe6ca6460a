"""Prompts with responses as padded tensors, and batches of sequences of like length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

SHARE, SPARED = 0.9, 200
"""Prompts are run once for all their responses where that leaves at most this share of a batch's tokens, and spares as many.

Two passes through a layer take longer than one over as many tokens. Measured on a processor, by
``benchmarks/speed/shared_prompts.py``.
"""


@dataclass(frozen=True)
class SharedPrompts:
    """The ``U`` different prompts of a batch, padded on the left to ``P`` tokens.

    Attributes:
        ids: int64 ``[U, P]``.
        real: bool ``[U, P]``, False at padding.
        place: int64 ``[B]``, each row's prompt.
    """

    ids: Tensor
    real: Tensor
    place: Tensor


@dataclass(frozen=True)
class SequenceBatch:
    """``B`` sequences (a prompt and its response each), padded to ``T`` tokens; responses to ``R``.

    Attributes:
        ids: int64 ``[B, T]``.
        attention_mask: bool ``[B, T]`` for left padding, False at padding; or None: with right padding no real token can attend
            to padding, and plain causal attention is fastest.
        position_ids: int64 ``[B, T]`` for left padding, else None.
        responses: int64 ``[B, R]``, padded on the right.
        response_mask: bool ``[B, R]``, True at the response's tokens, EOS included.
        predicted_from: int64 ``[B, R]``, the column of ``ids`` whose hidden state predicts each response token. The first
            is the prompt's last column, even where the response is empty.
        where: the row and the column in ``responses`` of each of the ``N`` response tokens, int64 ``[N]`` each: where
            ``response_mask`` is True. Found on the processor, which would have to wait for another device to find them.
        places: int64 ``[N]``, each response token's place in its turn, where rows hold several turns
            (:func:`~rlhf_gym.lm.turn_sequences.pack_turns`); None where a row is one response.
        shared: the different prompts, where to run each of them once pays; a model that cannot do that ignores it.
    """

    ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    responses: Tensor
    response_mask: Tensor
    predicted_from: Tensor
    where: tuple[Tensor, Tensor]
    places: Tensor | None = None
    shared: SharedPrompts | None = field(default=None, kw_only=True)

    @property
    def tokens(self) -> Tensor:
        """The response tokens, int64 ``[N]``, row after row."""
        return self.responses[self.where]

    def prompts(self) -> list[list[int]]:
        """The ids of each prompt, whichever side the batch is padded on."""
        ends = self.predicted_from[:, 0] + 1
        starts = torch.zeros_like(ends)
        if self.position_ids is not None:  # padded on the left: a prompt begins where positions do
            starts = ends - 1 - self.position_ids.gather(1, self.predicted_from[:, :1]).squeeze(1)
        return [ids[a:b] for ids, a, b in zip(self.ids.tolist(), starts.tolist(), ends.tolist(), strict=True)]


def distinct(prompts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """The different ones among some prompts, in the order of first appearance, and the place of each prompt among them."""
    places: dict[tuple[int, ...], int] = {}
    place = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
    return list(places), place


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Rows of ids as one rectangle, padded on the right.

    Args:
        rows: ``n`` rows of ids.
        pad_id: fills the rest.

    Returns:
        int64 ``[n, longest row]``.
    """
    ids = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one rectangle, padded on the left.

    Args:
        rows: ``n`` rows of ids.
        pad_id: fills the rest.

    Returns:
        int64 ``[n, longest row]``, and bool of the same shape, False at padding.
    """
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    real = torch.arange(width) >= (width - lengths)[:, None]
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    ids[real] = _flat(rows)
    return ids, real


def index_on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Numbers as an index, int64 ``[n]``, on a device that is not waited for, as it would be where a list is the index.

    Args:
        device: where what is indexed is.
        numbers: ``n`` of them.
    """
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def split_responses(
    rows: Sequence[Sequence[int]], num_generated: Sequence[int] | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Split rows of ids into prompts and responses.

    Args:
        rows: ids of each row.
        num_generated: number of each row's last ids that are its response; None is 0 for every row.
    """
    counts = [0] * len(rows) if num_generated is None else num_generated
    ends = [len(row) - n for row, n in zip(rows, counts, strict=True)]
    prompts = [list(row[:end]) for row, end in zip(rows, ends, strict=True)]
    return prompts, [list(row[end:]) for row, end in zip(rows, ends, strict=True)]


def pack_sequences(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
    *,
    side: Literal["right", "left"] = "right",
    device: torch.device | str = "cpu",
) -> SequenceBatch:
    """Pad prompts with their responses to one rectangle.

    Args:
        prompts: ids of each prompt, at least one each (a first response token needs something to be predicted from).
        responses: ids of each response, EOS included where it was generated.
        pad_id: fills the rest; never attended to, never learned from.
        side: the side on which whole sequences are padded.
        device: device of the tensors.

    Raises:
        ValueError: no sequence, an empty prompt, or another number of responses than of prompts.
    """
    n = len(prompts)
    prompt_lengths = torch.tensor([len(p) for p in prompts], dtype=torch.long)[:, None]
    response_lengths = torch.tensor([len(r) for r in responses], dtype=torch.long)[:, None]
    lengths = prompt_lengths + response_lengths
    if n == 0 or int(prompt_lengths.min()) == 0:
        raise ValueError("expected at least one sequence, and at least one token in every prompt")
    width, longest = int(lengths.max()), max(1, int(response_lengths.max()))
    starts = width - lengths if side == "left" else torch.zeros_like(lengths)
    columns, places = torch.arange(width), torch.arange(longest)
    ids = torch.full((n, width), pad_id, dtype=torch.long)
    # A mask is filled row by row, so all tokens of the batch go in at once.
    ids[(columns >= starts) & (columns < starts + lengths)] = _flat(
        part for pair in zip(prompts, responses, strict=True) for part in pair
    )
    response_mask = places < response_lengths
    response_ids = torch.full((n, longest), pad_id, dtype=torch.long)
    response_ids[response_mask] = _flat(responses)
    predicted_from = (starts + prompt_lengths - 1 + places).clamp(max=width - 1)
    attention_mask = position_ids = None
    if side == "left" and bool(starts.any()):
        attention_mask = (columns >= starts).to(device, non_blocking=True)
        position_ids = (columns - starts).clamp(min=0).to(device, non_blocking=True)
    tensors = (ids, response_ids, response_mask, predicted_from, *response_mask.nonzero(as_tuple=True))
    ids, response_ids, mask, predicted_from, row, column = (t.to(device, non_blocking=True) for t in tensors)
    different, place = distinct(prompts)
    pays = _pays(len(different), n, int(prompt_lengths.max()), longest, width)
    shared = _shared(different, place, pad_id, device) if pays else None
    where = row, column
    return SequenceBatch(ids, attention_mask, position_ids, response_ids, mask, predicted_from, where, shared=shared)


def share_prompts(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu") -> SharedPrompts:
    """The different ones among the prompts of some rows.

    Args:
        prompts: ids of each row's prompt.
        pad_id: fills their rectangle.
        device: device of the tensors.
    """
    return _shared(*distinct(prompts), pad_id, device)


def _shared(
    different: Sequence[Sequence[int]], place: Sequence[int], pad_id: int, device: torch.device | str
) -> SharedPrompts:
    ids, real = pad_left(different, pad_id)
    return SharedPrompts(*(t.to(device, non_blocking=True) for t in (ids, real, torch.tensor(place))))


def _pays(different: int, rows: int, longest_prompt: int, longest_response: int, width: int) -> bool:
    """True where it pays to run ``different`` prompts, and then the responses, in the place of ``rows`` of that width."""
    whole, apart = rows * width, _apart(different, rows, longest_prompt, longest_response)
    return apart <= SHARE * whole and whole - apart >= SPARED


def _apart(different: int, rows: int, longest_prompt: int, longest_response: int) -> int:
    """Padded tokens of prompts, and of responses without their last token, which predicts nothing."""
    return different * longest_prompt + rows * max(0, longest_response - 1)


def _flat(rows: Iterable[Sequence[int]]) -> Tensor:
    """All ids of some rows, one after the other."""
    return torch.tensor([token for row in rows for token in row], dtype=torch.long)


def causal_mask(real: Tensor, queries: int) -> Tensor:
    """Causal attention mask of left-padded rows.

    Args:
        real: bool ``[B, K]``, False at keys that are padding.
        queries: number ``T`` of the last columns that attend: 1, or all.

    Returns:
        bool ``[B, 1, T, K]``, True where a query may attend to a key. Padding attends to itself only: a row without
        any key would be NaN, and NaN would spread.
    """
    if queries == 1:  # the last token, which is never padding
        return real[:, None, None, :]
    width = real.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    own = torch.eye(width, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | own)[:, None, width - queries :]


def response_positions(batch: SequenceBatch) -> Tensor:
    """int64 ``[N]``: each response token's place in its response (or turn), in the order of ``response_mask``."""
    return batch.where[1] if batch.places is None else batch.places


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group indices so that a batch holds sequences of like length and at most ``tokens_per_batch`` padded tokens.

    Every batch holds at least one sequence. Longest first, so that memory runs out at once or not at all.

    Args:
        lengths: tokens of each sequence.
        tokens_per_batch: most tokens of a batch, padding included.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def response_batches(
    prompts: Sequence[Sequence[int]], response_lengths: Sequence[int], tokens_per_batch: int, *, shared: bool
) -> list[list[int]]:
    """Group prompts with their responses as :func:`batches_by_length` does; those of one prompt stand together.

    Args:
        prompts: ids of each prompt.
        response_lengths: tokens of each response.
        tokens_per_batch: most tokens of a batch, padding included.
        shared: a prompt counts once in a batch, where :func:`pack_sequences` finds that it pays.
    """
    if not shared:
        lengths = [len(prompt) + n for prompt, n in zip(prompts, response_lengths, strict=True)]
        return batches_by_length(lengths, tokens_per_batch)
    different, place = distinct(prompts)
    rows_of: list[list[int]] = [[] for _ in different]
    for row in sorted(range(len(prompts)), key=lambda i: -response_lengths[i]):
        rows_of[place[row]].append(row)

    def total(row: int) -> int:
        return len(prompts[row]) + response_lengths[row]

    batches: list[list[int]] = []
    seen: set[int] = set()  # the last batch's prompts, and its sizes
    sizes = (0, 0, 0)
    for rows in sorted(rows_of, key=lambda rows: -total(rows[0])):
        for row in rows:
            own = (len(prompts[row]), response_lengths[row], total(row))
            grown = (max(sizes[0], own[0]), max(sizes[1], own[1]), max(sizes[2], own[2]))
            number = len(seen) + (place[row] not in seen)
            if batches and _padded(number, len(batches[-1]) + 1, *grown) <= tokens_per_batch:
                batches[-1].append(row)
                sizes = grown
            else:
                batches.append([row])
                seen, sizes = set(), own
            seen.add(place[row])
    return batches


def _padded(different: int, rows: int, longest_prompt: int, longest_response: int, width: int) -> int:
    if _pays(different, rows, longest_prompt, longest_response, width):
        return _apart(different, rows, longest_prompt, longest_response)
    return rows * width
