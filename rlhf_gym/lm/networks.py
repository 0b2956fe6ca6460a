"""transformers' networks as functions of tensors: masks, caches, logits from hidden states, and checks of a new model.

Families differ in the arguments they take and in how logits follow from their last hidden states. What the rest of the package
relies on is checked here once, on a few tokens, when a model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf_gym.errors import ModelError


@cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """The name of a ``forward``'s argument for keys and values: ``cache``, or ``past_key_values`` in older transformers."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where a query may attend to a key, the lowest number elsewhere.

    Args:
        mask: bool ``[B, 1, T, K]``.
        dtype: the model's.

    Returns:
        ``[B, 1, T, K]`` of that dtype.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def fuse_gelu(network: nn.Module) -> None:
    """Replace GPT-2's GELU of eight operations by torch's own of one, which makes a decoding step a fifth faster."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, GELUTanh())


def mute_padding_warning(network: nn.Module) -> None:
    """Keep transformers from warning of padding without an attention mask: padding follows every position that is read."""
    for module in network.modules():
        if isinstance(module, PreTrainedModel):
            module.warn_if_padding_and_no_attention_mask = _do_nothing  # type: ignore[method-assign]


def _do_nothing(*_: object) -> None:
    pass


def equal_but_for_rounding(ours: Tensor, exact: Tensor, dtype: torch.dtype) -> bool:
    """True where two ways to compute the same hidden states or logits differ by rounding alone.

    Args:
        ours: ``[..., D]``, or ``[..., V]``.
        exact: of the same shape; tensors of different shapes are not equal.
        dtype: the model's, which says how large rounding is.
    """
    largest = (1e-4 if dtype == torch.float32 else 5e-2) * max(1.0, float(exact.abs().max()))
    return ours.shape == exact.shape and torch.allclose(ours.float(), exact.float(), rtol=0, atol=largest)


def checkpointed_layers(network: nn.Module) -> list[nn.Module]:
    """The layers that transformers can checkpoint one by one; none in families without such layers."""
    return [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]


def checkpoint_layers(network: nn.Module) -> None:
    """Have these layers compute their activations anew in the backward pass, where they are in training mode.

    Args:
        network: a transformers model.

    Raises:
        ModelError: its family has no such layers.
    """
    layers: list[Any] = checkpointed_layers(network)
    if not layers:
        raise ModelError(
            f"gradient_checkpointing: transformers cannot checkpoint the layers of {type(network).__name__}; leave it off"
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def logits_by_forward(network: PreTrainedModel, hidden: Tensor) -> Tensor | None:
    """Logits ``[..., V]`` that the whole network makes of last hidden states ``[..., D]``.

    Its forward runs with a trunk that returns ``hidden``.

    Args:
        network: a causal language model.
        hidden: ``[..., D]``.

    Returns:
        None where the network's forward does not call its trunk.
    """
    flat = hidden.reshape(1, -1, hidden.shape[-1])
    ids = torch.zeros(1, flat.shape[1], dtype=torch.long, device=hidden.device)
    trunk: nn.Module = network.base_model
    with _returning(trunk, BaseModelOutputWithPast(last_hidden_state=flat)) as calls:
        logits: Tensor = network(input_ids=ids, use_cache=False).logits
    return logits.reshape(*hidden.shape[:-1], -1) if calls else None


@contextmanager
def _returning(module: nn.Module, output: Any) -> Iterator[list[bool]]:
    """Replace a module's forward by a constant output for a while; yields a list that grows with every call."""
    calls: list[bool] = []

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        calls.append(True)
        return output

    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward  # before the class's method; nn.Module.__call__ finds it
    try:
        yield calls
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@torch.no_grad()
def check_causal(
    network: PreTrainedModel, name: str, hidden_states: Callable[[Tensor], Tensor], context: int
) -> tuple[int, int, bool]:
    """Check on a few tokens that a network is causal and that its logits follow from its last hidden states.

    Args:
        network: a causal language model.
        name: its name, for messages.
        hidden_states: maps ids ``[B, T]`` to last hidden states ``[B, T, D]``.
        context: most tokens that it can see.

    Returns:
        Number of logits ``V``, width ``D`` of the hidden states, and True where the output layer alone gives the logits (False
        where they take :func:`logits_by_forward`).

    Raises:
        ModelError: logits are not finite, depend on later tokens, or do not follow from the hidden states.
    """
    family = type(network).__name__
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = network.get_input_embeddings()
    words = int(embeddings.weight.shape[0])
    ids = torch.randint(words, (1, min(8, context)), generator=generator).to(network.device)

    def by_forward(hidden: Tensor) -> Tensor | None:
        try:
            return logits_by_forward(network, hidden)
        except Exception:  # a family whose forward wants more from its trunk
            return None

    def same(ours: Tensor | None, exact: Tensor) -> bool:
        return ours is not None and equal_but_for_rounding(ours, exact, network.dtype)

    whole = network(ids).logits.float()
    if not torch.isfinite(whole).all():
        raise ModelError(
            f"the logits of {name!r} ({family}) are not finite: its weights are broken, or too large for {network.dtype}"
        )
    if not same(network(ids[:, :4]).logits, whole[:, :4]):
        raise ModelError(f"{name!r} ({family}) is not causal: its logits depend on later tokens")
    hidden = hidden_states(ids)
    width = hidden.shape[-1]
    # Small logits would not show a soft cap; hidden states an order of magnitude larger do.
    large = 30 * torch.randn(1, 8, width, generator=generator).to(hidden)
    exact = by_forward(large)
    model: Any = network
    head: nn.Module | None = model.get_output_embeddings()
    plain = head is not None and same(head(hidden), whole) and (exact is None or same(head(large), exact))
    if not plain and not same(by_forward(hidden), whole):
        raise ModelError(
            f"the logits of {name!r} ({family}) do not follow from its last hidden states in a way that "
            f"rlhf-gym knows; use another model family, or report this one"
        )
    return int(whole.shape[-1]), int(width), plain


def run_encoder(network: PreTrainedModel, ids: Tensor, seen: Tensor) -> Tensor:
    """Last hidden states of an encoder-decoder network's encoder.

    Args:
        network: an encoder-decoder model.
        ids: int64 ``[B, S]``.
        seen: bool ``[B, S]``, True at tokens.

    Returns:
        ``[B, S, D]``.
    """
    model: Any = network
    states: Tensor = model.get_encoder()(input_ids=ids, attention_mask=seen.long()).last_hidden_state
    return states


def run_decoder(
    network: PreTrainedModel, ids: Tensor, states: Tensor, seen: Tensor, mask: Tensor | None = None, cache: Any = None
) -> Tensor:
    """Last hidden states of an encoder-decoder network's decoder.

    Args:
        network: an encoder-decoder model.
        ids: int64 ``[B, T]``, the decoder's input: the start token, then the response.
        states: the encoder's, ``[B, S, D]``.
        seen: bool ``[B, S]``, True at the prompt's tokens.
        mask: None for plain causal attention, or bool ``[B, 1, T, K]``, True where a query may attend to a key.
        cache: a transformers ``EncoderDecoderCache``.

    Returns:
        ``[B, T, D]``.
    """
    given: dict[str, Any] = {
        "input_ids": ids,
        "encoder_hidden_states": states,
        "encoder_attention_mask": seen.long(),
        "use_cache": cache is not None,
    }
    if mask is not None:  # added to the scores, as relative positions are: a bool mask would be taken for numbers
        given["attention_mask"] = added_mask(mask, network.dtype)
    model: Any = network
    decoder = model.get_decoder()
    given[cache_argument(type(decoder).forward)] = cache
    hidden: Tensor = decoder(**given).last_hidden_state
    return hidden


@torch.no_grad()
def check_encoder_decoder(
    network: PreTrainedModel, name: str, logits_of: Callable[[Tensor, float], Tensor]
) -> tuple[int, int, float]:
    """Check on a few tokens that a decoder is causal and find how logits follow from its hidden states.

    Args:
        network: an encoder-decoder model.
        name: its name, for messages.
        logits_of: logits ``[..., V]`` of hidden states ``[..., D]`` that are multiplied by a scale first.

    Returns:
        Number of logits ``V``, width ``D`` of the hidden states, and the scale.

    Raises:
        ModelError: there is no start token, logits are not finite or do not follow from the hidden states, or the decoder is
            not causal.
    """
    family = type(network).__name__
    if getattr(network.config, "decoder_start_token_id", None) is None:
        raise ModelError(f"{name!r} ({family}) does not say what its decoder starts with (decoder_start_token_id)")
    embeddings: Any = network.get_input_embeddings()
    words = int(embeddings.weight.shape[0])
    ids = torch.randint(words, (1, 8), generator=torch.Generator().manual_seed(0)).to(network.device)
    seen = torch.ones_like(ids, dtype=torch.bool)
    states = run_encoder(network, ids, seen)
    whole = network(encoder_outputs=(states,), attention_mask=seen.long(), decoder_input_ids=ids).logits.float()
    hidden = run_decoder(network, ids, states, seen)
    if not torch.isfinite(whole).all():
        raise ModelError(f"the logits of {name!r} ({family}) are not finite: its weights are broken")
    if not equal_but_for_rounding(run_decoder(network, ids[:, :4], states, seen), hidden[:, :4], network.dtype):
        raise ModelError(f"the decoder of {name!r} ({family}) is not causal: it looks at later tokens")
    width = int(hidden.shape[-1])
    for scale in (1.0, width**-0.5):  # T5 scales where it ties embeddings
        if equal_but_for_rounding(logits_of(hidden, scale), whole, network.dtype):
            return int(whole.shape[-1]), width, scale
    raise ModelError(f"the logits of {name!r} ({family}) do not follow from its decoder's states in a known way")
