"""What clients of stable-baselines3 and sb3-contrib do with an agent: taken where it means something, else refused clearly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import letters_env, small_agent, small_ppo
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from tiny_models import tiny_language_model

from rlhf_gym import agents
from rlhf_gym.agents import GRPO, NLPO, PPO, TRPO, LMPolicy
from rlhf_gym.errors import ConfigError


def make(kind: Any, *places: Any, **options: Any) -> Any:
    return kind("LMPolicy", letters_env(4), *places, language_model=tiny_language_model(layers=1), seed=0, **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            PPO,
            {"n_steps": 128},
            "PPO has no setting n_steps: an iteration is counted in whole episodes: give n_episodes",
        ),
        (
            GRPO,
            {"policy_kwargs": {"net_arch": [8]}},
            "policy_kwargs: the policy is a language model: give language_model",
        ),
        (GRPO, {"normalize_advantage": True}, "GRPO has no setting normalize_advantage: .*scale_rewards"),
        (TRPO, {"cg_max_steps": 3, "cg_steps": 3}, "cg_max_steps is cg_steps by another name"),
        (TRPO, {"line_search_shrinking_factor": 0.8}, "half of the one before"),
        (PPO, {"n_critic_updates": 3}, "PPO has no setting n_critic_updates"),
        (PPO, {"use_sde": True}, "continuous actions"),
    ],
)
def test_names_that_mean_nothing_here_are_refused_with_their_counterpart(kind: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(kind, **options)


def test_names_that_mean_something_are_taken() -> None:
    trpo = make(
        TRPO,
        cg_max_steps=3,
        line_search_max_iter=4,
        n_critic_updates=5,
        target_kl=0.2,
        line_search_shrinking_factor=0.5,
    )
    assert (trpo.cg_steps, trpo.line_search_steps, trpo.n_epochs, trpo.max_kl) == (3, 4, 5, 0.2)
    assert make(PPO, 2e-3, policy_kwargs={}, use_sde=False, rollout_buffer_class=None).settings.learning_rate == 2e-3
    for name in ("MlpPolicy", torch.nn.Linear):
        with pytest.raises(ConfigError, match="policy must be 'LMPolicy' or a subclass"):
            agents.PPO(name, letters_env(4))  # type: ignore[arg-type]


def test_a_checkpoint_loads_as_rl_zoo3_loads_it(tmp_path: Path) -> None:
    agent = small_ppo(letters_env(8), learning_rate_decay="linear")
    agent.save(tmp_path / "agent", exclude=["rollout_buffer", "env"], include=["num_timesteps"])
    frozen = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = PPO.load(tmp_path / "agent", env=letters_env(8), custom_objects=frozen, device="cpu", force_reset=False)
    assert loaded.lr_schedule(1) == loaded.now(loaded.clip_range) == 0.0
    for names in ({"exclude": ["policy.optimizer"]}, {"exclude": ["kl_coef"]}, {"include": ["env"]}):
        with pytest.raises(ConfigError, match="a checkpoint"):
            agent.save(tmp_path / "other", **names)
    with pytest.raises(ConfigError, match=r"language_model\.save"):
        agent.policy.save(str(tmp_path / "policy"))


class Locals(BaseCallback):
    def _on_step(self) -> bool:
        assert self.locals["values"].shape == (8, 1)
        assert self.locals["log_probs"].shape == self.locals["clipped_actions"].shape == (8,)
        assert bool((self.locals["log_probs"] < 0).all())
        assert self.locals["n_steps"] >= 0
        return True


def test_shapes_and_metrics_are_those_of_stable_baselines() -> None:
    agent = small_ppo(letters_env(8))
    agent.learn(1, callback=Locals())
    agent.set_logger(agent.logger)
    agent.log(agent.rollout)  # type: ignore[arg-type]
    assert (agent.logger.name_to_value["train/clip_range"], agent.logger.name_to_value["train/clip_range_vf"]) == (
        0.2,
        0.2,
    )
    observation: Any = letters_env(3).reset()
    tensors = {key: torch.as_tensor(value) for key, value in observation.items()}
    actions, values, log_probs = agent.policy(tensors)
    assert (actions.shape, values.shape, log_probs.shape) == ((3,), (3, 1), (3,))
    assert (
        agent.policy.evaluate_actions(tensors, actions)[0].shape == agent.policy.predict_values(tensors).shape == (3, 1)
    )
    alone, _ = agent.predict({key: value[0] for key, value in observation.items()})
    assert isinstance(alone, np.ndarray)
    assert alone.shape == ()
    with pytest.raises(ConfigError, match="no value function"):
        small_agent(GRPO, letters_env(8), group_size=2).policy(tensors)


@pytest.mark.parametrize("kind", [PPO, NLPO])
def test_predict_takes_action_masks(kind: Any) -> None:
    agent, env = small_agent(kind, letters_env(8)), letters_env(3)
    observation: Any = env.reset()
    masks = np.zeros((3, 28), dtype=bool)
    masks[:, 5:7] = True
    for _ in range(5):
        assert set(agent.predict(observation, action_masks=masks)[0].tolist()) <= {5, 6}
    evaluate_policy(agent, env, n_eval_episodes=3, warn=False)
    with pytest.raises(ConfigError, match=r"action_masks must be of shape \[3, 28\]"):
        agent.predict(observation, action_masks=masks[:2])
    masks[1] = False
    with pytest.raises(ConfigError, match="row 1 of action_masks allows no token"):
        agent.predict(observation, action_masks=masks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_the_cpu_takes_its_place(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="there is no CUDA here"):
        agent = PPO("LMPolicy", "rlhf_gym/Sentiment-v0", device="cuda")
    agent.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="there is no CUDA here"):
        assert PPO.load(tmp_path / "agent", device="cuda").device.type == "cpu"


def test_observations_may_not_be_normalized_and_rewards_may() -> None:
    with pytest.raises(ConfigError, match="norm_obs=False"):
        small_ppo(VecNormalize(letters_env(8)))
    agent = small_ppo(VecNormalize(letters_env(8), norm_obs=False)).learn(1)
    evaluate_policy(agent, VecNormalize(letters_env(8), norm_obs=False), n_eval_episodes=8)
    normalized = VecNormalize(letters_env(8), training=False)
    with pytest.raises(ConfigError, match=r"'ids' came as float32: .*norm_obs=False"):
        evaluate_policy(agent, normalized, n_eval_episodes=8)
    with pytest.raises(ConfigError, match=r"'ids' came as float32: .*norm_obs=False"):
        small_ppo(letters_env(8)).learn(1, callback=EvalCallback(normalized, eval_freq=1, verbose=0))
    seen = letters_env(8).reset()
    for wrong, message in (
        (seen["ids"] + 0.5, "'ids' came as float64"),
        (seen["ids"] - 100, r"expected rows of ids in 0\.\.27"),
    ):
        with pytest.raises(ConfigError, match=message):
            agent.predict(seen | {"ids": wrong})
    with pytest.raises(ConfigError, match=r"must have the shape \(1,\), got \(2,\)"):
        small_ppo(VecFrameStack(letters_env(8), 2))


def test_a_policy_of_ones_own_is_used() -> None:
    class Mine(LMPolicy):
        pass

    assert type(PPO(Mine, letters_env(4), language_model=tiny_language_model(layers=1)).policy) is Mine
