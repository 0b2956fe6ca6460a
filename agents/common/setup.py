"""What an agent is made of, loaded and checked before any work starts: models, and an environment that fits them."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.policy import check_spaces
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits


def reference_of(model: LanguageModel, given: LanguageModel | str | None, *, adapted: bool) -> LanguageModel:
    """The frozen model that KL is measured from: as given, or the policy as it is now.

    A base never changes while adapters learn, so it is its own reference, and costs no memory.

    Args:
        model: the policy before training.
        given: the reference, its name, or None.
        adapted: an adapter will learn on top of ``model``.

    Raises:
        ConfigError: the two have different vocabularies.
    """
    base = model if adapted else model.base
    if base is not None and (given is None or given is base):
        return base
    if given is None:
        return model.frozen_copy()
    reference = LanguageModel.load(given, device=str(model.device)) if isinstance(given, str) else given
    ours, theirs = ((m.vocab_size, m.tokenizer.eos_id) for m in (model, reference))
    if ours != theirs:
        raise ConfigError(
            f"the reference {reference.name!r} has {theirs[0]} logits and ends responses with id {theirs[1]}, "
            f"{model.name!r} has {ours[0]} and {ours[1]}: KL needs one and the same vocabulary"
        )
    return reference.frozen_copy()


def check_env(env: VecEnv, model: LanguageModel, reference: LanguageModel) -> Limits:
    """Refuse, before any work starts, an environment that could not work.

    Args:
        env: the environment.
        model: the policy.
        reference: what KL is measured from.

    Returns:
        The environment's fixed limits on tokens.

    Raises:
        ConfigError: it has other tokens than the model.
        ModelError: prompts with responses are too long for a model.
    """
    capacity, actions = check_spaces(env.observation_space, env.action_space)
    if actions != model.vocab_size:
        raise ConfigError(
            f"the environment has {actions} actions, but {model.name!r} has {model.vocab_size} logits; make the "
            f"environment with the model's own tokenizer: tokenizer={model.name!r}"
        )
    limits = limits_of(env, model)
    if limits.eos_id != model.tokenizer.eos_id:
        raise ConfigError(
            f"the environment ends responses with id {limits.eos_id}, {model.name!r} with {model.tokenizer.eos_id}; "
            f"make the environment with the model's own tokenizer: tokenizer={model.name!r}"
        )
    model.check_fits(capacity, 0)
    reference.check_fits(capacity, 0)
    return limits


def sizes(n_episodes: int | None, batch_size: int | None, num_envs: int) -> tuple[int, int]:
    """Episodes an iteration and a minibatch, where the settings leave them open.

    Args:
        n_episodes: None is one for each environment.
        batch_size: None is all of them.
        num_envs: environments.

    Raises:
        ConfigError: they do not fit one another.
    """
    episodes = num_envs if n_episodes is None else n_episodes
    if episodes < 1 or episodes % num_envs:
        raise ConfigError(f"n_episodes ({episodes}) must be a multiple of the number of environments ({num_envs})")
    size = batch_size or episodes
    if not 1 <= size <= episodes:
        raise ConfigError(f"batch_size must lie in 1..n_episodes ({episodes}), got {size}")
    return episodes, size


def limits_of(env: VecEnv, model: LanguageModel) -> Limits:
    """Fixed limits on tokens: the environment's own where it has them, else those of its spaces.

    Args:
        env: the environment.
        model: says which tokens end and pad.
    """
    if isinstance(env, TokenVecEnv):
        return Limits(env.eos_id, env.suppress_tokens, env.min_response_tokens, env.max_response_tokens)
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    return Limits(model.tokenizer.eos_id, (model.tokenizer.pad_id,), 0, int(space["ids"].shape[0]))  # type: ignore[index]


def group_slots(env: VecEnv, size: int) -> None:
    """Have each ``size`` slots in a row answer the same prompts.

    Args:
        env: the environment.
        size: of a group.

    Raises:
        ConfigError: the environment cannot do that.
    """
    inside = token_env_inside(env)
    if inside is not None:
        inside.set_group_size(size)
    elif size > 1:
        raise ConfigError(
            f"group_size={size} needs an environment whose slots can be given the same prompts: make_sb3_env(...), wrapped "
            f"or not; got {type(env.unwrapped).__name__}"
        )


def token_env_inside(env: VecEnv) -> TokenVecEnv | None:
    """The token environment inside wrappers, if there is one."""
    inner = env.unwrapped
    return inner if isinstance(inner, TokenVecEnv) else None
