"""Passes in which a prompt is run once for all its responses: of a group, of a preference's two sides, of a prompt drawn twice.

The prompts' keys and values are computed once, with gradients where they are wanted, and every response attends to those of
its own prompt. Hidden states are those of whole rows but for rounding. With ``G`` responses of ``R`` tokens to each prompt of
``P``, a pass has ``P + G R`` tokens in the place of ``G (P + R)``; of attention it saves the prompts' own alone.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicCache

from rlhf_gym.lm.networks import equal_but_for_rounding
from rlhf_gym.lm.sequences import SequenceBatch, SharedPrompts, pack_sequences, share_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlhf_gym.lm.tokenizer import Tokenizer

LONG = 8192
"""Tokens of a context that a prompt is not padded to for a try."""

log = logging.getLogger(__name__)


class CausalModel(Protocol):
    """What is asked of a :class:`~rlhf_gym.lm.language_model.LanguageModel`, which imports this module."""

    name: str
    model: PreTrainedModel
    tokenizer: Tokenizer
    context_length: int
    vocab_size: int
    product_dtype: torch.dtype | None

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""

    def hidden(
        self, ids: Tensor, *, attention_mask: Tensor | None, position_ids: Tensor | None, cache: object
    ) -> Tensor:
        """Last hidden states ``[B, T, D]``.

        Args:
            ids: int64 ``[B, T]``.
            attention_mask: bool ``[B, K]``, True at each row's own tokens.
            position_ids: int64 ``[B, T]``.
            cache: a transformers ``Cache``.
        """

    def states_of_rows(self, batch: SequenceBatch) -> Tensor:
        """Hidden states ``[N, D]`` that predict the response tokens, from a pass over whole rows."""


def shared_states(model: CausalModel, batch: SequenceBatch) -> Tensor:
    """The hidden states that predict the response tokens of a batch whose :attr:`~SequenceBatch.shared` is there.

    Args:
        model: a causal model for which :func:`sharing_works`.
        batch: ``B`` rows, ``U`` different prompts.

    Returns:
        ``[N, D]``, in the order of ``response_mask``; differentiable.
    """
    assert batch.shared is not None
    ids, real, place = batch.shared.ids, batch.shared.real, batch.shared.place
    lengths = real.sum(1)
    columns = torch.arange(ids.shape[1], device=ids.device)
    # Without a configuration its layers keep all keys; a window's mask needs them all.
    cache = DynamicCache()
    starts = columns - (ids.shape[1] - lengths)[:, None]
    prompts = model.hidden(ids, attention_mask=real, position_ids=starts.clamp(min=0), cache=cache)
    states = prompts[place, -1:]
    read = batch.responses[:, :-1]  # the last token of the longest response predicts nothing
    if read.shape[1]:
        cache.reorder_cache(cast("torch.LongTensor", place))
        positions = lengths[place, None] + torch.arange(read.shape[1], device=ids.device)
        # Padding may lie beyond the context; it follows a row's tokens, which cannot attend to it.
        positions = positions.clamp(max=model.context_length - 1)
        seen = torch.cat([real[place], torch.ones_like(read, dtype=torch.bool)], dim=1)
        responses = model.hidden(read, attention_mask=seen, position_ids=positions, cache=cache)
        states = torch.cat([states, responses], dim=1)
    return states[batch.where]


def sharing_works(model: CausalModel) -> bool:
    """True where shared prompts give the model's own hidden states: not in families that keep no keys and values, among others.

    Args:
        model: a causal model.
    """
    ids = torch.randint(model.vocab_size, (17,), generator=torch.Generator().manual_seed(2)).tolist()
    prompts = [ids[:4], ids[:4], ids[4:6], ids[:4], ids[4:6]]
    responses = [ids[6:9], ids[9:14], ids[14:16], ids[16:], ids[6:10]]
    pad_id, device = model.tokenizer.pad_id, model.device
    batch = pack_sequences(prompts, responses, pad_id, device=device)
    return _gives_states_of_rows(model, replace(batch, shared=share_prompts(prompts, pad_id, device)))


def wide_sharing_works(model: CausalModel) -> bool:
    """True where that holds for a prompt with so much padding that there are more columns than positions.

    Some families hold masks, or biases, of no more columns. A context of over :data:`LONG` tokens is not tried.

    Args:
        model: a causal model.
    """
    if model.context_length > LONG:
        return False
    prompt, response, pad_id, device = [2, 3], [4, 5, 6], model.tokenizer.pad_id, model.device
    batch = pack_sequences([prompt], [response], pad_id, device=device)
    shared = share_prompts([prompt], pad_id, device)
    padding = model.context_length - len(prompt)
    wide = SharedPrompts(
        pad(shared.ids, (padding, 0), value=pad_id), pad(shared.real, (padding, 0), value=False), shared.place
    )
    return _gives_states_of_rows(model, replace(batch, shared=wide))


@torch.no_grad()
def _gives_states_of_rows(model: CausalModel, batch: SequenceBatch) -> bool:
    try:
        ours, exact = shared_states(model, batch), model.states_of_rows(batch)
    except Exception:  # any error that a family raises when it is given masks, positions or a cache
        log.debug("%s cannot share prompts", model.name, exc_info=True)
        return False
    return equal_but_for_rounding(ours, exact, model.product_dtype or model.model.dtype)
