"""What agents ask of an environment: its fixed limits, groups of slots, and the token environment inside wrappers."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits


def limits_of(env: VecEnv, model: LanguageModel) -> Limits:
    """Fixed limits on tokens: the environment's own where it tells them, else those of its spaces."""
    if isinstance(env, TokenVecEnv):
        return Limits(env.eos_id, env.suppress_tokens, env.min_new_tokens, env.max_new_tokens)
    space = env.observation_space
    assert isinstance(space, gym.spaces.Dict)
    return Limits(model.tokenizer.eos_id, (model.tokenizer.pad_id,), 0, int(space["ids"].shape[0]))  # type: ignore[index]


def group_slots(env: VecEnv, size: int) -> None:
    """Have ``size`` neighbouring slots answer the same prompts.

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
