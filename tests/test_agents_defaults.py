"""Sizes that nobody gave adapt to the environment, for every agent; only a size that somebody gave is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ppo_setups import letters_env
from test_agents_guarantees import GIVEN, NAMES
from tiny_models import tiny_language_model

from rlhf_gym import agents
from rlhf_gym.errors import ConfigError

GROUPS = {"GRPO": 8, "GSPO": 8, "RAFT": 8, "RLOO": 4, "OnlineDPO": 2, "ReMax": 2, "ES": 16}


def agent_on(name: str, env: Any, **options: Any) -> Any:
    data = GIVEN.get(name, {})
    make: Any = getattr(agents, name)
    return make("LMPolicy", env, language_model=tiny_language_model(layers=1), seed=0, device="cpu", **data, **options)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_adapt_to_the_number_of_slots(name: str) -> None:
    settings: Any = getattr(agents, name).Settings
    given = GIVEN.get(name, {})
    default = settings.__dataclass_fields__["batch_size"].default
    for slots in (2, 8, 12, 64):
        found = settings.of(given, num_envs=slots)
        assert found.batch_size == (default and min(default, slots))
        # The largest divisor up to the default.
        divisors = [size for size in range(1, GROUPS.get(name, 1) + 1) if slots % size == 0]
        assert getattr(found, "group_size", None) in (None, 1, divisors[-1])
    agent = agent_on(name, letters_env(2))
    assert (agent.n_episodes, agent.batch_size, agent.group_size) == (2, 2, min(GROUPS.get(name, 1), 2))
    agent.learn(1)
    assert agent.iteration == 1


def test_groups_of_odd_numbers_of_slots() -> None:
    assert agent_on("GRPO", letters_env(3)).group_size == 3
    assert agents.RLOO.Settings.of({}, num_envs=11).group_size == 11  # type: ignore[attr-defined]
    for name, slots in (("GRPO", 1), ("RLOO", 1), ("OnlineDPO", 3), ("OnlineDPO", 1)):
        with pytest.raises(ConfigError, match=r"group_size \(\d\) (is the number of|must divide the number of)"):
            agent_on(name, letters_env(slots))


@pytest.mark.parametrize("name", ["PPO", "REINFORCE", "ReinforcePlusPlus"])
def test_a_single_environment_will_do(name: str) -> None:
    agent = agent_on(name, letters_env(1))
    agent.learn(iterations=2)
    assert agent.episode_count == 2


def test_an_environment_by_its_id_will_do() -> None:
    agent = agents.PPO("LMPolicy", "rlhf_gym/Sentiment-v0", seed=0, device="cpu")
    assert (agent.n_episodes, agent.batch_size) == (1, 1)
    agent.learn(1)
    assert agent.iteration == 1


@pytest.mark.parametrize(
    ("name", "slots", "options", "message"),
    [
        ("PPO", 8, {"batch_size": 16}, r"batch_size \(16, episodes in a minibatch\) must lie in 1..n_episodes \(8\)"),
        ("GRPO", 12, {"group_size": 8}, r"group_size \(8\) must divide the number of environments \(12\)"),
        ("GRPO", 4, {"group_size": 8}, r"group_size \(8\) is the number of environments .* there are only 4"),
        ("PPO", 8, {"n_episodes": 12}, r"n_episodes \(12\) must be a multiple of the number of environments \(8\)"),
        ("PPO", 8, {"n_episodes": 8, "batch_size": 9}, r"batch_size \(9\) must be at most n_episodes \(8\)"),
    ],
)
def test_a_size_that_somebody_gave_is_refused(name: str, slots: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent_on(name, letters_env(slots), **options)


def test_sizes_adapt_again_to_another_environment(tmp_path: Path) -> None:
    """Set, or given to `load`; what somebody gave stays, from a checkpoint too."""
    agent, given = agent_on("GRPO", letters_env(4)), agent_on("GRPO", letters_env(4), batch_size=4, n_episodes=24)
    agent.save(tmp_path / "default")
    given.save(tmp_path / "given")
    tokenizer = agent.policy.language_model.tokenizer
    for one in (agent, agents.GRPO.load(tmp_path / "default", tokenizer=tokenizer, device="cpu")):
        one.set_env(letters_env(24))
        assert (one.n_episodes, one.batch_size, one.group_size) == (24, 16, 8)
    loaded = agents.GRPO.load(tmp_path / "default", env=letters_env(6), device="cpu")
    assert (loaded.n_episodes, loaded.batch_size, loaded.group_size) == (6, 6, 6)
    for one in (given, agents.GRPO.load(tmp_path / "given", env=letters_env(6), device="cpu")):
        one.set_env(letters_env(12))
        assert (one.n_episodes, one.batch_size, one.group_size) == (24, 4, 6)
