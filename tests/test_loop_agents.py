"""Agents by name in a run: all of them run the loop's training stage, and settings that do not fit are refused early."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_language_model
from tiny_run import save_tiny_model, tiny_settings
from transformers import AutoModelForCausalLM

from rlhf_gym.agents.common.settings import Setting, settings_of
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.lm.tokenizer import load_tokenizer
from rlhf_gym.loop.agent_catalogue import AGENTS, SET_ELSEWHERE, find_agent
from rlhf_gym.loop.config_file import build, merge, parse_override
from rlhf_gym.loop.config_values import to_yaml
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.given_data import EncodedData
from rlhf_gym.loop.metrics_table import MetricsTable
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.sections import Key, keys
from rlhf_gym.loop.train import make_agent
from rlhf_gym.loop.train_reward import ProxyAndGold


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_runs_the_loop(tmp_path: Path, model: Path, name: str) -> None:
    agent: dict[str, Any] = {"name": name, "iterations": 1, "n_episodes": 8, "batch_size": 8}
    # One agent with a value head and one without train against a fitted reward model, the others against the gold reward.
    settings = tiny_settings(model, reward_model={"enabled": name in ("a2c", "grpo")}, evaluation={"prompts": 2})
    if name == "es":  # whose step takes all episodes
        del agent["batch_size"]
    if name == "sft":
        rows = [{"prompt": f"The film {i}", "target": "was good"} for i in range(10)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings["task"]["prompts"] = str(tmp_path / "prompts.jsonl")
    if name == "preference_optimization":
        rows = [{"prompt": f"The film {i}", "chosen": " was good", "rejected": " was bad"} for i in range(10)]
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        agent["data"] = str(tmp_path / "pairs.jsonl")
    if name == "ilql":
        rows = [{"prompt": f"The film {i}", "completion": " was good", "reward": i / 2} for i in range(10)]
        (tmp_path / "rewarded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        agent["data"] = str(tmp_path / "rewarded.jsonl")
    settings["agent"] = agent
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    rows = run.metrics_file.read_text().splitlines()
    assert len(rows) == 2
    written = json.loads((run.path / "round-1" / "agent.json").read_text())
    assert written["class"] == find_agent(name).__name__
    assert written["n_episodes"] == 8
    assert written["learning_rate"] == find_agent(name).Settings.__dataclass_fields__["learning_rate"].default


def test_a_policy_that_runs_away_ends_its_rounds_training_and_the_run_goes_on(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = {
        "iterations": 8,
        "learning_rate": 0.1,
        "kl_coef": 0.0,
        "kl_limit": 0.5,
        "n_epochs": 2,
        "checkpoint_every": 1,
    }
    config = build(tiny_settings(model, agent=agent))
    run = run_loop(config, tmp_path / "run", progress=Progress())
    said = capsys.readouterr().out
    assert "is above kl_limit (0.5): training has stopped" in " ".join(said.split())
    assert 3 <= len(run.metrics_file.read_text().splitlines()) < 9
    assert (run.path / "round-1" / "policy").is_dir()
    assert (run.path / "report.html").exists()

    def killed(_folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after training has stopped, before its policy is saved
        patch.setattr("rlhf_gym.loop.train.whole_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            run_loop(config, tmp_path / "killed", progress=Progress(quiet=True))
    again = run_loop(config, tmp_path / "killed", resume=True, progress=Progress(quiet=True))
    assert again.metrics_file.read_text() == run.metrics_file.read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ppoo"}, "did you mean 'ppo'?"),
        ({"name": "rlhf_gym.loop.config:Config"}, "is no subclass of"),
        ({"name": "rloo", "vf_coef": 0.1}, "RLOO has no vf_coef: it learns without a value function"),
        ({"name": "a2c", "clip_range": 0.1}, "A2C has no setting clip_range; leave it out"),
        ({"name": "ppo", "group_size": 4}, "PPO has no setting group_size; leave it out"),
        ({"name": "grpo", "n_episodes": 48, "n_envs": 12, "group_size": 8}, "GRPO puts 8 environments in a group"),
        ({"name": "reinforce", "n_epochs": 3}, "without a clip_range there cannot be n_epochs above 1"),
        ({"name": "ppo", "n_episodes": 8, "batch_size": 16}, r"batch_size \(16\) must be at most n_episodes \(8\)"),
        ({"n_episodes": None}, "agent.n_episodes must be a whole number, got null"),
        ({"name": "grpo", "teacher": "embedded", "kl_coef": 0.0}, "agent.kl_coef is 0: give agent.kl_coef"),
        ({"name": "ppo", "target_column": "answer"}, "there is no key 'agent.target_column'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"agent": settings})


def test_a_run_distils_a_teacher(tmp_path: Path, model: Path) -> None:
    """The penalty's KL is that from the teacher, the evaluation's that from the model that training starts from."""
    torch.manual_seed(1)
    other = AutoModelForCausalLM.from_pretrained(model)
    for weight in other.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    other.save_pretrained(tmp_path / "teacher")
    load_tokenizer("embedded").hub.save_pretrained(tmp_path / "teacher")
    agent = {
        "name": "grpo", "teacher": str(tmp_path / "teacher"), "kl_coef": 10.0, "iterations": 6, "group_size": 2,
        "n_episodes": 32, "learning_rate": 3e-3, "kl_estimator": "k2", "batch_size": 16,
    }  # fmt: skip
    settings = tiny_settings(model, agent=agent, reward_model={"enabled": False}, evaluation={"prompts": 4})
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    rows = list(csv.DictReader(run.metrics_file.open()))
    kls = [float(row["objective/kl"]) for row in rows]
    assert kls[0] > 0.1, kls
    assert kls[-1] < 0.7 * kls[0], kls
    tiny_language_model().save(tmp_path / "letters")
    with pytest.raises(ConfigError, match=r"the teacher .* has .* logits .*: KL needs one and the same vocabulary"):
        RunContext.of(
            build(merge(settings, {"agent": {"teacher": str(tmp_path / "letters")}})),
            RunDirectory(tmp_path / "other"), Progress(quiet=True),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"n_episodes": 8}, (8, 8, None)), ({"n_envs": 10}, (60, 16, None)), ({"n_envs": 100}, (100, 16, None)),
        ({"name": "grpo", "n_episodes": 48, "n_envs": 12}, (48, 16, 6)), ({"name": "rloo", "n_envs": 2}, (64, None, 2)),
        ({"name": "online_dpo", "n_episodes": 10}, (10, 10, None)), ({"name": "grpo"}, (64, 16, 8)),
    ],
)  # fmt: skip
def test_defaults_of_a_run_adapt_to_what_was_given(given: dict[str, Any], sizes: tuple[Any, ...]) -> None:
    settings = build({"agent": given}).agent.settings
    assert (settings["n_episodes"], settings["batch_size"], settings.get("group_size")) == sizes


def test_an_agent_of_the_users_own_is_configured_as_ours_are(tmp_path: Path, model: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    name = f"{tmp_path}/mine.py:Mine"
    settings = tiny_settings(model)
    settings["agent"] = {"name": name, "iterations": 1, "n_episodes": 8, "group_size": 2}
    config = build(merge(settings, parse_override("agent.my_setting=3"), parse_override("agent.my_word=3")))
    assert (config.agent.settings["my_setting"], config.agent.settings["my_word"]) == (3.0, "3")
    run = run_loop(config, tmp_path / "run", progress=Progress(quiet=True))
    written = json.loads((run.path / "round-1" / "agent.json").read_text())
    assert (written["class"], written["my_setting"], written["my_word"]) == ("Mine", 3.0, "3")
    for override, message in (
        ("agent.my_seting=3", "did you mean 'agent.my_setting'?"), ("agent.my_setting=-1", "must be at least 0, got -1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=re.escape(message)):
            build(merge(settings, parse_override(override)))


MINE = """
from dataclasses import dataclass

from rlhf_gym.agents import RLOO
from rlhf_gym.agents.common.settings import setting
from rlhf_gym.agents.rloo import RLOOSettings


@dataclass(frozen=True, kw_only=True)
class MineSettings(RLOOSettings):
    my_setting: float = setting(1.0, "a number of mine", at_least=0)
    my_word: str = setting("one", "a word of mine")


class Mine(RLOO):
    Settings = MineSettings
"""


def another(key: Key, known: Setting) -> Any:
    """A value that the setting does not have by default, as a configuration would write it."""
    if known.choices:
        return next(choice for choice in known.choices if choice != key.default)
    if known.kind is bool:
        return not key.default
    if known.kind is str:
        return "another"
    low = key.limits.get("at_least", key.limits.get("above", 0))
    high = key.limits.get("at_most", key.limits.get("below", low + 4))
    return int(low) + 2 if known.kind is int else low + (high - low) * 0.37


# What a setting needs beside it, or cannot be: contradictions are refused.
BESIDE: dict[str, dict[str, Any]] = {
    "importance_sampling": {"old_log_probs": "recompute"},
    "kl_gradient": {"kl_in": "loss"}, "kl_importance": {"kl_in": "loss", "kl_estimator": "k3"},
    "clip_range": {"clip_range_high": 5.0}, "kl_target": {"kl_coef": 0.2}, "on_kl_limit": {"kl_limit": 5.0},
    "clip_range_high": {"clip_range": 0.1},
    "dual_clip": {"clip_range": 0.1}, "n_epochs": {"clip_range": 0.1}, "kl_estimator": {"kl_in": "reward"},
    "kl_in": {"kl_estimator": "k2"}, "max_resamples": {"dynamic_sampling": True},
    "keep": {"min_score": 1.0},
}  # fmt: skip
VALUES: dict[str, Any] = {
    "n_episodes": 48, "group_size": 16, "batch_size": 12, "engine": "rlhf_gym.lm.engines.builtin_engine:BuiltinEngine",
}  # fmt: skip


@pytest.fixture(scope="module")
def context(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    folder = tmp_path_factory.mktemp("settings")
    rows = [{"prompt": f"The film {i}", "answer": "was good"} for i in range(10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = merge(tiny_settings(model), {"task": {"prompts": str(folder / "prompts.jsonl")}})
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    return RunContext.of(build(settings), run, Progress(quiet=True))


@pytest.mark.parametrize("agent", AGENTS)
def test_every_setting_of_every_agent_arrives(agent: str, context: RunContext) -> None:
    """From the text of ``--set`` to the agent, through the stage that makes it."""
    described = settings_of(find_agent(agent).Settings)
    configurable = [name for name, known in described.items() if not known.is_argument and name not in SET_ELSEWHERE]
    assert set(configurable) <= set(keys("agent", agent))
    # Workers on Ray need a cluster: tests/test_ray_workers.py has one.
    configurable = [name for name in configurable if not name.startswith("ray") and name != "max_staleness"]
    table = MetricsTable(context.run.metrics_file)
    reward = ProxyAndGold(context.gold, {})
    rows = {
        "sft": ("data", [(f"The film {i}", " was good") for i in range(10)]),
        "preference_optimization": ("preferences", [(f"The film {i}", " was good", " was bad") for i in range(10)]),
        "ilql": ("trajectories", [(f"The film {i}", " was good", i / 2) for i in range(10)]),
    }  # fmt: skip
    given = EncodedData(*rows[agent]) if agent in rows else None
    own = {"name": agent, "n_episodes": 16} | ({"target_column": "answer"} if agent == "sft" else {})
    if agent == "trpo":
        configurable.remove("precision")  # it takes float32 alone
    if agent == "es":  # one step an iteration, and nothing is differentiated; 16 copies are its default
        configurable = [
            n for n in configurable if n not in ("batch_size", "kl_in", "kl_gradient", "kl_importance", "group_size")
        ]
    for name in configurable:
        value = VALUES.get(name, another(keys("agent", agent)[name], described[name]))
        beside = {key: other for key, other in BESIDE.get(name, {}).items() if key in configurable}
        if keys("agent", agent).get("clip_range") and keys("agent", agent)["clip_range"].default is not None:
            beside.pop("clip_range", None)
        overrides = [parse_override(f"agent.{k}={to_yaml(v)}") for k, v in {**beside, name: value}.items()]
        config = build(merge({"agent": own}, *overrides))
        made = make_agent(replace(context, config=config, given=given), 1, table, reward)
        assert getattr(made.settings, name) == value, name
        assert value != keys("agent", agent)[name].default, name


def test_an_entropy_bonus_reaches_the_training_of_a_run(tmp_path: Path, model: Path) -> None:
    rows = []
    for coef in ("0", "5"):
        settings = tiny_settings(model, reward_model={"enabled": False}, evaluation={"prompts": 2})
        settings["agent"] = {"iterations": 2, "n_episodes": 8}
        config = build(merge(settings, parse_override(f"agent.ent_coef={coef}")))
        run = run_loop(config, tmp_path / coef, progress=Progress(quiet=True))
        rows.append(MetricsTable(run.metrics_file).rows)
    assert rows[0][0]["objective/scores"] == rows[1][0]["objective/scores"]  # the same first rollout
    assert rows[0][1]["objective/entropy"] != rows[1][1]["objective/entropy"]


def test_supervised_fine_tuning_learns_the_tasks_targets(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"The film {i}", "answer": "was good"} for i in range(10)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tiny_settings(model, reward_model={"enabled": False}, task={"prompts": str(tmp_path / "prompts.jsonl")})
    settings["agent"] = {
        "name": "sft", "iterations": 4, "n_episodes": 8, "batch_size": 8, "learning_rate": 0.01, "checkpoint_every": 2,
        "target_column": "answer",
    }  # fmt: skip
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    rows_written = MetricsTable(run.metrics_file).rows
    assert float(rows_written[-1]["loss/policy_avg"]) < float(rows_written[0]["loss/policy_avg"])
    assert [float(row["lr"]) for row in rows_written] == [0.01, 0.0075, 0.005, 0.0025]  # by iterations, not timesteps
    del settings["agent"]["target_column"]
    with pytest.raises(TaskError, match=r"has no text in column 'target' to learn from .*its columns: answer"):
        run_loop(build(settings), tmp_path / "other", progress=Progress(quiet=True))
    assert not (tmp_path / "other").exists()
