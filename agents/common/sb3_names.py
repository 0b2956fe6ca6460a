"""Keywords of stable-baselines3's and sb3-contrib's algorithms: those that mean a setting of ours, and those that mean none."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from rlhf_gym.errors import ConfigError

SYNONYMS = {
    "cg_max_steps": "cg_steps", "line_search_max_iter": "line_search_steps", "n_critic_updates": "n_epochs",
    "target_kl": "max_kl",
}  # fmt: skip
"""Keywords of sb3-contrib's TRPO, and our names of the same, for agents with a conjugate gradient."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "policy_kwargs": (None, {}), "use_sde": (False,), "sde_sample_freq": (-1,), "rollout_buffer_class": (None,),
    "rollout_buffer_kwargs": (None, {}), "use_rms_prop": (False,), "rms_prop_eps": (1e-5,),
    "line_search_shrinking_factor": (0.5,),
}  # fmt: skip
"""Keywords that are not settings here, with the values by which they ask for what agents do anyway."""

_OWN_ROLLOUT = "a rollout is whole episodes, each stored once; there is no buffer of steps"
_CONTINUOUS = (
    "state-dependent exploration is for continuous actions; temperature, top_k and top_p change how tokens are sampled"
)
_ADAM = "it learns with AdamW: give adam_epsilon, adam_beta1, adam_beta2, weight_decay"
COUNTERPARTS: Mapping[str, str] = {
    "n_steps": "an iteration is counted in whole episodes: give n_episodes, a multiple of the number of environments",
    "policy_kwargs": "the policy is a language model: give language_model and lora; a value function has value_network and "
    "value_start",
    "normalize_advantage": "its advantages are whitened as its algorithm says; GRPO and GSPO have scale_rewards, REINFORCE "
    "has baseline",
    "use_sde": _CONTINUOUS,
    "sde_sample_freq": _CONTINUOUS,
    "rollout_buffer_class": _OWN_ROLLOUT,
    "rollout_buffer_kwargs": _OWN_ROLLOUT,
    "use_rms_prop": _ADAM,
    "rms_prop_eps": _ADAM,
    "lr_schedule": "give learning_rate, a number or a function of the remaining progress (1 to 0)",
    "line_search_shrinking_factor": "a step of the line search is half of the one before; give line_search_steps, their "
    "number",
}
"""For each keyword that is no setting here: what to give instead, or why there is nothing."""


def our_name(name: str, known: Container[str]) -> str:
    """A keyword's name here: that of a synonym, or its own.

    Args:
        name: the keyword.
        known: the agent's own settings.
    """
    return SYNONYMS.get(name, name) if name not in known and "cg_steps" in known else name


def in_our_words(given: Mapping[str, Any], known: Container[str], owner: str) -> dict[str, Any]:
    """Keywords with their names here; those that ask for what an agent does anyway are left out.

    Args:
        given: values by name.
        known: the agent's own settings.
        owner: the agent's name, for messages.

    Raises:
        ConfigError: a keyword of stable-baselines3 that has no meaning here, or a setting that is given by two names.
    """
    out: dict[str, Any] = {}
    for name, value in given.items():
        ours = our_name(name, known)
        if ours not in known:
            if any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL.get(name, ())):
                continue
            if name in COUNTERPARTS:
                raise ConfigError(f"{owner} has no setting {name}: {COUNTERPARTS[name]}")
        if ours in out or (ours != name and ours in given):
            raise ConfigError(f"{name} is {ours} by another name; give one of them")
        out[ours] = value
    return out
