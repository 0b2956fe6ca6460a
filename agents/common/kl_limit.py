"""What happens when the policy runs away from the reference: back to where it was, and stop or go on at half the rate."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.errors import ConfigError

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
    """The bound, how often it was passed, and the way back.

    A rollout tells how far the policy that wrote it is from the reference: its mean k1 estimate in nats a response, which is
    ``objective/kl``. Beyond the limit nothing is learned from it; the weights of the last rollout within the limit come
    back. ``"stop"`` then ends the training, ``"back_off"`` goes on at half the learning rate, until it has been halved
    ``MOST_BACK_OFFS`` times.

    Args:
        nats: the limit; None is none, and nothing is copied then.
        action: what to do beyond it.

    Attributes:
        back_offs: times the learning rate was halved.
        stopped: why training ended, in words; None while it goes on.

    Raises:
        ConfigError: an action without a limit.
    """

    def __init__(self, nats: float | None, action: Action | None) -> None:
        if nats is None and action is not None:
            raise ConfigError(f"on_kl_limit={action!r} needs a kl_limit, in nats per response")
        self.nats = nats
        self.action: Action = action or "stop"
        self.back_offs = 0
        self.stopped: str | None = None
        self.last_good: LastGood | None = None

    def holds(self, kl: float, policy: LMPolicy, where: str) -> bool:
        """Whether there may be learning from a rollout; if not, the policy has been put back.

        Args:
            kl: the rollout's, nats a response.
            policy: who wrote it.
            where: where in training, for the words.
        """
        self.stopped = None
        if self.nats is None:
            return True
        if not kl > self.nats:  # NaN too: the guards name its origin
            self.last_good = LastGood.of(policy)
            return True
        words = f"{where}: KL {kl:.2f} nats per response is above kl_limit ({self.nats:g})"
        if self.last_good is None:
            self.stopped = (
                f"{words} before anything was learned: the policy begins too far from the reference; raise kl_limit"
            )
            return False
        self.last_good.put_back(policy)
        if self.action == "back_off" and self.back_offs < MOST_BACK_OFFS:
            self.back_offs += 1
            return False
        halved = f", after {self.back_offs} halvings of the learning rate" if self.back_offs else ""
        self.stopped = (
            f"{words}{halved}: training has stopped with the weights of the last rollout within it; raise kl_coef or "
            "kl_limit, or lower the learning rate"
        )
        return False

    @property
    def rate(self) -> float:
        """What the learning rate is multiplied by."""
        return float(0.5**self.back_offs)
