"""Shaping by a potential on a token task that is solved exactly: which tokens are best does not change (Ng et al. 1999)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tiny_models import LetterTokenizer

from rlhf_gym.envs import PotentialShaping, TokenEnv
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

LIMIT = 4
ACTIONS = (0, 2, 3)  # EOS, "a", "b"
Prefix = tuple[int, ...]
Values = dict[Prefix, dict[int, float]]
SEEDS = range(20)


def table(seed: int, scale: float = 1.0) -> Callable[..., list[float]]:
    """A number for every text, drawn once and for all."""

    def values(prompts: list[str], responses: list[str]) -> list[float]:
        digests = [hashlib.sha256(f"{seed} {response}".encode()).digest() for response in responses]
        return [scale * int.from_bytes(digest[:6], "big") / 2**48 for digest in digests]

    return values


def base(seed: int) -> TokenEnv:
    task = Task("tree", [Prompt("a")], max_new_tokens=LIMIT, reward=table(seed))
    return TokenEnv(task, LetterTokenizer(4))


class Bonus(gym.Wrapper[Any, Any, Any, Any]):
    """What is often taken for shaping: the potential itself, paid at every token."""

    def __init__(self, env: TokenEnv, potential: Callable[..., list[float]]) -> None:
        super().__init__(env)
        self.potential = potential

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        text = self.env.unwrapped.episodes.response(0)  # type: ignore[attr-defined]
        return observation, float(reward) + self.potential(["a"], [text])[0], terminated, truncated, info


def solve(env: gym.Env[Any, Any], gamma: float) -> Values:
    """Optimal action values of every prefix, by going back from the ends; every reward is what the environment pays."""

    def step(prefix: Prefix, action: int) -> tuple[float, bool]:
        env.reset(seed=0)
        for token in prefix:
            assert not env.step(token)[2]
        _, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        return float(reward), terminated

    found: Values = {}

    @cache
    def value(prefix: Prefix) -> float:
        found[prefix] = {}
        for action in ACTIONS:
            reward, terminated = step(prefix, action)
            found[prefix][action] = reward + (0.0 if terminated else gamma * value((*prefix, action)))
        return max(found[prefix].values())

    value(())
    return found


def best(values: Values) -> dict[Prefix, int]:
    """The optimal policy; two actions of one value would make it ambiguous, and random numbers have none."""
    for options in values.values():
        ordered = sorted(options.values())
        assert ordered[-1] - ordered[-2] > 1e-9
    return {prefix: max(options, key=options.__getitem__) for prefix, options in values.items()}


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_optimal_policy_is_unchanged_and_values_move_by_the_potential(gamma: float) -> None:
    for seed in SEEDS:
        plain = solve(base(seed), gamma)
        assert len(plain) == 1 + 2 + 4 + 8  # every prefix that goes on
        potential = table(1000 + seed, scale=10)  # ten times what the reward itself ranges over
        shaped = solve(PotentialShaping(base(seed), potential, gamma=gamma), gamma)
        assert best(shaped) == best(plain)
        for prefix, options in plain.items():
            phi = potential(["a"], [LetterTokenizer(4).decode(prefix)])[0]
            assert shaped[prefix] == pytest.approx({a: q - phi for a, q in options.items()}, abs=1e-6)


def test_a_bonus_that_is_no_difference_changes_it() -> None:
    changed = [best(solve(Bonus(base(s), table(1000 + s)), 1.0)) != best(solve(base(s), 1.0)) for s in SEEDS]
    assert np.mean(changed) > 0.9


def test_another_discount_than_the_learners_changes_it() -> None:
    """The proof needs the learner's own discount: shaping with another one pays for going on, or for ending."""
    changed = [
        best(solve(PotentialShaping(base(s), table(1000 + s, scale=10), gamma=1.0), 0.8)) != best(solve(base(s), 0.8))
        for s in SEEDS
    ]
    assert np.mean(changed) > 0.5
