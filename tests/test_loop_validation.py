"""Evaluation during a run's training: prompts of its own, the best policy, an early end, a kill in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_run import metrics_table, save_tiny_model, tiny_settings

from rlhf_gym.agents import PPO
from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.fresh_labels import FreshLabels
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report.page import render
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.loop.run_directory import RunDirectory
from rlhf_gym.loop.summary import summary
from rlhf_gym.loop.train import train
from rlhf_gym.loop.train_reward import ProxyAndGold


def test_a_run_ends_with_the_best_policy_and_the_report_says_so(tmp_path: Path) -> None:
    settings = tiny_settings(
        save_tiny_model(tmp_path / "model"), reward_model={"enabled": False}, agent={"iterations": 6, "learning_rate": 0.02},
        evaluation={"every": 1, "validation_prompts": 6, "final": "best", "patience": 2}, log={"completions": 0},
    )  # fmt: skip
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True))
    folder = run.round(1)
    lines = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    training = json.loads((folder / "training.json").read_text())
    best = max(lines, key=lambda line: line["gold"])
    assert training["best"] == best
    assert training["policy_of"] == best["iteration"] == len(lines) - 2  # patience
    assert training["iterations"] == len(lines) < 6
    table = [line.split(",") for line in metrics_table(run.path).splitlines()]
    column = table[0].index("validation/gold")
    assert [float(row[column]) for row in table[1:]] == pytest.approx([line["gold"] for line in lines])

    context = RunContext.of(run.config(), run, Progress(quiet=True))
    texts = [{p.text for p in part} for part in (context.task.prompts, context.validation, context.task.held_out)]
    assert len(texts[1]) == 6
    assert not (texts[0] & texts[1])
    assert not (texts[1] & texts[2])
    kept: Any = PPO.load(folder / "best.zip", device="cpu", reference=context.reference)
    assert kept.iteration == best["iteration"]
    tuned = context.policy(1).model.state_dict()
    assert all((value == tuned[name]).all() for name, value in kept.policy.language_model.model.state_dict().items())

    data = read_run(run.path)
    (sentence,) = data.endings
    assert "ended early" in sentence
    assert f"policy of iteration {best['iteration']} of {len(lines)}" in sentence
    assert sentence.split(":")[0] in render(data)
    assert "Gold reward, validation prompts" in render(data)
    assert sentence in summary(run.path)

    (folder / "validation.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*lines, {**best, "iteration": 99}])
    )
    train(context, 1)  # after a kill behind the last checkpoint: nothing is trained again
    assert json.loads((folder / "training.json").read_text()) == training


def test_training_stops_where_fresh_labels_or_the_kl_say_so(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    watched = {"every": 1, "validation_prompts": 8, "fresh_labels": 8, "best_of": 0}
    settings = tiny_settings(
        model, evaluation={**watched, "stop_above": {"label_gap": -1.01}}, log={"completions": 0},
        rater={"population": 3, "overlap": 2}, sampling={"prompts": 8},
    )  # fmt: skip
    run = run_loop(build(settings), tmp_path / "gap", progress=Progress(quiet=True))
    (line,) = [json.loads(line) for line in (run.round(1) / "validation.jsonl").read_text().splitlines()]
    training = json.loads((run.round(1) / "training.json").read_text())
    assert training["iterations"] == 1  # of 4: every gap is above -1.01
    assert "validation/label_gap is" in training["stopped"]
    assert "(stop_above)" in training["stopped"]
    assert -1 <= line["label_gap_low"] <= line["label_gap"] <= 1
    assert line["labels"] == 8
    with FeedbackStore(run.round(1) / "fresh_labels.sqlite", read_only=True) as store:
        assert store.count().queries == 8  # two raters each
        assert len(store.answers()) == 16
        fresh = {judgement.id for _, judgement in store.answers()}
    with FeedbackStore(run.store_file, read_only=True) as store:
        assert not fresh & {judgement.id for judgement in store.judgements()}  # they measure, and are not learned from
    # The gap is the proxy's win rate less the rater's, on the same pairs.
    context = RunContext.of(run.config(), run, Progress(quiet=True))
    proxy = ProxyAndGold(context.proxy(1), {})
    found = FreshLabels(context, 1, proxy)([p.text for p in context.validation])
    liked = FreshLabels(context, 1, ProxyAndGold(lambda prompts, responses: [0.0] * len(prompts), {}))
    assert liked([p.text for p in context.validation])["label_gap"] == pytest.approx(0.5 - found["label_win_rate"])
    # The KL of an untrained policy is 0, and it rises.
    limited = {"every": 1, "validation_prompts": 4, "stop_above": {"kl": 0.0}, "best_of": 0}
    settings = tiny_settings(
        model,
        evaluation=limited,
        reward_model={"enabled": False},
        agent={"learning_rate": 0.02},
        log={"completions": 0},
    )
    run = run_loop(build(settings), tmp_path / "kl", progress=Progress(quiet=True))
    assert "validation/kl is" in json.loads((run.round(1) / "training.json").read_text())["stopped"]


def test_what_needs_an_evaluation_during_training_is_refused_without_one(tmp_path: Path) -> None:
    for given in ({"final": "best"}, {"stop_at": 1.0}, {"patience": 3}, {"stop_above": {"kl": 1}}, {"fresh_labels": 2}):
        with pytest.raises(ConfigError, match=r"evaluation\.\w+( best)? need an evaluation during training"):
            build({"evaluation": given})
    measured = {"every": 2, "fresh_labels": 8}
    for sections, message in (
        ({"evaluation": {"every": 2, "stop_above": {"label_gap": 0.1}}}, "give evaluation.fresh_labels"),
        ({"evaluation": {**measured, "validation_prompts": 4}}, "give more of those, or fewer labels"),
        ({"evaluation": measured, "reward_model": {"enabled": False}}, "reward_model.enabled is false"),
        ({"evaluation": measured, "rater": {"name": "web"}}, "needs a rater who answers at once"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(sections)
    assert isinstance(build({"evaluation": {"every": 2, "stop_at": 1.0}}).evaluation.every, int)
    assert not RunDirectory(tmp_path).round(1).joinpath("training.json").exists()
