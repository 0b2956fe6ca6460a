"""A population: simulated raters who differ in taste and in rationality, each a variation of the same rater."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.raters.behaviour import Behaviour
from rlhf_gym.raters.pool import RaterPool
from rlhf_gym.raters.simulated import SimulatedRater
from rlhf_gym.rewards.base import AnyReward
from rlhf_gym.rewards.combine import term


@dataclass(frozen=True)
class Taste:
    """An attribute that some raters like and others dislike.

    Attributes:
        attribute: a reward that measures it.
        spread: standard deviation over raters of its weight: standard deviations of the common reward for each standard
            deviation of the attribute. 1 makes the taste matter as much as the common reward; 0 or more.
        std: the attribute's standard deviation over reference responses, above 0.
    """

    attribute: AnyReward
    spread: float
    std: float = 1.0


def population(
    name: str,
    reward: AnyReward,
    behaviour: Behaviour | None = None,
    *,
    size: int,
    overlap: int = 1,
    tastes: Mapping[str, Taste] | None = None,
    reward_std: float = 1.0,
    beta_spread: float = 0.0,
    seed: int = 0,
    batch_size: int = 256,
) -> RaterPool:
    """A pool of simulated raters who share a reward and differ about it.

    Rater ``i`` prefers by ``reward + sum over tastes of w_i (reward_std / std) attribute``, and has ``beta`` times
    ``exp(beta_spread z_i)``. Weights and ``z`` are evenly spaced quantiles of a normal distribution, dealt out at random: their
    means are 0, so that the population as a whole prefers by the common reward, whatever its size.

    Args:
        name: the pool's; its raters sign ``name/01``, ``name/02``, ...
        reward: what all of them prefer by.
        behaviour: of each of them; default :class:`Behaviour`'s.
        size: number of raters.
        overlap: raters who answer each query.
        tastes: what they differ about, by name.
        reward_std: the reward's standard deviation over reference responses, above 0.
        beta_spread: standard deviation of the logarithm of beta over raters.
        seed: of who has which taste, who is asked, and of all answers; 0 or more.
        batch_size: most queries scored in one call of the reward.

    Raises:
        ConfigError: a size, spread or standard deviation out of its range.

    >>> likes_length = Taste(lambda prompts, responses: [len(r) for r in responses], spread=1.0)
    >>> pool = population("crowd", lambda prompts, responses: [0.0 for _ in responses], size=3, tastes={"length": likes_length})
    >>> sorted(pool.members)
    ['crowd/01', 'crowd/02', 'crowd/03']
    """
    tastes, behaviour = tastes or {}, behaviour or Behaviour()
    numbers = {
        "beta_spread": beta_spread,
        **{f"the spread of the taste {key!r}": t.spread for key, t in tastes.items()},
    }
    for what, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{what} must be a finite number of 0 or more, got {value}")
    stds = {"the reward": reward_std, **{f"the taste {key!r}": taste.std for key, taste in tastes.items()}}
    for what, std in stds.items():
        if tastes and not (math.isfinite(std) and std > 0):
            raise ConfigError(f"{what} has the standard deviation {std} over responses: it must tell responses apart")
    if size < 1:
        raise ConfigError(f"a population needs at least one rater, got {size}")
    rng = np.random.default_rng((seed, size))
    weights = {key: _dealt(size, rng) for key in sorted(tastes)}
    betas = _dealt(size, rng)
    width = len(str(size)) if size > 99 else 2
    members = []
    for i in range(size):
        liked = term(reward) if tastes else reward
        for key, taste in sorted(tastes.items()):
            liked = term(liked) + weights[key][i] * taste.spread * reward_std / taste.std * term(taste.attribute, key)
        own = replace(behaviour, beta=behaviour.beta * math.exp(beta_spread * betas[i])) if beta_spread else behaviour
        members.append(SimulatedRater(liked, own, seed=seed, name=f"{name}/{i + 1:0{width}d}", batch_size=batch_size))
    return RaterPool(name, members, overlap=overlap, seed=seed)


def _dealt(size: int, rng: np.random.Generator) -> Sequence[float]:
    """Evenly spaced quantiles of a standard normal distribution, in random order."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / size) for i in range(size)]
    return [quantiles[i] for i in rng.permutation(size)]
