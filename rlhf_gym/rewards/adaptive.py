"""Rewards that change while a model trains: standardised on the fly, under a learned constraint, on a schedule.

Their state moves with every batch they score. :func:`frozen` scores without moving it (evaluation must not change the
training reward); :func:`reward_state` and :func:`restore_reward` carry it over a restart.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.base import AnyReward, Scores, as_term, reward_name
from rlhf_gym.rewards.combine import Combination, contributions


class Adaptive(Combination):
    """A combination with a state.

    Attributes:
        learns: False inside :func:`frozen`: the state is used but not moved.
    """

    learns: bool = True

    @abstractmethod
    def state_dict(self) -> dict[str, float]:
        """Return the state, as JSON values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Set the state to what :meth:`state_dict` returned."""


class RunningStandardise(Adaptive):
    """A reward standardised by mean and standard deviation of all samples scored so far, this batch included.

    Args:
        part: the reward.
        shift: also subtract the mean; False only scales, which keeps the sign of scores.
        clip: largest absolute value of the result, in standard deviations, above 0.

    Raises:
        ConfigError: ``clip`` is not above 0.
    """

    def __init__(self, part: AnyReward, *, shift: bool = True, clip: float = math.inf) -> None:
        if not clip > 0:
            raise ConfigError(f"clip must be above 0, got {clip}")
        self.parts, self.name = (as_term(part),), f"running({reward_name(part)})"
        self.shift, self.clip_at = shift, clip
        self.count, self.mean, self.squares = 0.0, 0.0, 0.0

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Update the moments (Chan, Golub and LeVeque 1983, eq. 2.1), then standardise.

        Args:
            values: one array: the part's scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        x = values[0]
        if self.learns:
            delta, n = float(x.mean()) - self.mean, len(x)
            total = self.count + n
            self.squares += float(((x - x.mean()) ** 2).sum()) + delta**2 * self.count * n / total
            self.mean += delta * n / total
            self.count = total
        std = math.sqrt(self.squares / self.count) if self.count else 0.0
        # Until two scores differ there is nothing to scale by.
        out = (x - self.mean * self.shift) / (std if std > 1e-12 else 1.0)
        return np.clip(out, -self.clip_at, self.clip_at), {}

    def state_dict(self) -> dict[str, float]:
        """Return count, mean and sum of squared deviations."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Set the state to what :meth:`state_dict` returned."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]


class Constrained(Adaptive):
    """One reward, maximised while another's mean is held at or above a level; the Lagrange multiplier is learned.

    The Lagrangian of ``max E[objective]`` subject to ``E[constraint] >= level``, divided by ``1 + multiplier`` so that the
    scale of the reward, and with it the meaning of the KL coefficient, does not drift (Dai et al. 2023, Safe RLHF, eq. 11)::

        score = (objective + multiplier * (constraint - level)) / (1 + multiplier)
        multiplier = clip(learned + damping * (level - mean of constraint), 0, most)
        learned <- clip(learned + rate * sum of (level - constraint), 0, most)      (after every batch)

    Plain dual ascent (no damping) oscillates around the level for ever; the damping term settles it, as the proportional
    part of a PI controller does (Stooke et al. 2020).

    Args:
        objective: the reward to maximise.
        constraint: the reward to hold at or above the level.
        level: the constraint's least mean.
        rate: step size of the learned multiplier, per sample and unit of constraint, above 0.
        damping: multiplier per unit by which the batch's mean falls short of the level, at least 0.
        multiplier: its first value, 0 to ``most``.
        most: its highest value.
        name: name to report under.

    Raises:
        ConfigError: a setting out of its range.
    """

    def __init__(
        self,
        objective: AnyReward,
        constraint: AnyReward,
        *,
        level: float,
        rate: float = 0.001,
        damping: float = 0.0,
        multiplier: float = 0.0,
        most: float = 100.0,
        name: str = "constrained",
    ) -> None:
        if not (0 <= multiplier <= most and rate > 0 and damping >= 0 and math.isfinite(level)):
            raise ConfigError(
                f"a constraint needs 0 <= multiplier <= most, rate above 0, damping of 0 or more and a finite level; got "
                f"multiplier {multiplier}, most {most}, rate {rate}, damping {damping}, level {level}"
            )
        self.parts, self.name = (as_term(objective), as_term(constraint)), name
        self.level, self.rate, self.damping, self.multiplier, self.most = level, rate, damping, multiplier, most

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Score at the present multiplier, then learn.

        Further terms are ``NAME_multiplier``; ``NAME_slack``, the constraint less its level; and the contributions of
        objective and constraint, which add up to the score, each as ``ITS_NAME_weighted``.

        Args:
            values: the scores of the objective, then of the constraint, float64 ``[n]`` each.
            responses: the ``n`` responses; not used.
        """
        objective, constraint = values
        damped = self.multiplier + self.damping * (self.level - float(constraint.mean()))
        multiplier = min(max(damped, 0.0), self.most)
        contributed = [objective / (1 + multiplier), multiplier * (constraint - self.level) / (1 + multiplier)]
        if self.learns:
            # By the sum, not the mean: the pace must not depend on the number of samples in a batch.
            moved = self.multiplier + self.rate * float((self.level - constraint).sum())
            self.multiplier = min(max(moved, 0.0), self.most)
        more = {
            f"{self.name}_multiplier": np.full(len(objective), multiplier),
            f"{self.name}_slack": constraint - self.level,
        }
        return np.sum(contributed, axis=0), more | contributions(self.parts, contributed)

    def state_dict(self) -> dict[str, float]:
        """Return the learned multiplier."""
        return {"multiplier": self.multiplier}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Set the state to what :meth:`state_dict` returned."""
        self.multiplier = state["multiplier"]


class Scheduled(Adaptive):
    """A reward times a weight that follows the number of samples scored so far, linear between given points.

    Args:
        part: the reward.
        points: ``(samples, weight)``, ascending; before the first and after the last point the weight is constant.

    Raises:
        ConfigError: no point, or samples that do not ascend.
    """

    def __init__(self, part: AnyReward, points: Sequence[tuple[float, float]]) -> None:
        places = [place for place, _ in points]
        if not points or places != sorted(set(places)):
            raise ConfigError(f"a schedule needs (samples, weight) points with ascending samples, got {list(points)}")
        self.parts, self.name, self.points = (as_term(part),), f"scheduled({reward_name(part)})", list(points)
        self.samples = 0.0

    def combine(self, values: list[Scores], responses: list[str]) -> tuple[Scores, dict[str, Scores]]:
        """Weight the scores; the term ``NAME_weight`` is the weight, one for the batch.

        Args:
            values: one array: the part's scores, float64 ``[n]``.
            responses: the ``n`` responses; not used.
        """
        places, weights = [place for place, _ in self.points], [weight for _, weight in self.points]
        weight = float(np.interp(self.samples, places, weights))
        if self.learns:
            self.samples += len(values[0])
        return weight * values[0], {f"{self.name}_weight": np.full(len(values[0]), weight)}

    def state_dict(self) -> dict[str, float]:
        """Return the number of samples scored."""
        return {"samples": self.samples}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Set the state to what :meth:`state_dict` returned."""
        self.samples = state["samples"]


class Stateful(Protocol):
    """A reward whose scores depend on what it has scored before: any object with these two methods, a user's own included.

    Its state is part of checkpoints and runs. An object with an attribute ``learns`` has it set to False where it must not
    learn from what it scores (evaluation, raters); the state of one without is put back afterwards.
    """

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state, as values that JSON can hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object:
        """Set the state to what :meth:`state_dict` returned."""
        ...


def stateful_parts(reward: object) -> list[Stateful]:
    """Every part of a reward that has a state, each once, in a fixed order.

    Searched are the reward itself, the one that it wraps (``reward``) and those that it combines (``parts``). A module of torch
    is taken for fixed: its ``state_dict`` is its weights.
    """
    own: Any = reward
    has_state = callable(getattr(own, "state_dict", None)) and callable(getattr(own, "load_state_dict", None))
    found: list[Stateful] = [own] if has_state and not isinstance(own, type) and not hasattr(own, "parameters") else []
    inside = [own.reward] if hasattr(own, "score_terms") and hasattr(own, "reward") else []
    for part in (*inside, *getattr(own, "parts", ())):
        found += [inner for inner in stateful_parts(part) if not any(inner is known for known in found)]
    return found


@contextmanager
def frozen(reward: object) -> Iterator[None]:
    """A context in which the reward scores without changing its state, as evaluation must."""
    parts: list[Any] = stateful_parts(reward)
    before = [part.learns if hasattr(part, "learns") else copy.deepcopy(part.state_dict()) for part in parts]
    try:
        for part in parts:
            if hasattr(part, "learns"):
                part.learns = False
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            if hasattr(part, "learns"):
                part.learns = value
            else:
                part.load_state_dict(value)


def reward_state(reward: object) -> list[dict[str, Any]]:
    """The states of all parts of a reward that have one, as JSON values; empty for a reward without any."""
    return [
        {"name": reward_name(part), "state": copy.deepcopy(dict(part.state_dict()))} for part in stateful_parts(reward)
    ]


def restore_reward(reward: object, states: Sequence[Mapping[str, Any]]) -> None:
    """Set the states of all parts of a reward that have one.

    Args:
        reward: the reward, built as the one that the states are of.
        states: the result of :func:`reward_state`.

    Raises:
        ConfigError: the states are another reward's.
    """
    parts = stateful_parts(reward)
    if (names := [reward_name(part) for part in parts]) != [state.get("name") for state in states]:
        raise ConfigError(
            f"the saved states are of {[state.get('name') for state in states]}, but the reward has {names}; resume with the "
            "reward that the run began with"
        )
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(copy.deepcopy(state["state"]))
