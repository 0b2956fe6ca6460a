"""Simulated raters of the literature, by name.

Betas and thresholds depend on the unit of the reward. So a preset is fitted to rewards of reference samples: those that
the reward gives to several responses to each of some prompts. Without them, rewards are taken to be standard normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_gym.errors import ConfigError
from rlhf_gym.raters.base import Rater
from rlhf_gym.raters.behaviour import Behaviour
from rlhf_gym.raters.pool import RaterPool
from rlhf_gym.raters.simulated import SimulatedRater
from rlhf_gym.rewards.base import Reward
from rlhf_gym.study.agreement import beta_for_accuracy, beta_for_agreement
from rlhf_gym.text import nearest

Array = NDArray[np.float64]

PRESETS: dict[str, str] = {
    "oracle": "always chooses the better response",
    "bpref_oracle": "B-Pref's oracle: the same as oracle",
    "bpref_stoc": "B-Pref's stochastic teacher: Boltzmann-rational, beta 1 per standard deviation of the reward",
    "bpref_mistake": "B-Pref's mistaken teacher: a tenth of the labels flipped",
    "bpref_skip": "B-Pref's skipping teacher: skips the tenth of pairs whose better response is worst",
    "bpref_equal": "B-Pref's indifferent teacher: calls the tenth of pairs with the least difference equal",
    "hh_like": "one Boltzmann rater; two such agree on 67% of pairs, as people do on helpfulness and harmlessness",
    "alpacafarm": "13 raters of different rationality, a quarter of their labels flipped",
}

_RATERS = 13
# Our choice, the paper does not give it: how right AlpacaFarm's annotators are before labels are flipped, and how
# unlike they are (standard deviation of the logarithm of beta).
_ALPACAFARM_ACCURACY = 0.9
_ALPACAFARM_SPREAD = 0.5
# Bai et al. 2022 and Ouyang et al. 2022 report 63 to 77% between people; the middle of the range 65 to 70%.
_HH_AGREEMENT = 0.67


def simulated_rater(
    preset: str,
    reward: Reward | Callable[..., Any],
    *,
    reference_rewards: ArrayLike | None = None,
    seed: int = 0,
    name: str | None = None,
    **knobs: Any,
) -> Rater:
    """A rater of a preset.

    Args:
        preset: one of :data:`PRESETS`.
        reward: scores the responses.
        reference_rewards: ``[n, k]``, what the reward gives to ``k >= 2`` responses to each of ``n`` prompts, in units
            of reward; default the quantiles of two standard normal rewards.
        seed: 0 or more.
        name: signs the judgements; default the preset's name.
        **knobs: fields of :class:`Behaviour` that override the preset.

    Raises:
        ConfigError: a preset or a knob that does not exist, or rewards that do not fit.
    """
    if preset not in PRESETS:
        raise ConfigError(
            f"there is no simulated rater {preset!r}{nearest(preset, PRESETS, cutoff=0)} All: {', '.join(PRESETS)}"
        )
    rewards = _reference(reference_rewards)
    name = name or preset
    if preset == "alpacafarm":
        return _alpacafarm(reward, rewards, seed, name, knobs)
    return SimulatedRater(reward, _behaviour(preset, rewards), seed=seed, name=name, **knobs)


def preset_behaviour(preset: str, reference_rewards: ArrayLike) -> Behaviour:
    """The behaviour of a preset that is one rater.

    Args:
        preset: one of :data:`PRESETS`, but for ``alpacafarm``, which is thirteen.
        reference_rewards: ``[n, k]``, see :func:`simulated_rater`.

    Raises:
        ConfigError: rewards that do not fit.
    """
    return _behaviour(preset, _reference(reference_rewards))


def _behaviour(preset: str, rewards: Array) -> Behaviour:
    rational = Behaviour(beta=math.inf)
    if preset == "bpref_stoc":
        return Behaviour(beta=1 / float(rewards.std()))
    if preset == "bpref_mistake":
        return replace(rational, error_rate=0.2)  # half of the blind answers are right by luck
    # B-Pref scales its thresholds with the average return, which turns them off where returns are below 0. Quantiles
    # keep their meaning in any unit and for any sign: a tenth of the reference pairs is skipped, or called equal.
    if preset == "bpref_skip":
        pairs = [np.maximum(rewards[:, a], rewards[:, b]) for a, b in combinations(range(rewards.shape[1]), 2)]
        return replace(rational, skip_below=float(np.quantile(np.concatenate(pairs), 0.1)))
    if preset == "bpref_equal":
        return replace(rational, tie_threshold=float(np.quantile(np.abs(_differences(rewards)), 0.1)))
    if preset == "hh_like":
        return Behaviour(beta=beta_for_agreement(_differences(rewards), _HH_AGREEMENT))
    return rational


def _alpacafarm(
    reward: Reward | Callable[..., Any], rewards: Array, seed: int, name: str, knobs: dict[str, Any]
) -> RaterPool:
    """Dubois et al. 2023: thirteen annotators, and a quarter of the labels flipped (half of them made coins)."""
    middle = beta_for_accuracy(_differences(rewards), _ALPACAFARM_ACCURACY)
    members = []
    for i in range(_RATERS):
        # Evenly spaced quantiles instead of draws: thirteen draws would make every seed another population.
        beta = middle * math.exp(_ALPACAFARM_SPREAD * NormalDist().inv_cdf((i + 0.5) / _RATERS))
        behaviour = Behaviour(beta=beta, error_rate=0.5)
        members.append(SimulatedRater(reward, behaviour, seed=seed, name=f"{name}/{i + 1:02d}", **knobs))
    return RaterPool(name, members, seed=seed)


def _reference(rewards: ArrayLike | None) -> Array:
    if rewards is None:
        quantiles = [NormalDist().inv_cdf((i + 0.5) / 100) for i in range(100)]
        return np.stack(np.meshgrid(quantiles, quantiles), axis=-1).reshape(-1, 2)
    array = np.asarray(rewards, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2 or not np.isfinite(array).all():
        raise ConfigError(f"reference_rewards must be finite and [n, k >= 2], a row a prompt; got shape {array.shape}")
    if not array.std() > 0:
        raise ConfigError("reference_rewards are all the same: no rater can be fitted to them")
    return array


def _differences(rewards: Array) -> Array:
    """Differences between all pairs of responses to the same prompt, ``[n k (k - 1) / 2]``."""
    return np.concatenate([rewards[:, a] - rewards[:, b] for a, b in combinations(range(rewards.shape[1]), 2)])
