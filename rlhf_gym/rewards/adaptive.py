"""Rewards that change while a model trains: standardised on the fly, under a learned constraint, on a schedule.

They count what they score, so two things matter: :func:`frozen` scores without counting (evaluation must not move the
training reward), and :func:`reward_state` with :func:`restore_reward` carries the counts over a restart.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.base import Scores, reward_name
from rlhf_gym.rewards.combine import AnyReward, Combination, contributions


class Adaptive(Combination):
    """A combination with a state.

    Attributes:
        learns: False inside :func:`frozen`: the state is used but not moved.
    """

    learns: bool = True

    @abstractmethod
    def state(self) -> dict[str, float]:
        """The state, as JSON has it."""

    @abstractmethod
    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""


class RunningStandardise(Adaptive):
    """Scores shifted and scaled by the mean and deviation of all samples scored so far, this batch included.

    Args:
        part: the reward.
        shift: also subtract the mean; False only scales, which leaves the sign of scores alone.
        clip: largest size of the result, in deviations.
    """

    def __init__(self, part: AnyReward, *, shift: bool = True, clip: float = math.inf) -> None:
        if not clip > 0:
            raise ConfigError(f"clip must be above 0, got {clip}")
        self.parts, self.name = (part,), f"running({reward_name(part)})"
        self.shift, self.clip_at = shift, clip
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Update the moments (Chan et al. 1983), then standardise."""
        x = values[0]
        if self.learns:
            delta, n = float(x.mean()) - self.mean, len(x)
            total = self.count + n
            self.squares += float(((x - x.mean()) ** 2).sum()) + delta**2 * self.count * n / total
            self.mean += delta * n / total
            self.count = total
        deviation = math.sqrt(self.squares / self.count) if self.count else 0.0
        # Until scores have differed there is nothing to scale by.
        out = (x - self.mean * self.shift) / (deviation if deviation > 1e-12 else 1.0)
        return np.clip(out, -self.clip_at, self.clip_at), {}

    def state(self) -> dict[str, float]:
        """Count, mean and sum of squared deviations."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


class Constrained(Adaptive):
    """One reward, maximised while another's mean is held at or above a level; the price is learned.

    The Lagrangian of ``max E[objective]`` subject to ``E[constraint] >= level``, divided by ``1 + price`` so that the
    scale of the reward, and with it the meaning of the KL coefficient, does not drift (Dai et al. 2023, Safe RLHF, eq. 11)::

        score = (objective + price * (constraint - level)) / (1 + price)
        price = clip(learned + damping * (level - mean of constraint), 0, most)
        learned <- clip(learned + rate * sum of (level - constraint), 0, most)      (after every batch)

    Plain dual ascent (no damping) swings around the level for ever; the second term settles it, as the proportional part
    of a PI controller does (Stooke et al. 2020).

    Args:
        objective: what to maximise.
        constraint: what to hold.
        level: the constraint's least mean.
        rate: how fast the learned price moves, per sample and unit of constraint.
        damping: price per unit by which the batch's mean falls short of the level, at least 0.
        price: the first price, at least 0.
        most: the highest price.
        name: name to report under.
    """

    def __init__(
        self,
        objective: AnyReward,
        constraint: AnyReward,
        *,
        level: float,
        rate: float = 0.001,
        damping: float = 0.0,
        price: float = 0.0,
        most: float = 100.0,
        name: str = "constrained",
    ) -> None:
        if not (0 <= price <= most and rate > 0 and damping >= 0 and math.isfinite(level)):
            raise ConfigError(
                f"a constraint needs 0 <= price <= most, rate above 0, damping of 0 or more and a finite level; got "
                f"price {price}, most {most}, rate {rate}, damping {damping}, level {level}"
            )
        self.parts, self.name = (objective, constraint), name
        self.level, self.rate, self.damping, self.price, self.most = level, rate, damping, price, most

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Score at the present price, then learn.

        Reported are ``NAME_price``; ``NAME_slack``, by how much the constraint exceeds its level; and what objective and
        constraint contributed, which adds up to the score, each as ``ITS_NAME_weighted``.
        """
        objective, constraint = values
        price = min(max(self.price + self.damping * (self.level - float(constraint.mean())), 0.0), self.most)
        contributed = [objective / (1 + price), price * (constraint - self.level) / (1 + price)]
        if self.learns:
            # By the sum, not the mean: how fast it learns must not depend on how many samples come at once.
            moved = self.price + self.rate * float((self.level - constraint).sum())
            self.price = min(max(moved, 0.0), self.most)
        more = {f"{self.name}_price": np.full(len(objective), price), f"{self.name}_slack": constraint - self.level}
        return np.sum(contributed, axis=0), more | contributions(self.parts, contributed)

    def state(self) -> dict[str, float]:
        """The learned price."""
        return {"price": self.price}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""
        self.price = state["price"]


class Scheduled(Adaptive):
    """A reward times a weight that depends on how many samples have been scored, linear between given points.

    Args:
        part: the reward.
        points: ``(samples, weight)``, ascending; before the first and after the last the weight stays as it is there.
    """

    def __init__(self, part: AnyReward, points: Sequence[tuple[float, float]]) -> None:
        places = [place for place, _ in points]
        if not points or places != sorted(set(places)):
            raise ConfigError(f"a schedule needs (samples, weight) points with ascending samples, got {list(points)}")
        self.parts, self.name, self.points = (part,), f"scheduled({reward_name(part)})", list(points)
        self.samples = 0.0

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """The weighted scores; the weight, one for the batch, is reported as ``NAME_weight``."""
        places, weights = [place for place, _ in self.points], [weight for _, weight in self.points]
        weight = float(np.interp(self.samples, places, weights))
        if self.learns:
            self.samples += len(values[0])
        return weight * values[0], {f"{self.name}_weight": np.full(len(values[0]), weight)}

    def state(self) -> dict[str, float]:
        """Samples scored."""
        return {"samples": self.samples}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from a state."""
        self.samples = state["samples"]


def adaptive_parts(reward: object) -> list[Adaptive]:
    """Every adaptive combination inside a reward, each once, in a fixed order.

    Looked at are the reward, what it names in ``parts``, and what an ``on_error`` policy is around.
    """
    found: list[Adaptive] = [reward] if isinstance(reward, Adaptive) else []
    inside = [reward.reward] if hasattr(reward, "score_terms") and hasattr(reward, "reward") else []
    for part in (*inside, *getattr(reward, "parts", ())):
        found += [inner for inner in adaptive_parts(part) if not any(inner is known for known in found)]
    return found


@contextmanager
def frozen(reward: object) -> Iterator[None]:
    """Inside this block the reward scores without learning anything, as evaluation must."""
    parts = adaptive_parts(reward)
    before = [part.learns for part in parts]
    try:
        for part in parts:
            part.learns = False
        yield
    finally:
        for part, learns in zip(parts, before, strict=True):
            part.learns = learns


def reward_state(reward: object) -> list[dict[str, Any]]:
    """The states of everything adaptive inside a reward, as JSON; empty for a reward that does not change."""
    return [{"name": part.name, **part.state()} for part in adaptive_parts(reward)]


def restore_reward(reward: Callable[..., Any], states: Sequence[Mapping[str, Any]]) -> None:
    """Go on from :func:`reward_state`.

    Raises:
        ConfigError: the states are another reward's.
    """
    parts = adaptive_parts(reward)
    if [part.name for part in parts] != [state.get("name") for state in states]:
        raise ConfigError(
            f"the saved states are of {[state.get('name') for state in states]}, but the reward has "
            f"{[part.name for part in parts]}; resume with the reward that the run began with"
        )
    for part, state in zip(parts, states, strict=True):
        part.restore(state)
