"""Sequences of several turns as padded tensors: what somebody else wrote is read, and only our own tokens are predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlhf_gym.lm.sequences import SequenceBatch, pad_right

Turns = Sequence[tuple[Sequence[int], Sequence[int]]]
"""The turns that a model reads in a row: each the ids of others that came before, and our own ids."""


def pack_turns(rows: Sequence[Turns], pad_id: int, *, device: torch.device | str = "cpu") -> SequenceBatch:
    """Pad sequences of turns on the right, to one rectangle.

    Args:
        rows: ``B`` sequences; each begins with at least one id of somebody else.
        pad_id: fills the rest.
        device: device of the tensors.

    Returns:
        A batch whose responses are our own tokens, turn after turn; each is predicted from the token before it, whoever wrote
        that. ``places`` counts them within their turns.

    Raises:
        ValueError: no sequence, or one that does not begin with somebody else's ids.
    """
    if not rows or not all(row and len(row[0][0]) for row in rows):
        raise ValueError("expected at least one sequence, and at least one id before the first of our own in each")
    ids: list[list[int]] = []
    ours: list[list[int]] = []
    sources: list[list[int]] = []
    places: list[int] = []
    for row in rows:
        whole: list[int] = []
        own: list[int] = []
        columns: list[int] = []
        for context, turn in row:
            whole += context
            columns += range(len(whole) - 1, len(whole) - 1 + len(turn))
            places += range(len(turn))
            whole += turn
            own += turn
        ids.append(whole)
        ours.append(own)
        sources.append(columns)
    lengths = torch.tensor([len(own) for own in ours])
    mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
    responses = torch.full(mask.shape, pad_id, dtype=torch.long)
    responses[mask] = torch.tensor([token for own in ours for token in own], dtype=torch.long)
    predicted_from = torch.zeros(mask.shape, dtype=torch.long)
    predicted_from[mask] = torch.tensor([column for row in sources for column in row], dtype=torch.long)
    # An empty row of ours still says where its prompt ends.
    predicted_from[lengths == 0, 0] = torch.tensor(
        [len(i) - 1 for i, own in zip(ids, ours, strict=True) if not own], dtype=torch.long
    )
    inner = torch.tensor(places, dtype=torch.long)
    tensors = (pad_right(ids, pad_id), responses, mask, predicted_from, *mask.nonzero(as_tuple=True), inner)
    padded, responses, mask, predicted_from, *where, inner = (t.to(device, non_blocking=True) for t in tensors)
    return SequenceBatch(padded, None, None, responses, mask, predicted_from, (where[0], where[1]), inner)
