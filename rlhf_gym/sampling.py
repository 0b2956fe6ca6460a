"""From logits to the next token: one definition of the behaviour distribution, for sampling and for learning alike.

Temperature, top-k, top-p and forbidden tokens change the distribution that tokens are drawn from. Whoever learns from those
tokens must use the same distribution, or the ratio of the first update is not 1; so both call
:func:`behaviour_log_probs`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_gym.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; above 0.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the smallest set of most probable tokens whose mass reaches p; 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class Limits:
    """Which tokens a response may hold, and where.

    Attributes:
        eos_id: the id that ends a response.
        banned: ids that are never drawn (padding, at least).
        min_tokens: EOS is not drawn before this many tokens.
        max_tokens: most tokens in a response, EOS included.
    """

    eos_id: int
    banned: tuple[int, ...] = ()
    min_tokens: int = 0
    max_tokens: int = 32

    def apply(self, logits: Tensor, position: Tensor) -> Tensor:
        """Logits with forbidden tokens at -inf.

        Args:
            logits: ``[N, V]``.
            position: int64 ``[N]``, number of response tokens written before this one.
        """
        if not self.banned and not self.min_tokens:
            return logits
        logits = logits.clone()
        if self.banned:
            logits[:, list(self.banned)] = -torch.inf
        if self.min_tokens:
            early = position < self.min_tokens
            logits[:, self.eos_id] = logits[:, self.eos_id].masked_fill(early, -torch.inf)
        return logits


def behaviour_log_probs(logits: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities that tokens are drawn with.

    Args:
        logits: ``[N, V]``, forbidden tokens at -inf.
        sampling: temperature, top-k, top-p.

    Returns:
        ``[N, V]``, normalised over what is kept, -inf elsewhere. Differentiable.
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


def sample_tokens(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution: an order of magnitude faster than multinomial.

    Args:
        log_probs: ``[N, V]``; -inf is never drawn.
        uniforms: ``[N]`` in [0, 1).

    Returns:
        int64 ``[N]``.
    """
    cumulative = log_probs.detach().exp().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # Strictly below the total, so that rounding never lands behind the last token of positive probability.
    target = torch.minimum(uniforms.to(total)[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def episode_uniforms(seed: int, episode: int, length: int) -> NDArray[np.float64]:
    """The noise of one episode: ``length`` uniforms in [0, 1) that depend on the seed and the episode's number alone.

    Counter-based (Philox), so an episode draws the same tokens in whatever batch and by whichever way it is collected.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed & (1 << 64) - 1, episode]))
    return generator.random(length)
