"""Raters by name: built-in ones, and factories in files and modules of the user's own."""

from __future__ import annotations

from typing import Any

from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.objects import is_place, load_object
from rlhf_gym.raters import Behaviour, Rater, SimulatedRater
from rlhf_gym.raters.presets import PRESETS, simulated_rater
from rlhf_gym.rewards.base import Reward
from rlhf_gym.rewards.service.address import PREFIX, parse
from rlhf_gym.text import nearest

PEOPLE = ("web", "terminal")
"""Raters who are people: on the rating page, or at the terminal of the run."""
KNOBS = ("beta", "error_rate", "tie_threshold", "skip_rate", "length_bias", "position_bias")


def check_rater(config: RaterConfig) -> None:
    """Find out before any work starts whether :func:`find_rater` will find the rater.

    Raises:
        ConfigError: no such rater, or knobs that it does not have.
    """
    knobs = _knobs(config)
    if _judge_options(config) and not config.name.startswith(PREFIX):
        raise ConfigError(
            f"rater.{next(iter(_judge_options(config)))} is for judges (judge:URL), not for {config.name!r}"
        )
    if config.name.startswith(PREFIX) and not knobs:
        _judge(config)
    elif config.name in ("simulated", *PRESETS):
        Behaviour(**knobs)
    elif config.name in PEOPLE:
        pass  # a warm-up takes the knobs
    elif not is_place(config.name):
        hint = nearest(config.name, ["simulated", *PRESETS, *PEOPLE])
        raise ConfigError(
            f"there is no rater {config.name!r}{hint} Expected one of simulated, {', '.join((*PRESETS, *PEOPLE))}, judge:URL, "
            "module:function or path/file.py:function"
        )
    elif knobs:
        raise ConfigError(f"rater.{next(iter(knobs))} is for simulated raters; {config.name!r} has its own settings")
    else:
        load_object(config.name, kind="rater")


def find_rater(config: RaterConfig, gold: Reward, reference_rewards: Any, seed: int) -> Rater:
    """The rater that the configuration names; see :func:`check_rater`.

    Args:
        config: its section.
        gold: a simulated rater's taste.
        reference_rewards: ``[n, k]`` gold rewards of reference samples, which presets are fitted to.
        seed: of the rater's noise.

    Raises:
        ConfigError: what the factory makes is no rater.
    """
    if config.name == "simulated":
        return SimulatedRater(gold, seed=seed, batch_size=config.batch_size, **_knobs(config))
    if config.name in PRESETS:
        return simulated_rater(config.name, gold, reference_rewards=reference_rewards, seed=seed, **_knobs(config))
    if config.name.startswith(PREFIX):
        return _judge(config)
    rater = load_object(config.name, kind="rater")(reward=gold, seed=seed)
    if not isinstance(rater, Rater):
        raise ConfigError(f"rater {config.name!r} gave a {type(rater).__name__}; expected name, submit() and collect()")
    return rater


def _judge(config: RaterConfig) -> Rater:
    from rlhf_gym.judge import JudgeRater

    url, model = parse(config.name)
    return JudgeRater(url, model, batch_size=config.batch_size, **_judge_options(config))


def _judge_options(config: RaterConfig) -> dict[str, Any]:
    return {name: value for name in ("rubric", "template", "cache") if (value := getattr(config, name)) is not None}


def _knobs(config: RaterConfig) -> dict[str, Any]:
    return {name: value for name in KNOBS if (value := getattr(config, name)) is not None}
