"""The statistics of benchmarks against numbers worked by hand, and the coverage of their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_gym.bench import estimates
from rlhf_gym.bench.curves import area_under_curve, mean_curve, tokens_to_level
from rlhf_gym.bench.estimates import (
    Estimate,
    holm,
    iqm_interval,
    mean_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    time_to_level,
    with_holm,
)
from rlhf_gym.bench.leaderboard import Leaderboard


def test_a_mean_has_students_interval() -> None:
    # s = 1.581, t(4, 0.975) = 2.776: 3 -+ 2.776 * 1.581 / sqrt(5).
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.value, found.low, found.high) == pytest.approx((3.0, 1.0368, 4.9632), abs=1e-4)
    assert mean_interval([7.0]) == Estimate(7.0)


def test_pairs_differ_by_their_differences() -> None:
    # Differences 1, 2, 3: mean 2, s = 1, t = 2 sqrt(3) = 3.464 with 2 degrees of freedom, p = 0.0742.
    found = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found.estimate.value == 2.0
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert not found.found
    assert "no difference" in found.words
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_difference([2.0] * 5, [1.0] * 5).p == 2.0**-4  # no spread: the sign test
    assert paired_difference([2.0], [1.0]).words.startswith("one pair only")


def test_many_comparisons_are_corrected() -> None:
    # Sorted 0.01 0.02 0.03 0.2 times 4 3 2 1, made monotone.
    assert holm([0.2, 0.01, 0.03, 0.02]) == pytest.approx([0.2, 0.04, 0.06, 0.06])
    pairs = {
        ("a", "b"): paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0]),
        ("a", "c"): paired_difference([1.0], [2.0]),
    }
    corrected = with_holm(pairs)
    assert corrected["a", "b"].adjusted == pytest.approx(0.0742, abs=1e-4)
    assert corrected["a", "c"].adjusted is None


def test_the_interquartile_mean_cuts_a_quarter_at_either_end() -> None:
    strata = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]]
    assert iqm_interval(strata).value == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm_interval([[1.0], [2.0]]) == Estimate(1.5)


def test_the_probability_of_improvement_counts_pairs_and_ties() -> None:
    # First problem: 2 beats 1 and ties with 2: 0.75, 0 beats none: mean 0.375. Second: always better.
    found = probability_of_improvement([[2.0, 0.0], [5.0, 6.0, 7.0]], [[1.0, 2.0], [1.0, 1.0, 1.0]])
    assert found.value == pytest.approx((0.375 + 1) / 2)
    assert found.low is not None
    assert 0 <= found.low <= found.value


def test_runs_that_never_arrive_are_censored() -> None:
    # Kaplan-Meier: 5 at risk at 100 (0.8), 4 at 200 (0.6), two censored at 300, one left at 400 (0).
    assert time_to_level([200, 100, 400], [300, 300]).median == 400.0
    assert time_to_level([100], [300, 300]).median is None  # fewer than half arrive
    assert time_to_level([], [300]) == estimates.TimeToLevel(None, 0, 1)


def test_profiles_count_runs_above() -> None:
    assert [e.value for e in performance_profile([0.1, 0.5, 0.9, 0.9], [0.0, 0.5, 0.9])] == [1.0, 0.5, 0.0]


def test_curves() -> None:
    curve = [[100, 0.0, 0.0], [200, 0.6, 1.0], [300, 0.6, 2.0], [400, 0.9, 4.0]]
    assert tokens_to_level(curve, 0.7) == 400  # the mean of the last three is 0.7
    assert tokens_to_level(curve, 0.8) is None
    # 0 to 100: 0; then 30, 60, 75; then 0.9 to 500.
    assert area_under_curve(curve, 500) == pytest.approx((30 + 60 + 75 + 90) / 500)
    middle = dict(mean_curve([curve, [[100, 1.0, 0.0], [400, 1.0, 0.0]]], points=4))
    assert middle[200.0].value == pytest.approx(0.8)


@pytest.mark.parametrize(("problems", "seeds"), [(1, 3), (1, 5), (3, 3)])
def test_intervals_cover(problems: int, seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 experiments 95% are to hold the truth; the binomial error is 1.3 points."""
    monkeypatch.setattr(estimates, "RESAMPLES", 300)
    rng = np.random.default_rng(0)
    means = iqms = improvements = 0
    for number in range(300):
        a, b = rng.normal(size=(2, problems, seeds))
        mean, iqm = mean_interval(list(a.ravel())), iqm_interval(a.tolist(), seed=number)
        improvement = probability_of_improvement(a.tolist(), b.tolist(), seed=number)
        means += mean.low <= 0 <= mean.high  # type: ignore[operator]
        iqms += iqm.low <= 0 <= iqm.high  # type: ignore[operator]
        improvements += improvement.low is None or improvement.low <= 0.5 <= improvement.high  # type: ignore[operator]
    assert 0.91 <= means / 300 <= 0.99
    assert iqms / 300 >= 0.91
    assert improvements / 300 >= 0.91
    few = probability_of_improvement([[1.0] * seeds] * problems, [[0.0] * seeds] * problems)
    assert (few.low is None) == (problems * seeds < 5)  # three runs give no honest interval


def run(contender: str, seed: int, reward: float, *, status: str = "done", problem: str = "t") -> dict[str, object]:
    metrics = {"reward": reward, "kl": 1.0, "win_rate": 0.5} if status == "done" else {}
    curve = [[50 * i, reward, 0.1 * i] for i in range(1, 5)] if status == "done" else []
    return {
        "part": "test", "problem": problem, "task": "t", "contender": contender, "agent": contender, "seed": seed,
        "status": status, "metrics": metrics, "curve": curve, "tokens": 200, "optimizer_steps": 3, "cpu_seconds": 1.0,
        "budget": 200, "equal": "tokens", "level": 0.5, "error": None,
    }  # fmt: skip


SUITE = {"name": "x", "version": 1, "hash": "h", "tasks": {"t": {"range": [0, 2], "level": 0.5}}}


def test_a_run_that_diverges_counts_at_the_bottom() -> None:
    results = [run("a", 0, 1.0), run("a", 1, 1.0), run("b", 0, 1.2), run("b", 1, 0.0, status="diverged")]
    board = Leaderboard(SUITE, results)
    assert [(s.contender, s.score.value, s.failed) for s in board.standings] == [("a", 0.5, 0), ("b", 0.3, 1)]
    row = next(row for row in board.rows("t") if row.contender == "b")
    assert row.reward.value == pytest.approx(0.6)
    assert (row.level.reached, row.level.n) == (1, 2)  # type: ignore[union-attr]
    assert len(board.failures) == 1


@pytest.mark.parametrize("gain", [0.0, 0.5])
def test_no_difference_is_claimed_between_equals_and_a_real_one_is_found(gain: float) -> None:
    rng, claimed = np.random.default_rng(3), 0
    for _ in range(100):
        noise = rng.normal(scale=0.2, size=(2, 10))
        results = [run("a", s, 1.0 + gain + noise[0, s]) for s in range(10)] + [
            run("b", s, 1.0 + noise[1, s]) for s in range(10)
        ]
        claimed += Leaderboard(SUITE, results).difference("a", "b").found
    assert claimed <= 9 if gain == 0 else claimed >= 95
