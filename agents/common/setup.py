"""The parts of an agent, loaded and checked before any work starts: models, and an environment that fits them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from rlhf_gym.agents.common.policy import LMPolicy, check_spaces
from rlhf_gym.agents.common.settings import AgentSettings
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora, adapted, require_peft
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.reward_model import RewardModel


def sb3_arguments(given: AgentSettings) -> dict[str, Any]:
    """The arguments of stable-baselines3's ``OnPolicyAlgorithm``; neutral values for settings that an agent does not have."""
    neutral = {"gamma": 1.0, "gae_lambda": 1.0, "ent_coef": 0.0, "vf_coef": 0.0}
    return {
        "learning_rate": given.learning_rate, "n_steps": 1, "max_grad_norm": given.max_grad_norm,
        **{name: getattr(given, name, value) for name, value in neutral.items()},
        "use_sde": False, "sde_sample_freq": -1, "stats_window_size": given.stats_window_size,
        "tensorboard_log": given.tensorboard_log, "verbose": given.verbose, "seed": given.seed, "device": "cpu",
    }  # fmt: skip


def slots_of(env: GymEnv | str | None) -> int | None:
    """The number of environments in what an agent was given; None where it was given none."""
    return None if env is None else env.num_envs if isinstance(env, VecEnv) else 1


def policy_class(policy: object) -> Any:
    """The policy as stable-baselines3's constructor takes it.

    Raises:
        ConfigError: it is neither ``"LMPolicy"`` nor a subclass of :class:`LMPolicy`.
    """
    if policy == LMPolicy.__name__ or (isinstance(policy, type) and issubclass(policy, LMPolicy)):
        return policy
    raise ConfigError(
        f"policy must be 'LMPolicy' or a subclass of it, got {policy!r}: the policy is a language model, which language_model "
        "names"
    )


def usable_device(device: object) -> str:
    """The device's name; the CPU, with a warning, in the place of a GPU where CUDA does not work."""
    name = str(device)
    if name.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        warnings.warn(f"device {name!r}: there is no CUDA here; the CPU takes its place", stacklevel=3)
        return "cpu"
    return name


def made_env(env: GymEnv | str | None) -> Any:
    """The environment, made where its id is given: stable-baselines3 would ask for a render mode, which no token env has.

    Raises:
        ConfigError: it is neither an environment nor an id.
    """
    if isinstance(env, str):
        return gym.make(env)
    if env is not None and not isinstance(env, VecEnv | gym.Env):
        raise ConfigError(f"env must be a VecEnv, a gymnasium.Env or the id of one; got {type(env).__name__}")
    return env


class Models(NamedTuple):
    """The models that an agent is made of.

    Attributes:
        policy: the language model to train, without its adapter.
        reference: the frozen model that KL is measured from.
        value_start: the reward model that a separate value network starts from, or None.
    """

    policy: LanguageModel
    reference: LanguageModel
    value_start: RewardModel | None


def load_models(given: AgentSettings) -> Models:
    """Load the models that were given by name.

    Raises:
        ConfigError: policy and reference have different vocabularies, or LoRA's library is not installed.
        ModelError: a model cannot be loaded.
    """
    if given.lora is not None:
        require_peft()
    model = given.language_model
    if isinstance(model, str):
        model = LanguageModel.load(model, device=usable_device(given.device))
    reference = reference_of(model, given.reference, adapted=given.lora is not None)
    start = getattr(given, "value_start", None)
    if isinstance(start, str | Path):
        start = RewardModel.load(start, device=str(model.device), tokenizer=model.tokenizer)
    return Models(model, reference, start)


def reference_of(model: LanguageModel, given: LanguageModel | str | None, *, adapted: bool) -> LanguageModel:
    """The frozen model that KL is measured from: the given one, or the policy as it is now.

    A base never changes while adapters learn, so it can be the reference itself, which costs no memory.

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


def learning_model(model: LanguageModel, lora: Lora | Mapping[str, Any] | None, seed: int) -> LanguageModel:
    """The model whose weights learn: the given one, or an adapter on it.

    Args:
        model: the given model.
        lora: settings of the adapter; None adds none.
        seed: seed of the adapter's random weights.

    Raises:
        ConfigError: no weight learns.
    """
    if lora is not None:
        model = adapted(model, Lora.of(lora), seed=seed)
    if not any(p.requires_grad for p in model.model.parameters()):
        raise ConfigError(
            f"no weight of {model.name!r} learns: it is frozen (as the base of an adapter, perhaps); call "
            "language_model.model.requires_grad_(True), or give lora={...}"
        )
    return model


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
        ModelError: prompts and responses are too long for a model.
    """
    capacity, actions = check_observations(env)
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


def check_observations(env: VecEnv) -> tuple[int, int]:
    """The longest observation and the number of actions of a token environment.

    Raises:
        ConfigError: its observations are not the ids of tokens, or a wrapper changes them.
    """
    normalized = unwrap_vec_normalize(env)
    if normalized is not None and normalized.norm_obs:
        raise ConfigError(
            "VecNormalize would turn the ids of tokens into other numbers: give VecNormalize(env, norm_obs=False), which "
            "scales rewards only"
        )
    return check_spaces(env.observation_space, env.action_space)


def sizes(n_episodes: int | None, batch_size: int | None, num_envs: int) -> tuple[int, int]:
    """The numbers of episodes per iteration and per minibatch.

    Args:
        n_episodes: the setting; None takes one episode per environment.
        batch_size: the setting; None takes all episodes of an iteration.
        num_envs: number of environments.

    Raises:
        ConfigError: they do not fit one another.
    """
    episodes = num_envs if n_episodes is None else n_episodes
    if episodes < 1 or episodes % num_envs:
        raise ConfigError(f"n_episodes ({episodes}) must be a multiple of the number of environments ({num_envs})")
    size = batch_size or episodes
    if not 1 <= size <= episodes:
        raise ConfigError(
            f"batch_size ({size}, episodes in a minibatch) must lie in 1..n_episodes ({episodes}): give a smaller "
            f"batch_size, or more n_episodes (a multiple of the number of environments, {num_envs})"
        )
    return episodes, size


def timesteps_to_learn(
    total_timesteps: int | None, iterations: int | None, *, done: int, most_per_iteration: int
) -> int:
    """Check how long ``learn`` is to train, and count that in timesteps.

    Args:
        total_timesteps: as ``learn`` was given it.
        iterations: likewise.
        done: iterations that the agent has done already.
        most_per_iteration: response tokens that an iteration generates at most.

    Returns:
        The timesteps; where only iterations are given, an upper bound for progress bars.

    Raises:
        ConfigError: one of the two is out of range, or both are None.
    """
    if iterations is not None and (isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1):
        raise ConfigError(f"iterations must be a whole number of at least 1, or None; got {iterations!r}")
    if total_timesteps is None and iterations is not None:
        return max(1, (iterations - done) * most_per_iteration)
    if isinstance(total_timesteps, bool) or not isinstance(total_timesteps, int | float) or not total_timesteps >= 1:
        raise ConfigError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")
    return total_timesteps


def limits_of(env: VecEnv | None, model: LanguageModel) -> Limits:
    """The fixed limits on tokens: the environment's own where it has them, else those of its spaces and the tokenizer.

    Args:
        env: the environment; None where an agent has none.
        model: its tokenizer says which tokens end and pad.
    """
    if isinstance(env, TokenVecEnv):
        return Limits(env.eos_id, env.suppress_tokens, env.min_new_tokens, env.max_new_tokens)
    special = model.tokenizer.eos_id, (model.tokenizer.pad_id,)
    if env is None:
        return Limits(*special)
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    return Limits(*special, 0, int(space["ids"].shape[0]))  # type: ignore[index]


def group_slots(env: VecEnv, size: int) -> None:
    """Give every ``size`` slots in a row the same prompts.

    Args:
        env: the environment.
        size: slots in a group.

    Raises:
        ConfigError: the environment cannot do that.
    """
    inside = token_env_inside(env)
    if inside is not None and size > env.num_envs:
        raise ConfigError(
            f"group_size ({size}) is the number of environments that answer one prompt, and there are only {env.num_envs}: "
            f"take make_sb3_env({size}, ...), or a multiple of it"
        )
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
