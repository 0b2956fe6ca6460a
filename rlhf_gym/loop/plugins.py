"""Raters by name: built-in ones, and functions and factories in files and modules of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_gym.errors import ConfigError, RlhfGymError
from rlhf_gym.feedback.queries import QueryType
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.objects import is_place, load_object, place_in_code
from rlhf_gym.raters import Behaviour, FunctionRater, Rater, SimulatedRater, as_rater
from rlhf_gym.raters.behaviour import ANSWERED as SIMULATED
from rlhf_gym.raters.function import ANSWERED as BY_FUNCTIONS
from rlhf_gym.raters.function import is_factory
from rlhf_gym.raters.presets import PRESETS, simulated_rater
from rlhf_gym.rewards.base import Reward
from rlhf_gym.rewards.spec import JUDGE_PREFIX, judge_address
from rlhf_gym.text import nearest

PEOPLE = ("web", "terminal")
"""Raters who are people: on the rating page, or at the terminal of the run."""
KNOBS = ("beta", "error_rate", "tie_threshold", "skip_rate", "length_bias", "position_bias")


def check_rater(config: RaterConfig) -> None:
    """Check before any work starts that :func:`find_rater` will find the rater.

    Raises:
        ConfigError: no such rater, knobs that it does not have, or a query type that it does not answer.
    """
    knobs = _knobs(config)
    if _judge_options(config) and not config.name.startswith(JUDGE_PREFIX):
        raise ConfigError(
            f"rater.{next(iter(_judge_options(config)))} is for judges (judge:URL), not for {config.name!r}"
        )
    if config.name.startswith(JUDGE_PREFIX) and not knobs:
        from rlhf_gym.judge.rater import ANSWERED as BY_JUDGES

        _check_answers(config, "a judge", BY_JUDGES)
        _judge(config)
    elif config.name in ("simulated", *PRESETS):
        _check_answers(config, "a simulated rater", SIMULATED)
        Behaviour(**knobs)
    elif config.name in PEOPLE:  # a warm-up takes the knobs
        if config.name == "terminal":
            from rlhf_gym.raters.terminal import ANSWERED as AT_THE_TERMINAL

            _check_answers(config, "the terminal", AT_THE_TERMINAL)
    elif not is_place(config.name):
        hint = nearest(config.name, ["simulated", *PRESETS, *PEOPLE])
        raise ConfigError(
            f"there is no rater {config.name!r}{hint} Expected one of simulated, {', '.join((*PRESETS, *PEOPLE))}, judge:URL, "
            "module:function or path/file.py:function"
        )
    elif knobs:
        raise ConfigError(f"rater.{next(iter(knobs))} is for simulated raters; {config.name!r} has its own settings")
    else:
        found = load_object(config.name, kind="rater")
        if not is_factory(found):  # what a factory makes is checked when it is made
            rater = as_rater(found)
            if isinstance(rater, FunctionRater):
                _check_answers(config, f"the function {config.name!r}", BY_FUNCTIONS)


def find_rater(config: RaterConfig, gold: Reward, reference_rewards: Any, seed: int) -> Rater:
    """The rater that the configuration names; see :func:`check_rater`.

    Args:
        config: its section.
        gold: a simulated rater's taste.
        reference_rewards: ``[n, k]`` gold rewards of reference samples, which presets are fitted to.
        seed: seed of the rater's noise.

    Raises:
        ConfigError: the user's factory raised, or what it returned is not a rater.
    """
    if config.name == "simulated":
        return SimulatedRater(gold, seed=seed, batch_size=config.batch_size, **_knobs(config))
    if config.name in PRESETS:
        return simulated_rater(config.name, gold, reference_rewards=reference_rewards, seed=seed, **_knobs(config))
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
    return JudgeRater(url, model, batch_size=config.batch_size, **_judge_options(config))


def _judge_options(config: RaterConfig) -> dict[str, Any]:
    return {name: value for name in ("rubric", "template", "cache") if (value := getattr(config, name)) is not None}


def _knobs(config: RaterConfig) -> dict[str, Any]:
    return {name: value for name in KNOBS if (value := getattr(config, name)) is not None}
