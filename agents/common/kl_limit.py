"""A policy that runs away from the reference goes back to where it was, and training stops or goes on at half the rate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from rlhf_gym.agents.common.policy import LMPolicy

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
        """A copy of what a policy is now."""
        learning = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
        return cls(learning, copy.deepcopy(policy.optimizer.state_dict()))

    def put_back(self, policy: LMPolicy) -> None:
        """Make the policy what it was."""
        policy.load_state_dict(self.weights, strict=False)
        policy.optimizer.load_state_dict(copy.deepcopy(self.optimizer))


class KLLimit:
    """A bound on KL, the weights that were within it last, and how often it was passed.

    KL is a rollout's mean k1 estimate in nats a response, ``objective/kl``. Beyond the limit nothing is learned from a
    rollout; the weights of the last one within it come back. ``"stop"`` then ends training, ``"back_off"`` goes on at half the
    learning rate, until it has been halved ``MOST_BACK_OFFS`` times.

    Args:
        nats: the limit; None is none, and nothing is copied then.
        action: what to do beyond it.

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
        """True for a KL beyond the limit; False for NaN, whose origin the guards name."""
        return self.nats is not None and kl > self.nats

    def remember(self, policy: LMPolicy) -> None:
        """Keep the weights of a policy that is within the limit, if there is one."""
        if self.nats is not None:
            self.last_good = LastGood.of(policy)

    def restore(self, policy: LMPolicy, kl: float, where: str) -> str | None:
        """Give a policy beyond the limit its last good weights back.

        Args:
            policy: gets them.
            kl: the rollout's, nats a response.
            where: where in training, for the message.

        Returns:
            Why training must end; None if it goes on.
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

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied by."""
        return float(0.5**self.back_offs)
