"""Raters by name: built-in ones, judges, and functions and factories in the user's own files and modules."""

from __future__ import annotations

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
from rlhf_gym.raters.presets import PRESETS, simulated_rater
from rlhf_gym.rewards.base import Reward, reward_name
from rlhf_gym.rewards.spec import JUDGE_PREFIX, judge_address
from rlhf_gym.text import nearest

PEOPLE = ("web", "terminal")
"""Raters who are people: on the rating page, or at the run's terminal."""
OF_SIMULATED = ("beta", "error_rate", "tie_threshold", "skip_rate", "length_bias", "position_bias")
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
    if config.unit != "reward":
        behaviour["unit"] = config.unit
    if behaviour and not is_fitted and (is_judge or is_place(config.name) or config.name == "terminal"):
        raise ConfigError(
            f"rater.{next(iter(behaviour))} is for simulated raters, not for {config.name!r}: leave it out"
        )
    behaviour.pop("unit", None)
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


def find_rater(config: RaterConfig, gold: Reward, reference_rewards: Callable[[], ArrayLike], seed: int) -> Rater:
    """Make the rater that the configuration names; :func:`check_rater` has checked it.

    Args:
        config: the section ``rater``.
        gold: the reward that a simulated rater prefers by.
        reference_rewards: computes gold rewards ``[n, k]`` of reference samples; called only for raters that are scaled to
            them: presets, fitted raters for another reward, and those in units of the standard deviation.
        seed: seed of the rater's noise.

    Raises:
        ConfigError: the user's factory raised, or what it returned is not a rater.
    """
    if config.name == "simulated" or config.name.startswith(FITTED_PREFIX):
        behaviour = _behaviour(config, reward_name(gold), reference_rewards)
        return SimulatedRater(gold, behaviour, seed=seed, batch_size=config.batch_size)
    if config.name in PRESETS:
        rewards = reference_rewards()
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


def _behaviour(config: RaterConfig, reward: str, reference_rewards: Callable[[], ArrayLike]) -> Behaviour:
    """The behaviour of ``simulated`` or of a fitted rater, in the unit of the gold reward.

    A fitted rater is taken as it is for the reward that it was fitted with, and carried over to another one by the two rewards'
    standard deviations.

    Args:
        config: the section ``rater``.
        reward: name of the gold reward.
        reference_rewards: computes gold rewards of reference samples.
    """
    knobs = _given(config, OF_SIMULATED)
    if config.name == "simulated":
        if config.unit == "reward":
            return Behaviour(**knobs)
        rewards = np.asarray(reference_rewards())
        return Behaviour(**knobs).in_unit(float(rewards.std()), float(rewards.mean()))
    fitted = _fitted(config)
    if reward == fitted.reward and config.unit == "reward":
        return replace(fitted.behaviour, **knobs)
    rewards = np.asarray(reference_rewards())
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
