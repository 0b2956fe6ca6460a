"""A small PPO in a moment, for tests: letters, a tiny model, one thread."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

from rlhf_gym.agents import PPO
from rlhf_gym.envs import TokenVecEnv, make_sb3_env

NUM_ENVS = 16
LIMIT = 8


def letters_env(num_envs: int = NUM_ENVS, **task: Any) -> TokenVecEnv:
    return make_sb3_env(num_envs, task=letter_task(**({"limit": LIMIT} | task)), tokenizer=LetterTokenizer())


def small_ppo(env: Any = None, *, kind: Any = "gpt2", scale: float = 1.0, task: Any = None, **options: Any) -> PPO:
    torch.set_num_threads(1)
    env = letters_env(**(task or {})) if env is None else env
    defaults: dict[str, Any] = {"seed": 0, "learning_rate": 3e-3, "batch_size": 8, "kl_coef": 0.02, "device": "cpu"}
    model = options.pop("language_model", None) or tiny_language_model(kind, scale=scale)
    return PPO("LMPolicy", env, language_model=model, **(defaults | options))


def weights(model: PPO) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=0, rtol=0, msg=name)


def move_reference(model: PPO) -> None:
    """Make the reference differ from the policy, as it does after some learning."""
    network: Any = model.reference.model
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(0.5)
