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
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPast,
    BaseModelOutputWithPastAndCrossAttentions,
)

from rlhf_gym.errors import ModelError
from rlhf_gym.lm.sequences import causal_mask


@cache
def cache_argument(forward: Callable[..., Any]) -> str:
    """The name of a ``forward``'s argument for keys and values: ``cache``, or ``past_key_values`` in older transformers."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def attention_mask(real: Tensor, queries: int, network: PreTrainedModel, windows: bool, *, added: bool) -> Tensor:
    """The mask of left-padded rows, in the form that a network takes.

    Args:
        real: bool ``[B, K]``, True at a row's own tokens.
        queries: number of the last columns that attend: 1, or all.
        network: which takes the mask.
        windows: True where its layers attend in different ways. transformers then makes each layer's mask from that of the
            padding; a window reaches as far over columns as over positions, since a row's tokens stand side by side.
        added: True where a mask of each query and key is added to the scores, False where it is taken as bool.

    Returns:
        int64 ``[B, K]`` with windows, otherwise ``[B, 1, queries, K]``.
    """
    if windows:
        return real.long()
    mask = causal_mask(real, queries)
    return added_mask(mask, network.dtype) if added else mask


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to attention scores: 0 where a query may attend to a key, the lowest number elsewhere.

    Args:
        mask: bool ``[B, 1, T, K]``.
        dtype: the model's.

    Returns:
        ``[B, 1, T, K]`` of that dtype.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def constants(network: PreTrainedModel) -> list[nn.Parameter]:
    """Weights that are computed and never learned: sinusoidal positions (Marian, Pegasus), and what no file would hold."""
    unsaved = getattr(network, "_keys_to_ignore_on_save", None) or ()
    return [
        parameter
        for above, module in network.named_modules()
        for name, parameter in module.named_parameters(above, recurse=False)
        if "Sinusoidal" in type(module).__name__ or name in unsaved
    ]


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


def checkpoint_layers(network: nn.Module, on: bool) -> None:
    """Have each layer compute its activations anew in the backward pass in place of keeping them (Chen et al. 2016).

    transformers' own switch works in training mode only, in which some layers drop units out.

    Args:
        network: a transformers model.
        on: False undoes it.

    Raises:
        ModelError: its family has no layers that can be run by themselves.
    """
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if on and not layers:
        raise ModelError(
            f"gradient_checkpointing: transformers cannot checkpoint the layers of {type(network).__name__}; leave it off"
        )
    for layer in layers:
        own: Any = vars(layer)
        if _is_checkpointed(layer):
            del own["forward"]
        if on:
            own["forward"] = partial(_computed_anew, layer.forward)


def layers_are_checkpointed(network: nn.Module) -> bool:
    """True after :func:`checkpoint_layers`, also for a copy."""
    return any(
        isinstance(module, GradientCheckpointingLayer) and _is_checkpointed(module) for module in network.modules()
    )


def _is_checkpointed(layer: nn.Module) -> bool:
    return getattr(vars(layer).get("forward"), "func", None) is _computed_anew


def _computed_anew(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)


def trunk_of(network: PreTrainedModel) -> nn.Module:
    """A causal language model without its head.

    Raises:
        ModelError: it has no such part.
    """
    base: nn.Module = network.base_model
    if base is not network:
        return base
    # Some families name a base that another model of theirs has (Llama 4 text): the one part that is a model is meant.
    parts = [part for part in network.children() if isinstance(part, PreTrainedModel)]
    if len(parts) != 1:
        raise ModelError(
            f"{type(network).__name__} is not a network with an output layer on top: rlhf-gym cannot read its hidden states; "
            "use another model family"
        )
    return parts[0]


def logits_by_forward(network: PreTrainedModel, hidden: Tensor) -> Tensor | None:
    """Logits ``[..., V]`` that the whole network makes of last hidden states ``[..., D]``.

    Its forward runs with a trunk, or a decoder, that returns ``hidden``.

    Args:
        network: a causal language model or an encoder-decoder model.
        hidden: ``[..., D]``.

    Returns:
        None where the network's forward does not call that part.
    """
    flat = hidden.reshape(1, -1, hidden.shape[-1])
    ids = torch.zeros(1, flat.shape[1], dtype=torch.long, device=hidden.device)
    model: Any = network
    if network.config.is_encoder_decoder:
        # The decoder alone would look at what the encoder says.
        given = {"encoder_outputs": BaseModelOutput(last_hidden_state=flat), "decoder_input_ids": ids}
        output: Any = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=flat)
        part: nn.Module = model.get_decoder()
    else:
        given, output, part = {"input_ids": ids}, BaseModelOutputWithPast(last_hidden_state=flat), trunk_of(network)
    with _returning(part, output) as calls:
        logits: Tensor = network(**given, use_cache=False).logits
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
    network: PreTrainedModel,
    ids: Tensor,
    states: Tensor,
    seen: Tensor,
    *,
    windows: bool,
    real: Tensor | None = None,
    position_ids: Tensor | None = None,
    cache: Any = None,
) -> Tensor:
    """Last hidden states of an encoder-decoder network's decoder.

    Args:
        network: an encoder-decoder model.
        ids: int64 ``[B, T]``, the decoder's input: the start token, then the response.
        states: the encoder's, ``[B, S, D]``.
        seen: bool ``[B, S]``, True at the prompt's tokens.
        windows: True where the decoder's layers attend in different ways.
        real: bool ``[B, K]``, True at a row's own tokens; None for plain causal attention, where padding is on the right.
        position_ids: int64 ``[B, T]``, for decoders that take them (others have relative positions, or count columns); None
            counts from 0.
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
    if real is None and windows:  # T5Gemma would mask a start token that is also the padding's
        real = torch.ones_like(ids, dtype=torch.bool)
    if real is not None:  # added to the scores, as relative positions are: a bool mask would be taken for numbers
        given["attention_mask"] = attention_mask(real, ids.shape[1], network, windows, added=True)
    model: Any = network
    decoder = model.get_decoder()
    if position_ids is not None and "position_ids" in signature(type(decoder).forward).parameters:
        given["position_ids"] = position_ids
    given[cache_argument(type(decoder).forward)] = cache
    hidden: Tensor = decoder(**given).last_hidden_state
    return hidden


def decoder_start(network: PreTrainedModel) -> int | None:
    """The id that an encoder-decoder network's decoder reads first; None where nothing says it."""
    config: Any = network.config
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and network.generation_config is not None:
        start = network.generation_config.decoder_start_token_id
    if start is None and getattr(config, "decoder", None) is not None:
        start = config.decoder.bos_token_id  # T5Gemma shifts its labels to the right with it
    return None if start is None else int(start)


@torch.no_grad()
def check_encoder_decoder(
    network: PreTrainedModel,
    name: str,
    logits_of: Callable[[Tensor, float | None], Tensor | None],
    decode: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[int, int, float | None]:
    """Check on a few tokens that a decoder is causal and find how logits follow from its hidden states.

    Args:
        network: an encoder-decoder model.
        name: its name, for messages.
        logits_of: logits ``[..., V]`` of hidden states ``[..., D]``, by the output layer, which reads them multiplied by a
            scale; or by the network's forward, where the scale is None.
        decode: maps the decoder's ids ``[B, T]``, the encoder's states and the mask of the prompt to hidden states
            ``[B, T, D]``.

    Returns:
        Number of logits ``V``, width ``D`` of the hidden states, and the scale.

    Raises:
        ModelError: there is no start token, logits are not finite or do not follow from the hidden states, or the decoder is
            not causal.
    """
    family = type(network).__name__
    if decoder_start(network) is None:
        raise ModelError(f"{name!r} ({family}) does not say what its decoder starts with (decoder_start_token_id)")
    embeddings: Any = network.get_input_embeddings()
    words = int(embeddings.weight.shape[0])
    ids = torch.randint(words, (1, 8), generator=torch.Generator().manual_seed(0)).to(network.device)
    seen = torch.ones_like(ids, dtype=torch.bool)
    model: Any = network
    encoded = model.get_encoder()(input_ids=ids, attention_mask=seen.long())  # of a class of the family's own
    states = encoded.last_hidden_state
    whole = network(
        encoder_outputs=encoded, attention_mask=seen.long(), decoder_input_ids=ids, decoder_attention_mask=seen.long()
    ).logits.float()
    hidden = decode(ids, states, seen)
    if not torch.isfinite(whole).all():
        raise ModelError(f"the logits of {name!r} ({family}) are not finite: its weights are broken")
    if not equal_but_for_rounding(decode(ids[:, :4], states, seen), hidden[:, :4], network.dtype):
        raise ModelError(f"the decoder of {name!r} ({family}) is not causal: it looks at later tokens")
    width = int(hidden.shape[-1])
    # Small logits would not show a soft cap; hidden states an order of magnitude larger do.
    large = 30 * torch.randn(1, 8, width, generator=torch.Generator().manual_seed(0)).to(hidden)
    exact = logits_of(large, None)

    def same(ours: Tensor | None, exact: Tensor) -> bool:
        return ours is not None and equal_but_for_rounding(ours, exact, network.dtype)

    for scale in (1.0, width**-0.5, None):  # T5 scales where it ties embeddings
        if same(logits_of(hidden, scale), whole) and (exact is None or same(logits_of(large, scale), exact)):
            return int(whole.shape[-1]), width, scale
    raise ModelError(f"the logits of {name!r} ({family}) do not follow from its decoder's states in a known way")
