"""Accuracy by number of labels and what more would give; the fitted rater and the curve on a run's report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.cli.main import main
from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.report import write_report
from rlhf_gym.loop.report.run_data import read_run
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.raters.fitted import FittedRater
from rlhf_gym.reward_model.label_curve import label_curve

D = 48


def simulated(
    count: int, seed: int, *, informative: bool = True
) -> tuple[list[Preference], dict[tuple[str, str], Any]]:
    """Comparisons by a Boltzmann rater whose reward is linear in 48 features, and the features of their texts."""
    weights = np.random.default_rng(0).normal(size=D) / np.sqrt(D) * 1.5 * informative
    rng = np.random.default_rng(seed)
    features, found = {}, []
    for i in range(count):
        a, b = rng.normal(size=(2, D))
        features[f"p{i}", "a"], features[f"p{i}", "b"] = a, b
        first = int(rng.random() < 1 / (1 + np.exp(-(a - b) @ weights)))
        found.append(Preference(prompt=f"p{i}", chosen="ba"[first], rejected="ab"[first], query_id=str(i)))
    return found, features


def test_the_interval_holds_what_more_labels_really_give() -> None:
    # Measured with 24 fits of each size judged on 20,000 comparisons: from 300 labels on, 111 more give a point. All of 40
    # intervals held it.
    preferences, features = simulated(300, 1)
    curve = label_curve(preferences, lambda texts: torch.tensor(np.array([features[text] for text in texts])))
    assert curve.more_low <= 111 <= curve.more_high
    assert [point.n for point in curve.points] == sorted(point.n for point in curve.points)
    assert curve.points[-1].n == 225
    assert 0.66 < curve.accuracy < 0.78
    assert all(point.low <= point.accuracy <= point.high for point in curve.points)
    assert "one more point of accuracy takes" in curve.as_text()
    # A ranking's answer gives several comparisons.
    of_rankings = label_curve(
        preferences, lambda texts: torch.tensor(np.array([features[t] for t in texts])), n_answers=100
    )
    assert (of_rankings.per_answer, of_rankings.in_answers(30)) == (3.0, 10.0)


def test_labels_that_say_nothing_promise_nothing() -> None:
    preferences, features = simulated(120, 2, informative=False)
    curve = label_curve(preferences, lambda texts: torch.tensor(np.array([features[text] for text in texts])))
    assert math.isinf(curve.more_high)
    assert curve.as_dict()["more_high"] is None  # JSON has no infinity
    assert "no bound" in curve.verdict() or "more than 10 times" in curve.verdict()
    with pytest.raises(FeedbackError, match="at least 40 prompts, got 30"):
        label_curve(preferences[:30], lambda texts: torch.zeros(len(texts), D))


def test_fitted_rater_and_curve_are_on_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tiny_settings(
        save_tiny_model(tmp_path / "model"),
        sampling={"prompts": 50, "batch_size": 50},
        rater={
            "query_type": "pair",
            "population": 3,
            "overlap": 2,
            "tastes": {"length": 0.5},
            "unit": "standard_deviation",
        },
    )
    run = run_loop(build(settings), tmp_path / "run", progress=Progress(quiet=True), stages=("sample", "label"))
    given = ["fit-rater", str(run.path), "--resamples", "2", "--quiet"]
    assert main([*given, "--rerun"]) == 0
    said = capsys.readouterr().out
    assert "the same loop with the fitted rater:" in said
    other = read_run(run.path).fitted_run
    assert other is not None
    assert (other.setting("rater.overlap"), other.labels) == (2, 100)
    assert main([*given, "--rerun"]) == 0  # it is there
    assert len([*(run.path / "fitted_runs").glob("*.json")]) == 1
    capsys.readouterr()
    assert "fitted to 100 answers of 3 raters about" in said
    assert "accuracy of a head on the frozen trunk, by labels" in said
    page = (run.path / "report.html").read_text()
    for part in (
        "Simulation and people",
        "rao_kupper_theta",
        "Calibration of the fitted rater",
        "Accuracy by number of labels",
    ):
        assert part in page
    fitted = FittedRater.load(run.path / "fitted_rater.json")
    assert fitted.n_answers == 100
    assert json.loads((run.path / "label_curve.json").read_text())["per_answer"] == 1.0
    (run.path / "fitted_rater.json").write_text("{}")
    write_report(run.path)
    page = (run.path / "report.html").read_text()
    assert "holds no fitted rater" in page
    assert "Calibration of the fitted rater" not in page
    arguments = ["fit-reward", str(run.path), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "rm")]
    assert main([*arguments, "--label-curve", "--quiet"]) == 0
    assert "one more point of accuracy takes" in capsys.readouterr().out
    assert "points" in json.loads((tmp_path / "rm" / "fit.json").read_text())["label_curve"]
