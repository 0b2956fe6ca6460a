"""`bench tune`: on validation prompts and seeds of its own, every trial kept, resumed; what it finds is what a run takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from bench_suite import SUITE, Kept

from rlhf_gym.bench.cells import Selection
from rlhf_gym.bench.results import ResultsFolder
from rlhf_gym.bench.suite import load_suite, load_tuned, parse_suite
from rlhf_gym.bench.tuning import FIRST_SEED, check_search, score, tune, without_search
from rlhf_gym.errors import ConfigError


def test_a_search_is_kept_goes_on_and_is_taken_by_a_run(tmp_path: Path) -> None:
    suite = parse_suite(SUITE, "tiny")
    selection = Selection.of(suite, agents=["ppo"])
    best = tune(selection, tmp_path, Kept(), trials=1, seeds=1)
    assert 0.001 <= best["ppo"]["learning_rate"] <= 0.01
    again, best = Kept(), tune(selection, tmp_path, Kept(), trials=1, seeds=1)
    tune(selection, tmp_path, again, trials=2, seeds=1)
    assert len(again.begins) == 1  # one trial more, and none again
    trials = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [trial["state"] for trial in trials] == ["complete", "complete"]
    results = ResultsFolder(tmp_path).read()
    assert {(r["part"], r["seed"]) for r in results} == {("validation", FIRST_SEED)}
    assert sorted(t["settings"]["learning_rate"] for t in trials) == sorted(
        r["settings"]["learning_rate"] for r in results
    )
    found = max(trials, key=lambda trial: trial["score"])["settings"]
    tuned = load_tuned(tmp_path / "tuned.yaml")
    cells = [c for c in Selection.of(suite, agents=["ppo"], tuned=tuned).cells() if c.contender == "ppo"]
    assert {cell.settings["learning_rate"] for cell in cells} == {found["learning_rate"]}
    assert {cell.seed for cell in cells} == {0, 1}


def test_what_is_tried_must_be_written_as_a_space(tmp_path: Path) -> None:
    suite = parse_suite(SUITE, "tiny")
    with pytest.raises(ConfigError, match=r"suite 'tiny' has no `search` for grpo: say there"):
        tune(Selection.of(suite, agents=["grpo"]), tmp_path / "new", Kept())
    assert not (tmp_path / "new").exists()
    assert without_search(Selection.of(suite, agents=["grpo", "ppo"])) == ["grpo"]
    assert without_search(Selection.of(suite, agents=["ppo"])) == []
    searched = [name for name, entrant in load_suite("smoke").agents.items() if entrant.search]
    assert searched == ["ppo", "grpo", "rloo", "reinforce", "sft_best"]  # as docs/bench.md tunes it
    for space in ({"low": 2, "high": 1}, {"lo": 1}, [], 3):
        with pytest.raises(ConfigError, match=r"search of ppo.n_epochs"):
            check_search("ppo", {"n_epochs": space})
    check_search("ppo", {"n_epochs": [1, 2], "learning_rate": {"low": 0.1, "high": 1, "log": True}})
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"agent": {}}))
    with pytest.raises(ConfigError, match="no file of contenders"):
        load_tuned(tmp_path / "bad.yaml")


def test_a_trials_score_pays_for_its_kl() -> None:
    suite = parse_suite(SUITE, "tiny")
    cell = next(c for c in Selection.of(suite).cells() if c.contender == "ppo")
    assert score(suite, cell, {"status": "done", "metrics": {"reward": 0.5, "kl": 10.0}}) == pytest.approx(
        0.5 - 0.01 * 10
    )
    assert score(suite, cell, {"status": "diverged", "metrics": {}}) == 0
