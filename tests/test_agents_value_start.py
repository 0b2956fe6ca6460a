"""A value network that starts from a reward model: what it begins with, what a checkpoint keeps, and what is refused."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import assert_same_weights, collected, letters_env, small_agent, small_ppo, weights
from tiny_models import LetterTokenizer, tiny_language_model, tiny_seq2seq
from tiny_run import metrics_table, save_tiny_model, tiny_settings

from rlhf_gym.agents import GRPO, PPO, TRPO
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.reward_model import RewardModel


def reward_model(**options: Any) -> RewardModel:
    model = RewardModel(tiny_language_model(**({"seed": 3, "scale": 4.0} | options)), seed=1)
    model.gain, model.bias = 2.0, 0.5
    return model


@pytest.mark.parametrize("kind", [PPO, TRPO])
def test_values_are_read_off_the_reward_models_trunk_by_a_head_near_zero(kind: Any) -> None:
    start = reward_model()
    options = {} if kind is TRPO else {"value_network": "separate"}
    agent = small_agent(kind, scale=4.0, value_start=start, **options)
    head = agent.policy.value_head
    assert float(head.linear.weight.detach().abs().max()) < 0.01
    with torch.no_grad():
        head.linear.weight.copy_(start.head.weight * start.gain)
        head.linear.bias.copy_(start.head.bias * start.gain + start.bias)
    rollout = collected(agent)  # with the reward model's head, values would be its scores of the text so far
    rows = [e.prompt_ids + e.response_ids for e in rollout.episodes]
    for row, (episode, scores) in enumerate(zip(rollout.episodes, start.prefix_scores(rows), strict=True)):
        first, n = len(episode.prompt_ids) - 1, len(episode.response_ids)
        assert rollout.values[row, :n].tolist() == pytest.approx(scores[first : first + n], abs=1e-4)


def test_the_reward_model_stays_what_it_is_and_the_network_learns() -> None:
    start = reward_model()
    before = {name: p.clone() for name, p in start.language_model.model.state_dict().items()}
    agent = small_ppo(value_network="separate", value_start=start, learning_rate=1e-2)
    first = {k: v for k, v in weights(agent).items() if k.startswith("value_network.")}
    for name, weight in first.items():
        assert torch.equal(weight, start.language_model.trunk.state_dict()[name.removeprefix("value_network.")])
    agent.learn(200)
    assert_same_weights(dict(start.language_model.model.state_dict()), before)
    assert any(not torch.equal(weights(agent)[name], weight) for name, weight in first.items())


def test_a_checkpoint_does_not_need_the_reward_model(tmp_path: Path) -> None:
    reward_model().save(tmp_path / "reward_model")
    path = tmp_path / "reward_model"
    whole = small_ppo(value_network="separate", value_start=reward_model())
    whole.learn(600)
    half = small_ppo(value_network="separate", value_start=reward_model())
    half.learn(300)
    half.save(tmp_path / "half")
    resumed = PPO.load(tmp_path / "half", env=letters_env())
    assert resumed.settings == half.settings
    resumed.learn(600 - resumed.num_timesteps, reset_num_timesteps=False)
    assert_same_weights(weights(resumed), weights(whole))
    with pytest.raises(ConfigError, match="value_start out"):
        PPO.load(tmp_path / "half", env=letters_env(), value_start=path)
    by_path = small_ppo(value_network="separate", value_start=path)
    assert by_path.settings.value_start == str(path)
    again = small_ppo(value_network="separate", value_start=reward_model())
    assert_same_weights(weights(by_path), weights(again))


@pytest.mark.parametrize(
    ("start", "options", "message"),
    [
        (reward_model, {"value_network": "shared"}, "give value_network='separate', or leave it out"),
        (
            lambda: reward_model(hidden=16),
            {},
            r"the trunk of the reward model \(GPT2LMHeadModel, width 16\) is not built as",
        ),
        (
            lambda: reward_model(kind="llama"),
            {},
            r"\(LlamaForCausalLM, width 32\) is not built as the policy's \(GPT2LMHead",
        ),
        (lambda: reward_model(layers=1), {}, "is not built as the policy's"),
        (reward_model, {"language_model": tiny_seq2seq()}, "is not built as the policy's"),
        (reward_model, {"lora": {"rank": 2}}, "value_start with lora would take a second base"),
        (lambda: 3, {}, "value_start must be a reward model or its folder, got int"),
    ],
)
def test_what_does_not_fit_is_refused(start: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_ppo(**{"value_network": "separate", "value_start": start()} | options)


def test_other_ids_and_missing_folders_are_refused(tmp_path: Path) -> None:
    start = reward_model()
    other = LetterTokenizer()
    other.encode = lambda text: [2 + (ord(c) - 96) % 26 for c in text]  # type: ignore[method-assign]
    start.language_model.tokenizer = other
    with pytest.raises(ConfigError, match="the tokenizers of the reward model"):
        small_ppo(value_network="separate", value_start=start)
    with pytest.raises(ModelError, match="there is no reward model in"):
        small_ppo(value_network="separate", value_start=tmp_path / "none")
    with pytest.raises(ConfigError, match="GRPO has no value_start: it learns without a value function"):
        small_agent(GRPO, value_start=reward_model())


def test_a_run_starts_the_value_network_from_the_rounds_reward_model(tmp_path: Path) -> None:
    agent = {"value_network": "separate", "value_start": "reward_model"}
    settings = tiny_settings(save_tiny_model(tmp_path / "model"), agent=agent)
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    written = json.loads((run.path / "round-1" / "agent.json").read_text())
    assert written["value_start"] == str(run.path / "round-1" / "reward_model")
    rows = [line.split(",") for line in metrics_table(run.path).splitlines()]
    settings["agent"]["value_start"] = "policy"
    other = run_loop(build(settings), tmp_path / "other", progress=Progress(quiet=True))
    others = [line.split(",") for line in metrics_table(other.path).splitlines()]
    column = rows[0].index("train/explained_variance")
    assert rows[1][column] != others[1][column]
    assert rows[1][:column][3:5] == others[1][:column][3:5]  # the same responses, differently valued


@pytest.mark.parametrize(
    ("agent", "others", "message"),
    [
        ({"value_start": "reward_model"}, {}, "give agent.value_network separate"),
        ({"name": "grpo", "value_start": "reward_model"}, {}, "GRPO has no value_start: it learns without a value"),
        (
            {"value_network": "separate", "value_start": "reward_model"}, {"reward_model": {"enabled": False}},
            "agent.value_start reward_model needs a reward model",
        ),
        (
            {"value_network": "separate", "value_start": "reward_model"}, {"model": {"lora": {"rank": 2}}},
            "agent.value_start reward_model does not go with model.lora",
        ),
    ],
)  # fmt: skip
def test_a_run_refuses_before_it_begins(
    tmp_path: Path, agent: dict[str, Any], others: dict[str, dict[str, Any]], message: str
) -> None:
    settings = tiny_settings(save_tiny_model(tmp_path / "model"), agent={"n_episodes": 32, **agent})
    for section, values in others.items():
        settings.setdefault(section, {}).update(values)
    with pytest.raises(ConfigError, match=message):
        run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_comparison_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "value_start.py"
    RewardModel(LanguageModel.load("embedded", device="cpu")).save(tmp_path / "reward_model")
    options = [str(tmp_path / "reward_model"), "--seeds=3", "--iterations=1", "--episodes=16"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    runpy.run_path(str(script), run_name="__main__")
    assert [line.split(" | ")[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["| 3", start] for start in ("policy", "trunk", "head")
    ]
