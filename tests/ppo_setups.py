"""Small agents in a moment, for tests: letters, a tiny model, one thread."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

from rlhf_gym.agents import PPO
from rlhf_gym.agents.common.callbacks import IterationCallback
from rlhf_gym.agents.common.collect import Scoring, decode_episodes
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.envs import TokenEnv, TokenVecEnv, make_sb3_env

NUM_ENVS = 16
LIMIT = 8


def letters_env(num_envs: int = NUM_ENVS, **task: Any) -> TokenVecEnv:
    return make_sb3_env(num_envs, task=letter_task(**({"limit": LIMIT} | task)), tokenizer=LetterTokenizer())


def small_ppo(env: Any = None, **options: Any) -> PPO:
    model: PPO = small_agent(PPO, env, **options)
    return model


def small_agent(
    kind_of_agent: Any, env: Any = None, *, kind: Any = "gpt2", scale: float = 1.0, task: Any = None, **options: Any
) -> Any:
    torch.set_num_threads(1)
    env = letters_env(**(task or {})) if env is None else env
    defaults: dict[str, Any] = {"seed": 0, "learning_rate": 3e-3, "batch_size": 8, "kl_coef": 0.02, "device": "cpu"}
    model = options.pop("language_model", None) or tiny_language_model(kind, scale=scale)
    return kind_of_agent("LMPolicy", env, language_model=model, **(defaults | options))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=0, rtol=0, msg=name)


def move_reference(model: Any) -> None:
    """Make the reference differ from the policy, as it does after some learning."""
    network: Any = model.reference.model
    with torch.no_grad():
        network.get_output_embeddings().weight.mul_(0.5)


class Rows(KVWriter):
    """Every row that was logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))


def learn(model: Any, tokens: int, **options: Any) -> list[dict[str, Any]]:
    """Train, and return the logged rows."""
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    model.learn(tokens, **options)
    return rows.rows


class UntilScore(IterationCallback):
    """Ends training once two iterations in a row score more than this in the mean; ``scores`` has every iteration's.

    Of a learner that has got this far, more iterations show nothing new.
    """

    def __init__(self, enough: float) -> None:
        super().__init__()
        self.enough, self.scores = enough, list[float]()

    def on_iteration_end(self, agent: Any) -> bool:
        self.scores.append(float(np.mean([episode.score for episode in agent.rollout.episodes])))
        return len(self.scores) < 2 or self.reached <= self.enough

    @property
    def reached(self) -> float:
        """The mean of the last two."""
        return float(np.mean(self.scores[-2:]))


def decoded(env: TokenVecEnv, policy: LMPolicy, *, seed: int, first_episode: int = 0, per_slot: int) -> list[Episode]:
    """Episodes by decoding whole responses, scored."""
    with Scoring(env) as scoring:
        rollout = Rollout.of(decode_episodes(env, policy, seed, first_episode, per_slot, scoring))
        scoring.finish(rollout)
    return rollout.episodes


class Foreign(gym.Env[Any, Any]):
    """An environment of somebody else's, which makes no promises: only its spaces are those of a token environment."""

    def __init__(self, env: TokenEnv) -> None:
        self.inside, self.observation_space, self.action_space = env, env.observation_space, env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.inside.reset(seed=seed)

    def step(self, action: Any) -> Any:
        return self.inside.step(action)


class NoCallback(BaseCallback):
    def _on_step(self) -> bool:
        return True


def collected(model: Any) -> Rollout:
    """One rollout with its advantages, not yet learned from."""
    model.set_logger(Logger(None, []))
    instead: dict[str, Any] = {
        "update": lambda rollout, rows: False, "after_learning": lambda rollout: None, "log": lambda rollout: None,
    }  # fmt: skip
    vars(model).update(instead)
    generator = model._update_rng.bit_generator.state
    try:
        _, callback = model._setup_learn(1, NoCallback())
        model.iterate(callback)
    finally:
        for name in instead:
            del vars(model)[name]
    model.iteration -= 1
    model._update_rng.bit_generator.state = generator
    model.where, model.minibatch_metrics = "test", {}
    rollout: Rollout = model.rollout
    return rollout


def learn_from(model: Any, rollout: Rollout) -> None:
    """An iteration with this rollout in the place of one that it would collect."""
    vars(model).update(
        generate=lambda scoring: rollout.episodes, complete=lambda rollout: None, measured=lambda rollout: rollout
    )
    _, callback = model._setup_learn(1, NoCallback(), reset_num_timesteps=False)
    with patch.object(Rollout, "scored", lambda fresh, size: rollout):
        model.iterate(callback)


def gradient(model: Any, rollout: Rollout, rows: list[int]) -> torch.Tensor:
    """The gradient of one minibatch, flat."""
    model.step_optimizer = lambda: None  # type: ignore[method-assign]
    model.policy.optimizer.zero_grad()
    model.update(rollout, rows)
    return torch.cat([p.grad.flatten() for p in model.policy.parameters() if p.grad is not None])
