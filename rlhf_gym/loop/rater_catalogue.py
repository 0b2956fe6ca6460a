"""Raters by name: built-in ones, judges, and functions and factories in the user's own files and modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_gym.errors import ConfigError, RlhfGymError
from rlhf_gym.feedback.queries import QueryType
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.objects import is_place, load_object, place_in_code
from rlhf_gym.raters import Behaviour, FunctionRater, Rater, SimulatedRater, as_rater
from rlhf_gym.raters.behaviour import ANSWERED as SIMULATED
from rlhf_gym.raters.fitted import FITTED_PREFIX, FittedRater
from rlhf_gym.raters.function import ANSWERED as BY_FUNCTIONS
from rlhf_gym.raters.function import is_factory
from rlhf_gym.raters.population import Taste, population
from rlhf_gym.raters.presets import PRESETS, preset_behaviour, simulated_rater
from rlhf_gym.rewards.base import Reward, reward_name
from rlhf_gym.rewards.spec import JUDGE_PREFIX, judge_address, load_reward
from rlhf_gym.text import nearest

PEOPLE = ("web", "terminal")
"""Raters who are people: on the rating page, or at the run's terminal."""
OF_SIMULATED = (
    "beta", "error_rate", "tie_threshold", "skip_rate", "length_bias", "position_bias", "lapse_rate", "fatigue",
    "intransitivity",
)  # fmt: skip
"""Settings for simulated raters only: fields of :class:`~rlhf_gym.raters.Behaviour`."""
OF_JUDGES = ("rubric", "template", "cache")
"""Settings for judges only."""


def check_rater(config: RaterConfig) -> None:
    """Check before any work starts that :func:`find_rater` will find the rater.

    Raises:
        ConfigError: there is no such rater, it does not have a setting that is given, or it does not answer the query type.
    """
    behaviour, of_judges, is_judge = (
        _given(config, OF_SIMULATED),
        _given(config, OF_JUDGES),
        config.name.startswith(JUDGE_PREFIX),
    )
    is_fitted = config.name.startswith(FITTED_PREFIX)
    if of_judges and not is_judge:
        raise ConfigError(
            f"rater.{next(iter(of_judges))} is for judges (judge:URL), not for {config.name!r}: leave it out"
        )
    of_runs = {
        "unit": config.unit != "reward", "population": config.population > 1, "overlap": config.overlap > 1,
        "tastes": config.tastes, "beta_spread": config.beta_spread,
    }  # fmt: skip
    behaviour |= {name: getattr(config, name) for name, is_given in of_runs.items() if is_given}
    if behaviour and not is_fitted and (is_judge or is_place(config.name) or config.name == "terminal"):
        raise ConfigError(
            f"rater.{next(iter(behaviour))} is for simulated raters, not for {config.name!r}: leave it out"
        )
    behaviour = {name: value for name, value in behaviour.items() if name not in of_runs}
    _check_population(config)
    if is_judge:
        from rlhf_gym.judge.rater import ANSWERED as BY_JUDGES

        _check_answers(config, "a judge", BY_JUDGES)
        _judge(config)
    elif is_fitted:
        _check_answers(config, "a simulated rater", SIMULATED)
        replace(_fitted(config).behaviour, **behaviour)
    elif config.name in ("simulated", *PRESETS):
        _check_answers(config, "a simulated rater", SIMULATED)
        Behaviour(**behaviour)
    elif config.name in PEOPLE:  # web takes the settings of simulated raters, too: one of those answers in a warm-up
        if config.name == "terminal":
            from rlhf_gym.raters.terminal import ANSWERED as AT_THE_TERMINAL

            _check_answers(config, "the terminal", AT_THE_TERMINAL)
    elif not is_place(config.name):
        hint = nearest(config.name, ["simulated", *PRESETS, *PEOPLE])
        raise ConfigError(
            f"there is no rater {config.name!r}{hint} Expected one of simulated, {', '.join((*PRESETS, *PEOPLE))}, judge:URL, "
            "fitted:FILE, module:function or path/file.py:function"
        )
    else:
        found = load_object(config.name, kind="rater")
        if not is_factory(found):  # what a factory makes is checked when it is made
            rater = as_rater(found)
            if isinstance(rater, FunctionRater):
                _check_answers(config, f"the function {config.name!r}", BY_FUNCTIONS)


def find_rater(config: RaterConfig, gold: Reward, reference_rewards: Callable[[Reward], ArrayLike], seed: int) -> Rater:
    """Make the rater that the configuration names; :func:`check_rater` has checked it.

    Args:
        config: the section ``rater``.
        gold: the reward that a simulated rater prefers by.
        reference_rewards: computes a reward's scores ``[n, k]`` of reference samples; called only for raters that are scaled to
            them: presets, fitted raters for another reward, tastes, and those in units of the standard deviation.
        seed: seed of the rater's noise.

    Raises:
        ConfigError: the user's factory raised, or what it returned is not a rater.
    """
    if config.name == "simulated" or config.name.startswith(FITTED_PREFIX):
        behaviour = _behaviour(config, gold, reference_rewards)
        if config.population > 1:
            return _population(config, "simulated", gold, behaviour, reference_rewards, seed)
        return SimulatedRater(gold, behaviour, seed=seed, batch_size=config.batch_size)
    if config.name in PRESETS:
        rewards = reference_rewards(gold)
        if config.population > 1:
            knobs = _scaled(_given(config, OF_SIMULATED), config, rewards)
            behaviour = replace(preset_behaviour(config.name, rewards), **knobs)
            return _population(config, config.name, gold, behaviour, reference_rewards, seed)
        return simulated_rater(
            config.name,
            gold,
            reference_rewards=rewards,
            seed=seed,
            **_scaled(_given(config, OF_SIMULATED), config, rewards),
        )
    if config.name.startswith(JUDGE_PREFIX):
        return _judge(config)
    found = load_object(config.name, kind="rater")
    if is_factory(found):
        try:
            found = found(reward=gold, seed=seed)
        except RlhfGymError:
            raise
        except (Exception, SystemExit) as error:  # the factory is the user's: it may raise anything
            raise ConfigError(
                f"rater {config.name!r}: {'the class' if isinstance(found, type) else 'the factory'}, called with reward and "
                f"seed, raised {type(error).__name__}: {error}{place_in_code(error)}"
            ) from error
    try:
        return as_rater(found, batch_size=config.batch_size)
    except ConfigError as error:
        raise ConfigError(f"rater {config.name!r}: {error}") from error


def _check_answers(config: RaterConfig, who: str, answered: Sequence[QueryType]) -> None:
    """Refuse a query type that a rater does not answer."""
    if config.query_type not in answered:
        raise ConfigError(
            f"{who} does not answer {config.query_type} queries (rater.query_type); expected {', '.join(answered)}, or people "
            "on the rating page (--rater web), who answer all"
        )


def _judge(config: RaterConfig) -> Rater:
    from rlhf_gym.judge import JudgeRater

    url, model = judge_address(config.name)
    return JudgeRater(url, model, batch_size=config.batch_size, **_given(config, OF_JUDGES))


def _fitted(config: RaterConfig) -> FittedRater:
    return FittedRater.load(config.name.removeprefix(FITTED_PREFIX))


def _check_population(config: RaterConfig) -> None:
    """Refuse settings of a population that contradict one another, and tastes that are no rewards."""
    if config.overlap > config.population:
        raise ConfigError(
            f"rater.overlap ({config.overlap}) of the population answer each query, and rater.population is "
            f"{config.population}: give a larger population"
        )
    if config.population == 1 and (config.tastes or config.beta_spread):
        name = "tastes" if config.tastes else "beta_spread"
        raise ConfigError(f"rater.{name} is what the raters of a population differ in: give rater.population, above 1")
    if config.population > 1 and config.name == "alpacafarm":
        raise ConfigError(
            "the rater alpacafarm is a population of its own: leave out rater.population, or take another rater"
        )
    for name, spread in config.tastes.items():
        if not (math.isfinite(spread) and spread >= 0):
            raise ConfigError(f"rater.tastes: the spread of {name} must be a finite number of 0 or more, got {spread}")
        load_reward(name)


def _population(
    config: RaterConfig,
    name: str,
    gold: Reward,
    behaviour: Behaviour,
    reference_rewards: Callable[[Reward], ArrayLike],
    seed: int,
) -> Rater:
    rewards = {key: load_reward(key) for key in config.tastes}
    tastes = {
        key: Taste(reward, config.tastes[key], float(np.asarray(reference_rewards(reward)).std()))
        for key, reward in rewards.items()
    }
    return population(
        name, gold, behaviour, size=config.population, overlap=config.overlap, tastes=tastes,
        reward_std=float(np.asarray(reference_rewards(gold)).std()) if tastes else 1.0,
        beta_spread=config.beta_spread, seed=seed, batch_size=config.batch_size,
    )  # fmt: skip


def _behaviour(config: RaterConfig, gold: Reward, reference_rewards: Callable[[Reward], ArrayLike]) -> Behaviour:
    """The behaviour of ``simulated`` or of a fitted rater, in the unit of the gold reward.

    A fitted rater is taken as it is for the reward that it was fitted with, and carried over to another one by the two rewards'
    standard deviations.

    Args:
        config: the section ``rater``.
        gold: the gold reward.
        reference_rewards: computes a reward's scores of reference samples.
    """
    knobs = _given(config, OF_SIMULATED)
    if config.name == "simulated":
        if config.unit == "reward":
            return Behaviour(**knobs)
        rewards = np.asarray(reference_rewards(gold))
        return Behaviour(**knobs).in_unit(float(rewards.std()), float(rewards.mean()))
    fitted = _fitted(config)
    if reward_name(gold) == fitted.reward and config.unit == "reward":
        return replace(fitted.behaviour, **knobs)
    rewards = np.asarray(reference_rewards(gold))
    spread = float(rewards.std())
    return replace(fitted.behaviour_for(spread), **_scaled(knobs, config, rewards))


def _scaled(knobs: dict[str, Any], config: RaterConfig, rewards: ArrayLike) -> dict[str, Any]:
    """Those knobs that are given, from ``rater.unit`` to the unit of the gold reward.

    Args:
        knobs: fields of :class:`~rlhf_gym.raters.Behaviour`.
        config: the section ``rater``.
        rewards: gold rewards of reference samples.
    """
    if config.unit == "reward" or not knobs:
        return knobs
    scaled = Behaviour(**knobs).in_unit(float(np.asarray(rewards).std()))
    return {name: getattr(scaled, name) for name in knobs}


def _given(config: RaterConfig, names: Sequence[str]) -> dict[str, Any]:
    """Those of some settings that have a value."""
    return {name: value for name in names if (value := getattr(config, name)) is not None}
