"""Settings checked by name before any work starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rlhf_gym.agents.common.kl import ESTIMATORS
from rlhf_gym.agents.common.kl_limit import ACTIONS
from rlhf_gym.agents.common.losses import AGGREGATIONS
from rlhf_gym.agents.common.value_head import SECOND_BASE
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.text import nearest

Rule = tuple[str, Callable[[float], bool]]

ABOVE_0: Rule = ("a finite number above 0", lambda x: x > 0)
AT_LEAST_0: Rule = ("a finite number of at least 0", lambda x: x >= 0)
ABOVE_1: Rule = ("a finite number above 1", lambda x: x > 1)
FRACTION: Rule = ("a number in [0, 1]", lambda x: 0 <= x <= 1)
SHARE: Rule = ("a number in (0, 1]", lambda x: 0 < x <= 1)
BELOW_HALF: Rule = ("a number in [0, 1/2)", lambda x: 0 <= x < 0.5)
FINITE: Rule = ("a finite number", lambda x: True)
COUNT: Rule = ("a whole number of at least 1", lambda x: x >= 1 and isinstance(x, int))
NATURAL: Rule = ("a whole number of at least 0", lambda x: x >= 0 and isinstance(x, int))

# What each setting may be, wherever an algorithm has one of that name.
NUMBERS: dict[str, Rule] = {
    "learning_rate": ABOVE_0, "n_episodes": COUNT, "n_epochs": COUNT, "batch_size": COUNT, "tokens_per_batch": COUNT,
    "gamma": FRACTION, "gae_lambda": FRACTION, "clip_range": ABOVE_0, "clip_range_high": ABOVE_0, "dual_clip": ABOVE_1,
    "clip_range_vf": ABOVE_0, "vf_coef": AT_LEAST_0, "ent_coef": AT_LEAST_0, "max_grad_norm": ABOVE_0,
    "target_kl": ABOVE_0, "max_ratio": ABOVE_0, "kl_coef": AT_LEAST_0, "kl_target": ABOVE_0, "kl_horizon": ABOVE_0,
    "kl_limit": ABOVE_0,
    "group_size": COUNT, "beta": ABOVE_0, "label_smoothing": BELOW_HALF, "overlong_buffer": COUNT, "baseline_decay": FRACTION,
    "clip_scores": ABOVE_0, "missing_eos_penalty": AT_LEAST_0, "missing_eos_score": FINITE, "seed": NATURAL,
    "mask_top_p": SHARE, "mask_refresh": COUNT, "max_kl": ABOVE_0, "cg_steps": COUNT, "cg_damping": AT_LEAST_0,
    "line_search_steps": COUNT, "max_resamples": NATURAL, "sub_sampling_factor": COUNT,
}  # fmt: skip
VALUE_OPTIONS = ("value_network", "value_start", "vf_coef", "clip_range_vf", "gae_lambda", "normalize_advantage")
"""Settings of a value function, and of the advantages that are made with one."""
OPTIONAL = {
    "n_episodes", "clip_range_high", "dual_clip", "clip_range_vf", "target_kl", "kl_target", "kl_estimator",
    "kl_limit", "on_kl_limit",
    "clip_scores", "missing_eos_penalty", "missing_eos_score", "overlong_buffer", "seed",
}  # fmt: skip
SCHEDULES = {"learning_rate", "clip_range"}
SWITCHES = {"normalize_advantage", "whiten_rewards", "dynamic_sampling"}
CHOICES: dict[str, tuple[str, ...]] = {
    "aggregation": AGGREGATIONS,
    "kl_estimator": ESTIMATORS,
    "kl_in": ("reward", "loss"),
    "on_kl_limit": ACTIONS,
    "value_network": ("shared", "separate"),
    "collect": ("auto", "step"),
    "learning_rate_decay": ("constant", "linear"),
    "scale_rewards": ("group", "batch", "none"),
    "loss": ("dpo", "ipo"),
    "baseline": ("none", "running", "batch"),
}


def check_settings(settings: Mapping[str, Any], *, optional: Collection[str] = ()) -> None:
    """Refuse settings out of range, and settings that contradict one another.

    Args:
        settings: a constructor's arguments by name; names without a rule are not looked at.
        optional: settings that may be None here, besides those that always may.

    Raises:
        ConfigError: names the setting, what it is and what it may be.
    """
    for name, value in settings.items():
        if (value is None and (name in OPTIONAL or name in optional)) or (callable(value) and name in SCHEDULES):
            continue
        if name in NUMBERS:
            expected, good = NUMBERS[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not good(value):
                raise ConfigError(f"{name} must be {expected}{or_none(name)}, got {value!r}")
        if name in CHOICES and value not in CHOICES[name]:
            raise ConfigError(f"{name} must be one of {', '.join(CHOICES[name])}{or_none(name)}; got {value!r}")
        if name in SWITCHES and not isinstance(value, bool):
            raise ConfigError(f"{name} must be True or False, got {value!r}")
    for name in ("language_model", "reference"):
        given = settings.get(name)
        if given is not None and not isinstance(given, LanguageModel | str):
            raise ConfigError(
                f"{name} must be a rlhf_gym.lm.language_model.LanguageModel or a name, got {type(given).__name__}; a model of "
                "transformers becomes one with LanguageModel(model, tokenizer, name)"
            )
    get = settings.get
    if get("n_episodes") is not None and (get("batch_size") or 1) > settings["n_episodes"]:
        raise ConfigError(f"batch_size ({get('batch_size')}) must be at most n_episodes ({settings['n_episodes']})")
    if get("kl_target") is not None and get("kl_coef") == 0:
        raise ConfigError("kl_target needs a kl_coef above 0: the coefficient is multiplied, and 0 stays 0")
    if get("kl_in") == "loss" and get("kl_estimator") == "k1":
        raise ConfigError(
            "kl_in='loss' with kl_estimator='k1' holds nothing back, since the gradient of k1 has mean 0; take 'k2', whose "
            "gradient is the divergence's, or 'k3'"
        )
    high, low = get("clip_range_high"), get("clip_range")
    if high is not None and low is not None and not callable(low) and high < low:
        raise ConfigError(f"clip_range_high ({high}) must be at least clip_range ({low})")
    if get("value_start") is not None and get("value_network") != "separate":
        raise ConfigError(
            "value_start is what a value network of its own starts from: give value_network='separate', or leave it out"
        )
    start = get("value_start")
    if start is not None and not isinstance(start, RewardModel | str | Path):
        raise ConfigError(f"value_start must be a reward model or its folder, got {type(start).__name__}")
    if start is not None and get("lora") is not None:
        raise ConfigError(SECOND_BASE)
    if get("missing_eos_penalty") is not None and get("missing_eos_score") is not None:
        raise ConfigError("missing_eos_penalty and missing_eos_score are alternatives; give one of them")


def or_none(name: str) -> str:
    """For messages: whether a setting may be None."""
    return ", or None" if name in OPTIONAL else ""


def refuse_lacking(cls: type, lacks: Collection[str], given: Collection[str]) -> None:
    """Refuse settings that an algorithm's base has and the algorithm itself has no use for.

    Raises:
        ConfigError: names them.
    """
    if strange := [name for name in given if name in lacks]:
        raise ConfigError(
            f"{cls.__name__} has no {', '.join(strange)}; leave {'it' if len(strange) == 1 else 'them'} out"
        )


def refuse_unknown(cls: type, unknown: Collection[str], known: Collection[str]) -> None:
    """Refuse settings that nobody has, with the nearest that there is; value options where there is no value function.

    Raises:
        ConfigError: names the first one.
    """
    for name in unknown:
        if name in VALUE_OPTIONS:
            raise ConfigError(
                f"{cls.__name__} has no {name}: it learns without a value function; leave it out, or take PPO, NLPO or A2C"
            )
        raise ConfigError(f"{cls.__name__} has no setting {name}{nearest(name, known)}")
