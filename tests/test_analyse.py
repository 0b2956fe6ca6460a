"""Fits of reward against KL: parameters that made the points are found again, and what cannot be fitted is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fake_run import build_run

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.analyse import analyse
from rlhf_gym.loop.report.scaling_laws import Form, fit, gain, mean_over_runs


@pytest.mark.parametrize("form", ["RL", "best-of-n"])
def test_parameters_are_found_again_and_intervals_hold_them(form: Form) -> None:
    rng = np.random.default_rng(0)
    d = np.linspace(0.2, 4, 60)
    exact = fit(form, "gold", [(x, gain(form, x, 0.9, 0.3)) for x in d])
    assert exact is not None
    assert (exact.alpha.value, exact.beta.value) == pytest.approx((0.9, 0.3))
    assert exact(2.0) == pytest.approx(gain(form, 2.0, 0.9, 0.3))
    peak = math.exp(0.9 / 0.3 - 1) if form == "RL" else 0.9 / 0.3 / 2
    assert exact.peak_kl == (None if form == "RL" else pytest.approx(peak**2))  # 7.4 is beyond the points
    assert exact.farthest_kl == pytest.approx(16)
    far = fit(form, "gold", [(2 * x, gain(form, 2 * x, 0.9, 0.3)) for x in d])
    assert far is not None
    assert far.peak_kl == pytest.approx(peak**2)
    held = np.zeros(3)
    for _ in range(200):
        noisy = fit(form, "gold", [(x, gain(form, x, 0.9, 0.3) + rng.normal(0, 0.2)) for x in d])
        assert noisy is not None
        (low, high), (first, last) = noisy.interval(2.0), noisy.peak_interval
        held += (
            noisy.beta.low <= 0.3 <= noisy.beta.high,
            low <= gain(form, 2.0, 0.9, 0.3) <= high,
            first <= peak**2 <= last,
        )
    assert ((held / 200 >= 0.9) & (held / 200 <= 0.995)).all()


def test_what_is_not_determined_is_not_fitted() -> None:
    assert fit("RL", "gold", [(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]) is None
    assert fit("RL", "gold", [(2.0, 0.2)] * 9) is None
    rises = fit("RL", "proxy", [(x, gain("RL", x, 1.0, -0.2)) for x in (0.5, 1.0, 2.0, 3.0)])
    assert rises is not None
    assert rises.peak_kl is None
    assert rises.peak_interval[1] == math.inf
    falls = fit("RL", "gold", [(x, gain("RL", x, -1.0, -0.2)) for x in (0.5, 1.0, 2.0, 3.0)])
    assert falls is not None
    assert (falls.peak_kl, falls.peak) == (0.0, "falls from the reference on")
    three = mean_over_runs([1.0, 2.0, 3.0])
    assert (three.value, three.high - three.value) == pytest.approx((2.0, 4.302653 / math.sqrt(3)))


def test_runs_are_analysed_one_by_one_and_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(build_run(tmp_path / f"run-{seed}", seed=seed)) for seed in (1, 2)]
    assert main(["analyse", *runs, "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert out.count("gold  RL") == 3
    assert "mean over runs" in out
    found = json.loads((tmp_path / "out.json").read_text())
    gold = found["runs"][0]["fits"][0]
    assert (gold["reward"], gold["form"]) == ("gold", "RL")
    assert gold["beta"]["low"] > 0  # fake_run's gold turns over
    assert {row["runs"] for row in found["means"]} == {2}
    picture = tmp_path / "fits.svg"
    assert main(["analyse", *runs, "--plot", str(picture)]) == 0
    assert picture.read_text().count("<polyline") == 12  # 4 of each run, and 4 means
    assert main(["analyse", *runs, "--plot", str(tmp_path / "fits.pdf")]) == 2
    few = build_run(tmp_path / "few", iterations=1)
    assert main(["analyse", str(few)]) == 0
    assert "training is not fitted: 2 points" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="nothing to fit"):
        analyse([build_run(tmp_path / "agent", stage="agent")])
    assert main(["analyse", str(tmp_path / "none")]) == 2
