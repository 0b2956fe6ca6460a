"""A Lagrangian constraint in training: its level is held, where the objective alone would break it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppo_setups import learn, letters_env, small_agent

from rlhf_gym.agents import PPO
from rlhf_gym.rewards import Constrained

EXAMPLE = Path(__file__).parent.parent / "examples" / "constrained_reward.py"
MOST = 4.0  # letters, of the eight that fit


def praise(prompts: list[str], responses: list[str]) -> list[float]:
    """Every "a", "b" and "c" is praise: the longer the better."""
    return [float(sum(r.count(letter) for letter in "abc")) for r in responses]


def shortness(prompts: list[str], responses: list[str]) -> list[float]:
    return [-float(len(r)) for r in responses]


def trained(reward: Any, tokens: int = 20_000) -> list[dict[str, Any]]:
    agent = small_agent(
        PPO, letters_env(32, reward=reward), n_episodes=32, learning_rate=5e-3, batch_size=16, kl_coef=0.0
    )
    return learn(agent, tokens)


def last(rows: list[dict[str, Any]], name: str, number: int = 30) -> float:
    return float(np.mean([row[name] for row in rows[-number:]]))


@pytest.fixture(scope="module")
def held() -> list[dict[str, Any]]:
    return trained(Constrained(praise, shortness, level=-MOST, rate=0.002, damping=0.2))


def test_the_level_is_held_and_the_objective_fills_it(held: list[dict[str, Any]]) -> None:
    free = trained(Constrained(praise, shortness, level=-100), 10_000)
    assert last(free, "reward/constrained_multiplier") == 0
    assert last(free, "reward/shortness") < -7  # of its own it writes as long as it may
    # It swings around the level: over ten seeds the mean of 60 iterations lay at most 0.41 away, that of 30 up to 0.57.
    assert last(held, "reward/shortness", 60) == pytest.approx(-MOST, abs=0.5)
    assert last(held, "reward/constrained_slack", 60) == pytest.approx(0, abs=0.5)
    assert last(held, "reward/praise") > 0.7 * MOST  # most letters that it may write are praise


def test_the_multiplier_is_where_the_two_pull_equally(held: list[dict[str, Any]]) -> None:
    """A letter more gains 1 of praise and costs the multiplier, so neither pays where it is 1."""
    assert last(held, "reward/constrained_multiplier") == pytest.approx(1, abs=0.25)


def test_the_example_prints_its_rows(capsys: pytest.CaptureFixture[str]) -> None:
    rows = runpy.run_path(str(EXAMPLE))["main"](2)
    assert [row["constrained_slack"] for row in rows] == pytest.approx([row["sentiment"] - 3 for row in rows])
    assert rows[1]["constrained_multiplier"] > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["iteration", "words", "sentiment", "slack", "multiplier"]
    assert len(lines) == 3
