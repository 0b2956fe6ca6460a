"""Value and Q heads on one trunk, and ILQL's losses of them: pure functions on flat ``[N]`` tensors of response tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_gym.agents.common.value_head import ValueHead
from rlhf_gym.lm.action_values import ActionValues
from rlhf_gym.lm.log_probs import CHUNK
from rlhf_gym.lm.sampling import Limits


class ActionValueHeads(ValueHead):
    """The heads of ILQL: ``V`` as any value head, two Q heads that learn, and their slow copy, by which the policy acts.

    Args:
        hidden_size: ``D``.
        vocab_size: ``V``.
        beta: weight of the Q values in the logits that the policy acts by.

    Attributes:
        online: the Q heads that learn.
        target: their moving average, without gradients.
    """

    def __init__(self, hidden_size: int, vocab_size: int, beta: float) -> None:
        super().__init__(hidden_size)
        self.online = ActionValues(hidden_size, vocab_size, beta)
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    @property
    def acts_by(self) -> ActionValues:
        """The target's Q values."""
        return self.target

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Move the target towards the heads that learn: ``target += rate (online - target)`` (Polyak averaging)."""
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast, rate)


class TokenQ(NamedTuple):
    """The two Q heads at some tokens.

    Attributes:
        q1: ``[N]``, the first head's value of each token.
        q2: ``[N]``, the second's.
        log_sum1: ``[N]``, the first head's ``log sum exp`` over all tokens that are allowed there.
        log_sum2: ``[N]``, the second's.
    """

    q1: Tensor
    q2: Tensor
    log_sum1: Tensor
    log_sum2: Tensor


def token_q(
    values: ActionValues, hidden: Tensor, tokens: Tensor, positions: Tensor, limits: Limits, *, chunk: int = CHUNK
) -> TokenQ:
    """Both Q heads at the tokens that were taken, one chunk of the vocabulary's values at a time.

    Args:
        values: the heads.
        hidden: ``[N, D]``, the states before each token.
        tokens: int64 ``[N]``.
        positions: int64 ``[N]``, place of each token in its response.
        limits: tokens that are forbidden by rule are no alternatives.
        chunk: most values at a time; with gradients, they are computed once more in the backward pass.
    """

    def of(hidden: Tensor, rows: slice) -> tuple[Tensor, ...]:
        both = [limits.apply(q, positions[rows]) for q in values.both(hidden)]
        taken = [q.gather(-1, tokens[rows, None]).squeeze(-1) for q in both]
        return (*taken, *(q.logsumexp(-1) for q in both))

    step = max(1, chunk // values.q1.out_features)
    if len(tokens) <= step:
        return TokenQ(*of(hidden, slice(None)))
    places = [slice(begin, begin + step) for begin in range(0, len(tokens), step)]
    states = torch.split(hidden, step)
    if torch.is_grad_enabled():
        parts = [
            checkpoint(of, part, rows, use_reentrant=False, preserve_rng_state=False)
            for part, rows in zip(states, places, strict=True)
        ]
    else:
        parts = [of(part, rows) for part, rows in zip(states, places, strict=True)]
    return TokenQ(*map(torch.cat, zip(*parts, strict=True)))


def next_values(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The value of the state after each token: the next token's, and 0 after a response's last token, which ends the episode.

    Args:
        values: ``[N]``, of the states before each token, response after response.
        lengths: tokens of each response; their sum is ``N``.

    Returns:
        ``[N]``.
    """
    after = torch.cat([values[1:], values.new_zeros(1)])
    last = torch.as_tensor(lengths).cumsum(0) - 1
    after[last.to(values.device, non_blocking=True)] = 0.0
    return after


def expectile_loss(values: Tensor, targets: Tensor, expectile: float) -> Tensor:
    """``|tau - 1(u < 0)| u^2`` with ``u = targets - values`` (Kostrikov et al. 2022, IQL, equation 5).

    Args:
        values: ``[N]``.
        targets: ``[N]``.
        expectile: ``tau``; 0.5 gives half the squared error, towards 1 the values tend to the largest target.

    Returns:
        ``[N]``.
    """
    error = targets - values
    return torch.where(error < 0, 1 - expectile, expectile) * error.square()


def q_loss(found: TokenQ, targets: Tensor) -> Tensor:
    """The squared errors of both heads, ``sum_i (Q_i - (r + gamma V'))^2`` (Snell et al. 2022).

    Args:
        found: the heads at the tokens.
        targets: ``[N]``, ``r + gamma V'``, constants.

    Returns:
        ``[N]``.
    """
    return (found.q1 - targets).square() + (found.q2 - targets).square()


def conservative_loss(found: TokenQ) -> Tensor:
    """The CQL term of both heads, ``sum_i (log sum_a exp Q_i(a) - Q_i)``, ``[N]`` (Kumar et al. 2020, equation 4)."""
    return found.log_sum1 - found.q1 + found.log_sum2 - found.q2
