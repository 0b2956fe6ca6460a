"""Agents by name in a run: all of them run the loop's training stage, and settings that do not fit are refused early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.agents import AGENTS, agent_options, find_agent, learning_rate
from rlhf_gym.loop.config import AgentConfig
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_runs_the_loop(tmp_path: Path, model: Path, name: str) -> None:
    agent: dict[str, Any] = {"name": name, "iterations": 1, "n_episodes": 8, "batch_size": 8}
    settings = tiny_settings(model)
    settings["agent"] = agent
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    rows = run.metrics_file.read_text().splitlines()
    assert len(rows) == 2
    written = json.loads((run.path / "round-1" / "agent.json").read_text())
    assert written["class"] == find_agent(name).__name__
    assert written["n_episodes"] == 8
    assert written["beta" if name == "online_dpo" else "kl_coef"] is not None


def test_a_policy_that_runs_away_ends_its_rounds_training_and_the_run_goes_on(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = {"iterations": 6, "learning_rate": 0.1, "kl_coef": 0.0, "kl_limit": 0.5, "n_epochs": 2}
    run = run_loop(build(tiny_settings(model, agent=agent)), tmp_path / "run", progress=Progress())
    said = capsys.readouterr().out
    assert "is above kl_limit (0.5): training has stopped" in " ".join(said.split())
    assert 3 <= len(run.metrics_file.read_text().splitlines()) < 7
    assert (run.path / "round-1" / "policy").is_dir()
    assert (run.path / "report.html").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ppoo"}, "did you mean 'ppo'?"),
        ({"name": "rlhf_gym.loop.config:Config"}, "is no subclass of"),
        ({"name": "rloo", "vf_coef": 0.1}, "agent.vf_coef is set, but RLOO has no such setting"),
        ({"name": "a2c", "clip_range": 0.1}, "agent.clip_range is set, but A2C has no such setting"),
        ({"name": "ppo", "group_size": 4}, "agent.group_size is set, but PPO has no such setting"),
        ({"name": "grpo", "n_episodes": 48, "n_envs": 12}, "GRPO puts 8 neighbouring environments in a group"),
        ({"name": "reinforce", "n_epochs": 3}, "without a clip_range there cannot be n_epochs above 1"),
        ({"name": "ppo", "n_episodes": 8}, r"batch_size \(16\) must be at most n_episodes \(8\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent_options(build({"agent": settings}).agent)


def test_null_leaves_the_agents_own_and_0_turns_the_value_clip_off(tmp_path: Path) -> None:
    assert agent_options(AgentConfig()) == {"n_episodes": 64, "tokens_per_batch": 4096}
    assert agent_options(AgentConfig(clip_range_vf=0))["clip_range_vf"] is None
    own = tmp_path / "mine.py"
    own.write_text("from rlhf_gym.agents import RLOO\n\n\nclass Mine(RLOO):\n    pass\n")
    assert find_agent(f"{own}:Mine").__name__ == "Mine"
    assert agent_options(AgentConfig(name=f"{own}:Mine", group_size=2))["group_size"] == 2


def test_the_learning_rate_is_the_agents_own_where_none_is_configured() -> None:
    assert learning_rate(AgentConfig()) == 1e-4
    assert learning_rate(AgentConfig(name="rloo")) == 3e-4
    assert learning_rate(AgentConfig(name="rloo", learning_rate=1e-5)) == 1e-5


def test_settings_that_are_handed_on_count() -> None:
    assert {"scale_rewards", "group_size", "clip_scores"} <= GRPO.Settings.names()
    assert "group_size" not in PPO.Settings.names()
