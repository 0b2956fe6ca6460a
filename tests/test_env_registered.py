"""Every registered environment, as `gym.make` gives it: both checkers without a warning, JSON, copies, every vector mode."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_models import LetterTokenizer
from toy_tasks import letter_task

import rlhf_gym  # noqa: F401

needs_reasoning = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="needs the extra `reasoning`, of which a dependency wants a C compiler",
)
IDS = [
    pytest.param(name, marks=needs_reasoning) if "Reasoning" in name else name
    for name in sorted(gym.registry)
    if name.startswith("rlhf_gym/")
]
TEXTS_ONLY = ("rlhf_gym/BookTable-v0", "rlhf_gym/GuessNumber-v0")
MODES = [mode.name.lower() for mode in AutoresetMode]


def formats(name: str) -> Iterator[dict[str, Any]]:
    """The formats that actions take: stable-baselines3 has no texts, so it gets token ids."""
    if any(kind in name for kind in ("Turn", "Conversation", "Calculator")):
        yield {"format": "text"}
        yield {"format": "tokens"}
    else:
        yield {}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return np.array_equal(a, b)


def test_that_there_are_as_many_as_the_catalogue_says() -> None:
    assert len(IDS) == 2 * 12 + 2 + len(TEXTS_ONLY)


@pytest.mark.parametrize("name", IDS)
def test_checkers_specs_and_copies(name: str) -> None:
    for kind in formats(name):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            env = gym.make(name, **kind)
            check_env(env.unwrapped)
            if kind.get("format") != "text" and name not in TEXTS_ONLY:
                sb3_check_env(env)
            assert env.spec is not None
            again = gym.make(EnvSpec.from_json(env.spec.to_json()))
        assert same(env.reset(seed=3), again.reset(seed=3))
        twins = [again, copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
        env.action_space.seed(0)
        action = env.action_space.sample()
        result = env.step(action)
        assert all(same(twin.step(action), result) for twin in twins)


@pytest.mark.parametrize("name", IDS)
def test_vectors_in_every_autoreset_mode(name: str) -> None:
    for mode in MODES:
        env = gym.make_vec(name, num_envs=3, autoreset_mode=mode)
        assert env.metadata["autoreset_mode"] == AutoresetMode[mode.upper()]
        first = env.reset(seed=[5, 6, 5])[0]
        assert same(env.reset(seed=[5, 6, 5])[0], first)
        env.action_space.seed(0)
        _, rewards, terminations, _, infos = env.step(env.action_space.sample())
        assert rewards.shape == terminations.shape == (3,)
        if "Turn" in name:  # every response ends its episode
            assert terminations.all()
            assert ("final_obs" in infos and "response" in infos["final_info"]) == (mode == "same_step")
        env.close()
        env.close()


def drawn(prompts: list[str], responses: list[str]) -> list[float]:
    """A judge that samples."""
    return np.random.default_rng().random(len(prompts)).tolist()


@pytest.mark.parametrize("vector", [False, True])
def test_a_reward_that_samples_is_declared_in_the_spec(vector: bool) -> None:
    options = {"task": letter_task(drawn, limit=1), "tokenizer": LetterTokenizer()}
    for declared in (True, False):
        name = f"test/Sampled{declared}-v0"
        if name not in gym.registry:
            gym.register(
                name,
                entry_point="rlhf_gym.envs.token_env:TokenEnv",
                vector_entry_point="rlhf_gym.envs.token_vector_env:TokenVectorEnv",
                kwargs=options,
                nondeterministic=declared,
            )
        assert gym.spec(name).nondeterministic is declared
        if vector:
            made = gym.make_vec(name, num_envs=2)
            assert made.spec is not None
            assert made.spec.nondeterministic is declared
        elif declared:
            check_env(gym.make(name).unwrapped)
        else:
            with pytest.raises(AssertionError, match="Deterministic step rewards"):
                check_env(gym.make(name).unwrapped)
