"""Prompts in epochs: each comes once before one comes again, for all slots together, in every kind of environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ppo_setups import small_agent
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tiny_models import LetterTokenizer
from toy_tasks import letter_task

from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.envs import TokenEnv, TokenVectorEnv, VectorVecEnv, make_sb3_env
from rlhf_gym.errors import ConfigError
from rlhf_gym.tasks.samples import Prompt

TEXTS = [chr(97 + i) for i in range(12)]
TASK = replace(letter_task(limit=4), prompts=[Prompt(text) for text in TEXTS])
GIVEN: dict[str, Any] = {"task": TASK, "tokenizer": LetterTokenizer(), "prompt_order": "epochs"}


class Same(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that changes nothing."""


def bundled(count: int) -> Any:
    """The same environment as a VecEnv of single, wrapped ones."""
    return VecMonitor(DummyVecEnv([lambda: Same(TokenEnv(**GIVEN))] * count))


def wrapped_vector(count: int) -> Any:
    return VectorVecEnv(
        gym.wrappers.vector.RecordEpisodeStatistics(TokenVectorEnv(count, autoreset_mode="same_step", **GIVEN))
    )


KINDS = {"native": lambda count: make_sb3_env(count, **GIVEN), "bundled": bundled, "wrapped": wrapped_vector}


class Prompts:
    """Notes the prompts of an agent's rollouts."""

    def __init__(self, agent: Any) -> None:
        self.seen: list[list[str]] = []
        prepare = agent.prepare

        def noting(rollout: Any) -> None:
            self.seen.append([chr(97 + e.prompt_ids[0] - 2) for e in rollout.episodes])
            prepare(rollout)

        agent.prepare = noting


def prompts_of(kind: Any, env: Any, iterations: int, **options: Any) -> list[list[str]]:
    agent = small_agent(kind, env, batch_size=4, n_epochs=1, **options)
    noted = Prompts(agent)
    agent.learn(iterations=iterations)
    return noted.seen


def test_single_and_vector_environments_go_through_every_prompt() -> None:
    env = TokenEnv(**GIVEN)
    first = [env.reset(seed=3 if i == 0 else None)[0]["ids"][0] for i in range(12)]
    second = [env.reset()[0]["ids"][0] for i in range(12)]
    assert sorted(first) == sorted(second) == list(range(2, 14))
    assert first != second
    many = TokenVectorEnv(5, **GIVEN)  # 5 does not divide 12: epochs follow one another without a gap
    drawn = [many.reset(seed=3 if i == 0 else None)[0]["ids"][:, 0] for i in range(12)]
    flat = np.concatenate(drawn)
    for epoch in flat.reshape(5, 12):
        assert sorted(epoch) == list(range(2, 14))
    assert flat[:12].tolist() == first  # slots share the epochs that a single environment goes through
    listed = many.reset(seed=[3, 4, 3, 5, 6])[0]["ids"][:, 0]
    assert listed[0] == listed[2] == first[0]
    for nothing in (None, [None] * 5):
        unseeded = TokenVectorEnv(5, **GIVEN)
        assert len(set(unseeded.reset(seed=nothing)[0]["ids"][:, 0])) == 5


@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_an_agent_sees_the_same_epochs_in_every_kind_of_environment(kind: Any) -> None:
    size = {} if kind is PPO else {"group_size": 2}
    seen = {name: prompts_of(kind, make(4), 6 if kind is GRPO else 3, **size) for name, make in KINDS.items()}
    assert seen["native"] == seen["bundled"] == seen["wrapped"]
    flat = [prompt for rollout in seen["native"] for prompt in rollout]
    if kind is GRPO:  # a group is two in a row
        assert flat[::2] == flat[1::2]
        flat = flat[::2]
    assert sorted(flat) == TEXTS


@pytest.mark.parametrize("name", list(KINDS))
def test_training_goes_on_in_the_middle_of_an_epoch(name: str, tmp_path: Path) -> None:
    whole = prompts_of(PPO, KINDS[name](4), 5)
    agent = small_agent(PPO, KINDS[name](4), batch_size=4, n_epochs=1)
    agent.learn(iterations=2)
    agent.save(tmp_path / "agent")
    again = PPO.load(tmp_path / "agent", env=KINDS[name](4), tokenizer=LetterTokenizer())
    noted = Prompts(again)
    again.learn(iterations=5, reset_num_timesteps=False)
    assert noted.seen == whole[2:]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="prompt_order must be one of random, epochs, got 'sorted'"):
        TokenEnv(**{**GIVEN, "prompt_order": "sorted"})
    epochs, random = make_sb3_env(2, **GIVEN), make_sb3_env(2, **{**GIVEN, "prompt_order": "random"})
    for one, other in ((epochs, random), (random, epochs)):
        one.reset()
        with pytest.raises(ConfigError, match="another order"):
            other.restore(one.state())
