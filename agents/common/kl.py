"""KL of the policy from its reference: estimators from samples, the coefficient of the penalty, and a limit.

With ``x ~ pi`` and ``r = pi_ref(x) / pi(x)``, the estimators of ``KL(pi || pi_ref)`` are (Schulman 2020, "Approximating KL
divergence"):

======  =====================  =======================================================================================
name    formula                value
======  =====================  =======================================================================================
``k1``  ``-log r``             unbiased, noisy, negative for about half the tokens near the reference
``k2``  ``(log r)^2 / 2``      biased (second order), never negative
``k3``  ``r - 1 - log r``      unbiased, never negative
======  =====================  =======================================================================================

Value and gradient are two things (``s = grad log pi(x)`` has mean 0):

*In the reward* the estimate is a constant ``c`` and enters the gradient as ``E[c s]``. ``k1`` gives the gradient of
``KL(pi || pi_ref)`` exactly. ``k3`` gives the gradient of ``KL(pi || pi_ref) - KL(pi_ref || pi)``, which vanishes to first
order near the reference: its value is right and its gradient is not. ``k2`` is biased in both. The default is ``k1``.

*In the loss* the estimate is differentiated. ``grad k1 = s`` has mean 0: it holds nothing back, and is refused.
``grad k2 = -log r s`` has the mean ``grad KL(pi || pi_ref)``: right. ``grad k3 = (1 - r) s`` has the mean
``grad KL(pi_ref || pi)``, the other direction (GRPO uses it; near the reference the two agree). These hold for
samples of the current policy; from the second minibatch of a rollout on, samples are those of the policy that generated them.

*Of a token or of the sequence.* All of the above is about one token's distribution, given the tokens before it. The KL of
whole responses is ``E[sum_u l_u]`` with ``l_u = log pi(y_u | y_<u) - log pi_ref(y_u | y_<u)``, and its gradient is (Tang and
Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL", arXiv 2506.09477)::

    E[ sum_t s_t K_t ],  K_t = sum_{u >= t} l_u   (the KL to go)

since a token changes the distribution of all later ones (``s_t l_u`` with ``u < t`` has mean 0). k2 in the loss, summed over
tokens, has the gradient ``E[sum_t s_t l_t]``: the KL of later tokens is missing, and k3 misses it, too.
:func:`sequence_kl_loss` has the exact gradient. In the reward nothing is missing where an advantage holds all later rewards
(REINFORCE, RLOO, ``gae_lambda=1``, each with ``gamma=1``); with a smaller lambda the value function stands for them, and a
smaller gamma discounts them. As a loss, the sum is exact where all tokens have one weight whatever the responses are:
``aggregation`` constant; the mean over a minibatch's tokens divides by their number, which varies a little.

*Samples of an older policy*, from the second step of a rollout on, are weighed by ``w = pi / pi_old``
(:func:`weighted_kl_estimate`). ``w k3`` is differentiated with its weight: ``grad (w k3) = w (k3 + 1 - r) s = -w log r s``. Its
mean under ``pi_old`` is ``grad KL(pi || pi_ref)``, while k3 without a weight has the other direction even where ``w = 1``
(DeepSeek-AI 2025, DeepSeek-V3.2). The weight of k2 is a constant, which gives ``-w log r s`` again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rlhf_gym.agents.common.policy import LMPolicy

Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """``KL(pi || pi_ref)`` estimated at each sampled token, in nats; see the module's table.

    Args:
        log_probs: log-probabilities under the policy, any shape ``[...]``.
        ref_log_probs: log-probabilities under the reference, same shape.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.

    Returns:
        Same shape, differentiable in both arguments.

    Raises:
        ValueError: no such estimator.
    """
    log_r = ref_log_probs - log_probs
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    if estimator == "k3":
        return torch.expm1(log_r) - log_r  # expm1: no cancellation near the reference
    raise ValueError(f"unknown KL estimator {estimator!r}; expected one of {', '.join(ESTIMATORS)}")


def weighted_kl_estimate(
    log_probs: Tensor, ref_log_probs: Tensor, old_log_probs: Tensor, estimator: Estimator = "k2"
) -> Tensor:
    """The estimator times the importance weight of its token, for samples of an older policy; see the module's text.

    Args:
        log_probs: log-probabilities under the policy, any shape ``[...]``.
        ref_log_probs: log-probabilities under the reference, same shape.
        old_log_probs: log-probabilities under the policy that generated the tokens, same shape.
        estimator: ``"k2"`` or ``"k3"``.

    Returns:
        Same shape; its mean over samples of the old policy has the gradient of ``KL(pi || pi_ref)`` at each token.
    """
    weights = torch.exp(log_probs - old_log_probs)
    return (weights if estimator == "k3" else weights.detach()) * kl_estimate(log_probs, ref_log_probs, estimator)


def sequence_kl_loss(
    log_probs: Tensor, ref_log_probs: Tensor, lengths: Sequence[int], old_log_probs: Tensor | None = None
) -> Tensor:
    """A loss for each token whose sum over a response has the gradient of the KL of whole responses; see the module's text.

    The value is the k1 estimate ``l_t``, and the gradient is ``s_t K_t``. For samples of an older policy it is
    ``s_t sum_{u >= t} w_u l_u`` with ``w_u = pi(y_<=u) / pi_old(y_<=u)``, the weight of all tokens up to ``u``: exact, too, and
    noisier the further the two policies are apart.

    Args:
        log_probs: ``[N]``, of the tokens under the policy, response after response.
        ref_log_probs: ``[N]``, under the reference.
        lengths: tokens of each response; their sum is ``N``.
        old_log_probs: ``[N]``, under the policy that generated the tokens; None where that is the policy.

    Returns:
        ``[N]``, differentiable in ``log_probs``.
    """
    now = log_probs.detach()
    rows = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    sizes = list(lengths)
    terms = now - ref_log_probs
    if old_log_probs is not None:
        prefixes = rows(list(torch.split(now - old_log_probs, sizes))).cumsum(1)
        terms = terms * torch.cat([row[:size] for row, size in zip(prefixes, sizes, strict=True)]).exp()
    to_go = rows(list(torch.split(terms, sizes))).flip(1).cumsum(1).flip(1)  # padding is 0 and adds nothing
    credit = torch.cat([row[:size] for row, size in zip(to_go, sizes, strict=True)])
    return terms + credit * (log_probs - now)


@dataclass
class FixedKL:
    """A constant KL coefficient.

    Attributes:
        coef: the coefficient, in units of the reward per nat.
    """

    coef: float

    def update(self, kl: float, n_episodes: int) -> None:
        """Nothing to adapt.

        Args:
            kl: measured KL.
            n_episodes: number of responses that it was measured on.
        """


@dataclass
class AdaptiveKL:
    """Proportional control of the coefficient (Ziegler et al. 2019, section 2.2).

    ``error = clip(KL / target - 1, -0.2, 0.2)``; ``coef *= 1 + error * n / horizon``.

    Attributes:
        coef: the coefficient now.
        target: wanted KL, in nats per response (theirs: 6 and more).
        horizon: episodes over which an error at the clip changes the coefficient by a fifth (theirs: 10,000).
    """

    coef: float
    target: float
    horizon: float

    def update(self, kl: float, n_episodes: int) -> None:
        """Adapt to a rollout.

        Args:
            kl: measured KL, in nats per response.
            n_episodes: number of responses that it was measured on.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        # A rollout longer than five horizons would otherwise turn the coefficient's sign.
        self.coef *= max(1 + error * n_episodes / self.horizon, 0.0)


KLController = FixedKL | AdaptiveKL


def kl_controller(coef: float, target: float | None, horizon: float) -> KLController:
    """The controller that the settings ask for.

    Args:
        coef: the coefficient at the start.
        target: wanted KL, in nats per response; None keeps the coefficient fixed.
        horizon: see :class:`AdaptiveKL`.
    """
    return FixedKL(coef) if target is None else AdaptiveKL(coef, target, horizon)


Action = Literal["stop", "back_off"]
ACTIONS: tuple[str, ...] = get_args(Action)
MOST_BACK_OFFS = 8  # halvings of the learning rate: 1/256 of it, where nothing moves any more


@dataclass
class LastGood:
    """Weights that kept within the limit, and their optimizer.

    Attributes:
        weights: every weight that learns, by its name in the policy.
        optimizer: the optimizer's ``state_dict``.
    """

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]

    @classmethod
    def of(cls, policy: LMPolicy) -> LastGood:
        """A copy of a policy's weights, and of its optimizer's state."""
        learning = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
        # The unit of the values, which goes with the head's weights.
        learning |= {name: b.clone() for name, b in policy.named_buffers() if name.startswith("value_head.")}
        return cls(learning, copy.deepcopy(policy.optimizer.state_dict()))

    def put_back(self, policy: LMPolicy) -> None:
        """Restore the weights and the optimizer's state."""
        policy.load_state_dict(self.weights, strict=False)
        policy.optimizer.load_state_dict(copy.deepcopy(self.optimizer))


class KLLimit:
    """A limit on the KL, the last weights within it, and the number of times that it was exceeded.

    KL is a rollout's mean k1 estimate in nats per response, ``objective/kl``. The agent does not learn from a rollout beyond
    the limit; the weights of the last rollout within it are restored. ``"stop"`` then ends training, ``"back_off"`` goes on at
    half the learning rate, until it has been halved ``MOST_BACK_OFFS`` times. At the end of training the policy is measured
    once more, so that its last update does not leave it beyond the limit.

    Args:
        nats: the limit; None sets none, and keeps no copy of the weights.
        action: the action beyond it, ``"stop"`` or ``"back_off"``; None takes ``"stop"``.

    Attributes:
        back_offs: times the learning rate was halved.
        last_good: the weights that were within the limit last.
    """

    def __init__(self, nats: float | None, action: Action | None) -> None:
        self.nats = nats
        self.action: Action = action or "stop"
        self.back_offs = 0
        self.last_good: LastGood | None = None

    def exceeded(self, kl: float) -> bool:
        """True for a KL beyond the limit; False for NaN, which other checks report."""
        return self.nats is not None and kl > self.nats

    def remember(self, policy: LMPolicy) -> None:
        """Keep the weights of a policy within the limit; without a limit, do nothing."""
        if self.nats is not None:
            self.last_good = LastGood.of(policy)

    def restore(self, policy: LMPolicy, kl: float, where: str) -> str | None:
        """Give a policy beyond the limit its last good weights back.

        Args:
            policy: the policy.
            kl: the rollout's KL, in nats per response.
            where: the place in training, for the message.

        Returns:
            The reason why training must end; None if it goes on.
        """
        message = f"{where}: KL {kl:.2f} nats per response is above kl_limit ({self.nats:g})"
        if self.last_good is None:
            return (
                f"{message} before anything was learned: the policy begins too far from the reference; raise kl_limit"
            )
        self.last_good.put_back(policy)
        if self.action == "back_off" and self.back_offs < MOST_BACK_OFFS:
            self.back_offs += 1
            return None
        halved = f", after {self.back_offs} halvings of the learning rate" if self.back_offs else ""
        return (
            f"{message}{halved}: training has stopped with the weights of the last rollout within it; raise kl_coef or "
            "kl_limit, or lower the learning rate"
        )

    def restore_after_last_update(self, policy: LMPolicy, kl: float, where: str) -> str:
        """Give a policy that its last update moved beyond the limit its last good weights back; with back_off, halve the rate.

        Args:
            policy: the policy.
            kl: its KL now, in nats per response.
            where: the place in training, for the message.

        Returns:
            What was done, for the user.
        """
        assert self.last_good is not None
        self.last_good.put_back(policy)
        self.back_offs += int(self.action == "back_off" and self.back_offs < MOST_BACK_OFFS)
        return (
            f"{where}: KL {kl:.2f} nats per response after the last update is above kl_limit ({self.nats:g}): the weights "
            "of the last rollout within it are restored; raise kl_coef or kl_limit, or lower the learning rate"
        )

    @property
    def rate(self) -> float:
        """The factor of the learning rate."""
        return float(0.5**self.back_offs)
