"""From logits to the next token: one definition of the behaviour distribution, for sampling and for learning alike.

Temperature, top-k, top-p and forbidden tokens change the distribution that tokens are drawn from. Learning from those tokens
must use the same distribution, or the ratio of the first update is not 1; so both call :func:`behaviour_log_probs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.sequences import index_on
from rlhf_gym.lm.tokenizer import AnyTokenizer, end_ids, never_drawn, wrap_tokenizer


@dataclass(frozen=True)
class Sampling:
    """Settings of the distribution that the next token is drawn from.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature must be a finite number above 0, got {self.temperature}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ConfigError(f"top_k must be a whole number, 0 (off) or more; got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")


def greedily(sampling: Sampling) -> Sampling:
    """The same settings, but only the most probable token is ever drawn."""
    return replace(sampling, top_k=1, top_p=1.0)


@dataclass(frozen=True)
class Limits:
    """Tokens that a response may not hold, and its length.

    Attributes:
        eos_id: the id that ends a response: the tokenizer's own, which SFT teaches.
        suppress_tokens: ids that are never drawn (padding, at least).
        min_new_tokens: no end is drawn before this many tokens; ``max_new_tokens`` gives responses of one length.
        max_new_tokens: most tokens in a response, EOS included.
        more_eos_ids: further ids that end a response (chat models end turns and texts by different ones).
    """

    eos_id: int
    suppress_tokens: tuple[int, ...] = ()
    min_new_tokens: int = 0
    max_new_tokens: int = 32
    more_eos_ids: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: AnyTokenizer, min_new_tokens: int = 0, max_new_tokens: int = 32) -> Limits:
        """The limits that a tokenizer sets: its ends; padding and ids without a token are never drawn.

        Args:
            tokenizer: the model's, ours or a transformers one.
            min_new_tokens: no end is drawn before this many tokens.
            max_new_tokens: most tokens in a response.
        """
        own = wrap_tokenizer(tokenizer)
        eos_id, *more = end_ids(own)
        return cls(eos_id, never_drawn(own), min_new_tokens, max_new_tokens, tuple(more))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a response, ``eos_id`` first."""
        return (self.eos_id, *self.more_eos_ids)

    def ends(self, tokens: Tensor) -> Tensor:
        """True at tokens that end a response: bool ``[N]`` for ``tokens`` int64 ``[N]``."""
        ended = tokens == self.eos_id
        for token in self.more_eos_ids:
            ended |= tokens == token
        return ended

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"a response needs room for at least 1 token, got max_new_tokens={self.max_new_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens must lie in 0..{self.max_new_tokens} (max_new_tokens), got {self.min_new_tokens}"
            )

    def apply(self, logits: Tensor, position: Tensor, some_early: bool | None = None) -> Tensor:
        """Logits with forbidden tokens at -inf.

        Args:
            logits: ``[N, V]``; not changed.
            position: int64 ``[N]``, number of response tokens before this one.
            some_early: False if no position is below ``min_new_tokens``, True if one may be; None looks where that costs no
                wait, on a processor.

        Returns:
            ``[N, V]``.
        """
        early = position < self.min_new_tokens
        if some_early is None:
            some_early = self.min_new_tokens > 0 and (logits.device.type != "cpu" or bool(early.any()))
        if not self.suppress_tokens and not some_early:
            return logits
        # Adding is a tenth of the cost of masking, and costs nothing in the backward pass.
        bias = logits.new_zeros(logits.shape[-1])
        bias[index_on(logits.device, self.suppress_tokens)] = -torch.inf
        if not some_early:
            return logits + bias
        without_eos = bias.clone()
        without_eos[index_on(logits.device, self.eos_ids)] = -torch.inf
        return logits + torch.stack([bias, without_eos])[early.long()]


def behaviour_log_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities that tokens are drawn with.

    Args:
        logits: ``[N, V]``, forbidden tokens at -inf.
        sampling: temperature, top-k, top-p.

    Returns:
        float32 ``[N, V]``, normalised over what is kept, -inf elsewhere. Differentiable.
    """
    logits = logits.float()
    if sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        threshold = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if sampling.top_p < 1:
        logits = logits.masked_fill(~top_p_mask(logits, sampling.top_p), -torch.inf)
    return torch.log_softmax(logits, dim=-1)


def top_p_mask(logits: Tensor, p: float) -> Tensor:
    """The nucleus (Holtzman et al. 2020): True at the fewest tokens whose probability sums to at least ``p``.

    Args:
        logits: ``[..., V]``.
        p: mass to keep, in (0, 1].

    Returns:
        bool ``[..., V]``; at least one True a row.
    """
    ordered, order = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < p)


def sample_tokens(log_probs: Tensor, uniforms: Tensor, greedy: Sequence[bool] = ()) -> Tensor:
    """Draw one token a row; see :func:`draw`.

    Args:
        log_probs: ``[N, V]``, or logits: they are normalised again; -inf is never drawn.
        uniforms: ``[N]`` in [0, 1).
        greedy: ``N`` flags: True takes the row's most probable token; empty draws in every row.

    Returns:
        int64 ``[N]``.

    Raises:
        ModelError: a row has NaN, or no token of positive probability.
    """
    tokens, drawn = draw(log_probs, uniforms)
    check_drawn(bool(drawn.all()))
    if not any(greedy):
        return tokens
    return torch.where(torch.tensor(greedy, device=tokens.device), log_probs.argmax(-1), tokens)


def check_drawn(drawn: bool) -> None:
    """Refuse to go on where no token could be drawn.

    Raises:
        ModelError: not all were drawn.
    """
    if not drawn:
        raise ModelError(
            "no next token can be drawn: the logits are not finite (the weights have diverged), or every token is forbidden"
        )


def draw(log_probs: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution: an order of magnitude faster than multinomial.

    It is inverted twice, over blocks of 64 tokens and over the tokens of the block, so that running sums stay short. Nothing
    waits for the device.

    Args:
        log_probs: ``[N, V]``, or logits: they are normalised again; -inf is never drawn.
        uniforms: ``[N]`` in [0, 1).

    Returns:
        The tokens, int64 ``[N]``, and bool ``[N]``, False in rows with NaN or without a token of positive probability.
    """
    probs = torch.softmax(log_probs.detach(), dim=-1)  # of log-probabilities it is exp, in two thirds of its time
    size = probs.shape[-1]
    whole = size - size % _BLOCK
    sums = [probs[:, :whole].view(len(probs), -1, _BLOCK).sum(-1)] if whole else []
    if whole < size:
        sums.append(probs[:, whole:].sum(-1, keepdim=True))
    block, _, target = _invert(torch.cat(sums, dim=-1), uniforms.to(torch.float64)[:, None])
    tokens = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = probs.gather(-1, tokens.clamp(max=size - 1)).masked_fill(tokens >= size, 0.0)
    token, total, _ = _invert(inside, target)
    # One check for both levels: NaN anywhere, or no mass at all, reaches the total of the chosen block.
    # A row where nothing can be drawn may point beyond the vocabulary, and whoever looks may look later.
    return (block * _BLOCK + token).squeeze(-1).clamp(max=size - 1), total.squeeze(-1) > 0


_BLOCK = 64


def _invert(masses: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the place where a running sum exceeds a part of the whole mass.

    Args:
        masses: ``[N, K]``, not negative.
        where: float64 ``[N, 1]`` in [0, 1), the part of the whole mass to the left of the place.

    Returns:
        The place, int64 ``[N, 1]``, whose mass is positive; the whole mass ``[N, 1]``; and which part of the place's own
        mass lies to the left, float64 ``[N, 1]`` in [0, 1].
    """
    cumulative = masses.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Strictly below the total, so that rounding never lands behind the last place of positive mass.
    target = torch.minimum(where * total, torch.nextafter(total, torch.zeros_like(total)))
    place = torch.searchsorted(cumulative, target, right=True).clamp(max=masses.shape[-1] - 1)
    mass = masses.gather(-1, place).double()
    part = (target - cumulative.gather(-1, place) + mass) / mass
    return place, total, part.clamp(0.0, 1.0)


def episode_uniforms(seed: int, episode: int, length: int) -> NDArray[np.float64]:
    """The noise of one episode: uniforms that depend on the seed and the episode's number alone.

    Counter-based (Philox, Salmon et al. 2011), so an episode draws the same tokens in whatever batch, on whatever device
    and by whichever way it is collected; a longer length begins with a shorter one's numbers.

    Args:
        seed: any integer; counted modulo 2^64.
        episode: number of the episode, 0 or more.
        length: number of uniforms.

    Returns:
        float64 ``[length]`` in [0, 1).
    """
    key = np.array([seed % (1 << 64), episode], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(length)
