"""The divergence of the policy from its reference: estimators from samples, and the coefficient that prices it.

With ``x ~ pi`` and ``r = pi_ref(x) / pi(x)``, the estimators of ``KL(pi || pi_ref)`` are (Schulman 2020, "Approximating KL
divergence"):

======  =====================  =======================================================================================
name    formula                value
======  =====================  =======================================================================================
``k1``  ``-log r``             unbiased, noisy, negative for about half the tokens near the reference
``k2``  ``(log r)^2 / 2``      biased (second order), never negative
``k3``  ``r - 1 - log r``      unbiased, never negative
======  =====================  =======================================================================================

Value and gradient are two things (``s = grad log pi(x)``, the score, has mean 0):

*In the reward* the estimate is a constant ``c`` and enters the gradient as ``E[c s]``. ``k1`` gives the gradient of
``KL(pi || pi_ref)`` exactly. ``k3`` gives the gradient of ``KL(pi || pi_ref) - KL(pi_ref || pi)``, which vanishes to first
order near the reference: its value is right and its gradient is not. ``k2`` is biased in both. The default is ``k1``.

*In the loss* the estimate is differentiated. ``grad k1 = s`` has mean 0: it holds nothing back, and is refused.
``grad k2 = -log r s`` has the mean ``grad KL(pi || pi_ref)``: right. ``grad k3 = (1 - r) s`` has the mean
``grad KL(pi_ref || pi)``, the other direction (GRPO uses it; near the reference the two agree). These hold for
samples of the current policy; from the second minibatch of a rollout on, samples are those of the policy that wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: tuple[Estimator, ...] = ("k1", "k2", "k3")


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: Estimator = "k1") -> Tensor:
    """``KL(pi || pi_ref)`` estimated at each sampled token, in nats; see the module's table.

    Args:
        log_probs: log-probabilities under the policy, any shape.
        ref_log_probs: under the reference, same shape.
        estimator: ``"k1"``, ``"k2"`` or ``"k3"``.

    Returns:
        Same shape, differentiable in both arguments.
    """
    log_r = ref_log_probs - log_probs
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    if estimator == "k3":
        return torch.expm1(log_r) - log_r  # expm1: no cancellation near the reference
    raise ValueError(f"unknown KL estimator {estimator!r}; expected one of {', '.join(ESTIMATORS)}")


@dataclass
class FixedKL:
    """A coefficient that stays what it is.

    Attributes:
        coef: price of a nat, in units of the reward.
    """

    coef: float

    def update(self, kl: float, n_episodes: int) -> None:
        """Nothing to adapt."""


@dataclass
class AdaptiveKL:
    """Proportional control of the coefficient (Ziegler et al. 2019, section 2.2).

    ``error = clip(KL / target - 1, -0.2, 0.2)``; ``coef *= 1 + error * n / horizon``.

    Attributes:
        coef: the coefficient now.
        target: wanted divergence, in nats per response (theirs: 6 and more).
        horizon: episodes over which an error at the clip changes the coefficient by a fifth (theirs: 10,000).
    """

    coef: float
    target: float
    horizon: float = 10_000

    def update(self, kl: float, n_episodes: int) -> None:
        """Take note of a rollout.

        Args:
            kl: measured divergence, in nats per response.
            n_episodes: how many responses it was measured on.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        # A rollout longer than five horizons would otherwise turn the coefficient's sign.
        self.coef *= max(1 + error * n_episodes / self.horizon, 0.0)


KLController = FixedKL | AdaptiveKL
