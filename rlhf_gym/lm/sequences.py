"""Prompts with responses as padded tensors, and the log-probabilities of their response tokens in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import chosen_and_entropy
from rlhf_gym.lm.sampling import Limits, Sampling, behaviour_logits

_LOGITS_AT_ONCE = 1 << 23  # 32 MiB


@dataclass(frozen=True)
class SequenceBatch:
    """``B`` sequences (a prompt and its response each), padded to ``T`` tokens; responses to ``R``.

    Attributes:
        ids: int64 ``[B, T]``.
        attention_mask: bool ``[B, 1, T, T]`` for left padding, or None: with right padding no real token can look at
            padding, and plain causal attention is fastest.
        position_ids: int64 ``[B, T]`` for left padding, else None.
        responses: int64 ``[B, R]``, padded on the right.
        response_mask: bool ``[B, R]``, True at the response's tokens, EOS included.
        predicted_from: int64 ``[B, R]``, the column of ``ids`` whose hidden state predicts each response token.
    """

    ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    responses: Tensor
    response_mask: Tensor
    predicted_from: Tensor


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
        responses: ids of each response, EOS included where it was written.
        pad_id: fills the rest; never attended to, never learned from.
        side: where whole sequences are padded.
        device: where the tensors go.

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
    predicted_from = (starts + prompt_lengths - 1 + places) * response_mask
    attention_mask = position_ids = None
    if side == "left" and bool(starts.any()):
        attention_mask = causal_mask(columns >= starts).to(device)
        position_ids = (columns - starts).clamp(min=0).to(device)
    tensors = (t.to(device) for t in (response_ids, response_mask, predicted_from))
    return SequenceBatch(ids.to(device), attention_mask, position_ids, *tensors)


def _flat(rows: Iterable[Sequence[int]]) -> Tensor:
    """All ids of some rows, one after the other."""
    return torch.tensor([token for row in rows for token in row], dtype=torch.long)


def causal_mask(real: Tensor) -> Tensor:
    """Which key each query may look at, for left-padded rows.

    Args:
        real: bool ``[B, T]``, False at padding.

    Returns:
        bool ``[B, 1, T, T]``. Padding looks at itself only: a row without any key would be NaN, and NaN would spread.
    """
    width = real.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    own = torch.eye(width, dtype=torch.bool, device=real.device)
    return ((causal & real[:, None, :]) | own)[:, None]


def response_hidden(model: LanguageModel, batch: SequenceBatch) -> Tensor:
    """Hidden states that predict the response tokens, flattened to ``[N, D]`` in the order of ``response_mask``."""
    return model.response_states(batch)


def response_positions(batch: SequenceBatch) -> Tensor:
    """int64 ``[N]``: each response token's place in its response, in the order of ``response_mask``."""
    return batch.response_mask.nonzero(as_tuple=True)[1]


def chosen_log_probs(
    model: LanguageModel,
    batch: SequenceBatch,
    hidden: Tensor,
    sampling: Sampling,
    limits: Limits,
    *,
    entropy: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each response token under the behaviour distribution, and its entropy if asked for.

    Without gradients, logits are made for some tokens at a time: a large vocabulary needs no more memory than a small one.

    Args:
        model: whose head turns hidden states into logits.
        batch: the sequences.
        hidden: ``[N, D]`` from :func:`response_hidden`.
        sampling: temperature, top-k and top-p, as in generation.
        limits: forbidden tokens, as in generation.
        entropy: also return the distribution's entropy.
        allowed: bool ``[N, V]``, further masks that held in generation.

    Returns:
        float32 ``[N]`` log-probabilities, and float32 ``[N]`` entropies in nats or None.
    """
    tokens, positions = batch.responses[batch.response_mask], response_positions(batch)

    def scored(rows: slice) -> tuple[Tensor, Tensor | None]:
        logits = limits.apply(model.logits(hidden[rows]), positions[rows])
        if allowed is not None:
            logits = logits.masked_fill(~allowed[rows], -torch.inf)
        logits = behaviour_logits(logits, sampling, chosen=tokens[rows])
        return chosen_and_entropy(logits, tokens[rows], entropy=entropy)

    if torch.is_grad_enabled():
        return scored(slice(None))
    step = max(1, _LOGITS_AT_ONCE // model.vocab_size)
    parts = [scored(slice(begin, begin + step)) for begin in range(0, max(1, len(tokens)), step)]
    entropies = [e for _, e in parts if e is not None]
    return torch.cat([c for c, _ in parts]), torch.cat(entropies) if entropy else None


@torch.no_grad()
def token_log_probs(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    *,
    tokens_per_batch: int = 4096,
) -> list[Tensor]:
    """Log-probabilities of every response's tokens, without gradients, in batches of like length.

    Args:
        model: the language model.
        prompts: ids of each prompt, at least one each.
        responses: ids of each response, EOS included where it was written.
        sampling: temperature, top-k and top-p, as in generation.
        limits: forbidden tokens, as in generation.
        tokens_per_batch: most tokens, padding included, in one forward pass.

    Returns:
        For each response a float32 tensor ``[len(response)]``, in the order given.
    """
    out: list[Tensor] = [torch.zeros(0)] * len(prompts)
    for rows in batches_by_length([len(p) + len(r) for p, r in zip(prompts, responses, strict=True)], tokens_per_batch):
        batch = pack_sequences(
            [prompts[i] for i in rows], [responses[i] for i in rows], model.tokenizer.pad_id, device=model.device
        )
        chosen, _ = chosen_log_probs(model, batch, response_hidden(model, batch), sampling, limits)
        for i, values in zip(rows, torch.split(chosen.cpu(), [len(responses[i]) for i in rows]), strict=True):
            out[i] = values
    return out


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group indices so that a batch holds sequences of like length and at most ``tokens_per_batch`` padded tokens.

    Every batch holds at least one sequence. Longest first, so that memory runs out at once or not at all.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens_per_batch:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
