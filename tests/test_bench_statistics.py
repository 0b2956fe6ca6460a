"""The statistics of benchmarks against numbers worked by hand, and the coverage of their intervals."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym.bench import estimates
from rlhf_gym.bench.compare import compare_sides
from rlhf_gym.bench.curves import area_under_curve, mean_curve, points_within, tokens_to_level
from rlhf_gym.bench.equal_kl import at_equal_kl, frontier, mean_frontier, mean_gap
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
from rlhf_gym.bench.plots import frontier_plot


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


def test_points_lie_within_the_others_interval_or_not() -> None:
    # At 0, 50, 100 tokens the first has 0 and 2: 1 -+ 12.706 * 1.414 / sqrt(2) = -11.7 to 13.7. The second's mean: 1, 11, 21.
    first = [[[0, 0.0, None], [100, 0.0, None]], [[0, 2.0, None], [100, 2.0, None]]]
    second = [[[0, 0.0, None], [200, 40.0, None]], [[0, 2.0, None], [200, 42.0, None]], []]
    found = points_within(first, second, points=3)
    assert found is not None
    assert (found.within, found.points) == (2, 3)
    # n1 = n2 = 2: t(1) is Cauchy's, 2 / pi * atan(12.706 / sqrt(2)) = 0.929.
    assert found.expected == pytest.approx(0.929, abs=1e-3)
    assert points_within(first[:1], second) is None  # one seed has no interval
    assert points_within(first, [[]]) is None
    late = [[[300, 0.0, None], [400, 0.0, None]]]
    assert points_within(first, late) is None  # no tokens in common


def test_as_many_points_of_equals_lie_within_as_is_said() -> None:
    rng, within, expected = np.random.default_rng(1), 0, 0.0
    for _ in range(400):
        curves = [[[0, value, None], [1, value, None]] for value in rng.normal(size=8)]
        found = points_within(curves[:5], curves[5:], points=2)
        assert found is not None
        within, expected = within + found.within // 2, found.expected
    assert within / 400 == pytest.approx(expected, abs=0.05)  # five seeds against three


def test_rewards_go_by_kl() -> None:
    # First alone, the first two, then threes; KL falls at the end: (0, 0) (1, 1) (2, 2) and (3 + 4 + 2) / 3 = (3, 5).
    curve = [[1, 0.0, 0.0], [2, 2.0, 2.0], [3, 4.0, 4.0], [4, 9.0, 3.0], [5, None, 9.0], [6, 1.0, None]]
    found = frontier(curve)
    assert found is not None
    assert found[0].tolist() == [0, 1, 2, 3]
    assert found[1].tolist() == [0, 1, 2, 5]
    # One and the same KL: the mean of 1, (1 + 3) / 2 and (1 + 3 + 8) / 3.
    flat = frontier([[1, 1.0, 2.0], [2, 3.0, 2.0], [3, 8.0, 2.0]])
    assert flat is not None
    assert flat[0].tolist() == [2]
    assert flat[1].tolist() == pytest.approx([(1 + 2 + 4) / 3])
    assert frontier([]) is None
    assert mean_frontier([curve, [[1, 1.0, 1.0]]]) == []  # no common range
    # Over 0 to 3 nats, evenly over the root: 0, 0.75, 3.
    middle = mean_frontier([curve, [[1, 0.0, 0.0], [2, 4.0, 8.0]]], points=3)
    assert middle == [(0.0, 0.0), pytest.approx((0.75, (0.75 + 0.375) / 2)), pytest.approx((3.0, (5 + 1.5) / 2))]


def test_runs_differ_at_equal_kl_by_the_area_between_them() -> None:
    # A falls from 4 to 0 over 0..4 nats, B rises from 0 at 1 to 3 at 2 and stays. Over 1..4: A 3 to 0, area 4.5; B 1.5 + 6.
    a = np.array([0.0, 4.0]), np.array([4.0, 0.0])
    b = np.array([1.0, 2.0, 8.0]), np.array([0.0, 3.0, 3.0])
    assert mean_gap(a, b) == (pytest.approx((4.5 - 7.5) / 3), (1.0, 4.0))
    point = np.array([1.0]), np.array([5.0])  # best-of-n
    assert mean_gap(point, a) == (2.0, (1.0, 1.0))
    assert mean_gap(a, (np.array([5.0, 6.0]), np.array([0.0, 0.0]))) is None


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


def run(
    contender: str,
    seed: int,
    reward: float,
    *,
    status: str = "done",
    problem: str = "t",
    kls: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    """A run; with ``kls`` its rewards rise from 0 to ``reward`` along them, and its KL at the end is the last."""
    metrics = {"reward": reward, "kl": kls[-1] if kls else 1.0, "win_rate": 0.5} if status == "done" else {}
    curve: list[list[float]] = [[50 * i, reward, 0.1 * i] for i in range(1, 5)] if status == "done" else []
    if kls is not None:
        last = len(kls) - 1
        curve = [[50 * i, reward * i / last, kl] for i, kl in enumerate(kls)] if last else []
    return {
        "part": "test", "problem": problem, "task": "t", "contender": contender, "agent": contender, "seed": seed,
        "status": status, "metrics": metrics, "curve": curve, "tokens": 200, "optimizer_steps": 3, "cpu_seconds": 1.0,
        "budget": 200, "equal": "tokens", "level": 0.5, "error": None, "schema": 1, "run_id": f"{problem}{contender}{seed}",
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


def test_contenders_are_compared_at_equal_kl(tmp_path: Path) -> None:
    # Of two points a run's path goes from (0, 0) to (kl / 2, reward / 2). A has 1 a nat, 1.5 in seed 1; B 0.5 a nat. Both reach
    # 1 nat: the mean of (1 - 0.5) k over 0..1 is 0.25, in seed 1 0.5; scores have half that, for the range is 0..2.
    results = [
        run("a", 0, 2.0, kls=(0.0, 2.0)),
        run("a", 1, 3.0, kls=(0.0, 2.0)),
        run("a", 2, 0.0, status="diverged", kls=(1.0,)),
    ]
    results += [run("b", seed, 2.0, kls=(0.0, 4.0)) for seed in range(3)]
    results += [run("best", seed, 1.0, kls=(kl,)) for seed, kl in enumerate((1.0, 9.0, 9.0))]
    results += [run("far", seed, 1.0, problem="u", kls=(5.0, 7.0)) for seed in range(3)]
    results += [run("near", seed, 1.0, problem="u", kls=(0.0, 1.0)) for seed in range(3)]
    suite = {**SUITE, "tasks": {"t": {"range": [0, 2]}, "u": {"range": [0, 1]}}}
    board = Leaderboard(suite, results)
    found = at_equal_kl(board, "a", board, "b")
    assert found.difference is not None
    assert (found.difference.estimate.value, found.difference.n) == (pytest.approx((0.125 + 0.25) / 2), 2)
    assert (found.span, found.compared, found.apart, found.unknown) == ((0.0, 1.0), 2, 0, 1)
    turned = at_equal_kl(board, "b", board, "a").difference
    assert turned is not None
    assert turned.estimate.value == -found.difference.estimate.value
    # Best-of-n stands at 1 nat with reward 1, b has 0.5 there; a fails, or stops at 1 nat, far from 9.
    best = at_equal_kl(board, "best", board, "b")
    assert best.difference is not None
    assert (best.difference.estimate.value, best.compared, best.apart) == (0.25, 1, 2)
    assert best.single == (True, False)
    far = at_equal_kl(board, "far", board, "near")
    assert (far.difference, far.apart, far.reached) == (None, 3, ((5.0, 6.0), (0.0, 0.5)))

    (tmp_path / "suite.json").write_text(json.dumps(suite))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    words = compare_sides(f"{tmp_path}:a", f"{tmp_path}:b")
    assert "t: 0.188 [-0.607, 0.982], p 0.205, 2 seeds: no difference" in words
    assert "(0.00 to 1.00 nats; 1 left out, a run has no KL)" in words
    # Student's interval of A's two curves, 0 to 1 and 0 to 1.5 at 50 tokens, holds B's 0 to 1.
    assert "points of B's learning curves within A's interval at the same tokens: t 24 of 24" in words
    words = compare_sides(f"{tmp_path}:best", f"{tmp_path}:b")
    assert (
        "t: 0.250, 1 seed: one pair only: nothing can be said (at 1.00 nats; 2 of 3 pairs have no KL in common)"
        in words
    )
    assert "A has no learning curve over KL: best stands at its test reward" in words
    words = compare_sides(f"{tmp_path}:far", f"{tmp_path}:near")
    assert "u: no KL that both reached, A 5.00 to 6.00 nats, B 0.00 to 0.50 nats" in words


def test_contenders_on_one_frontier_are_not_told_apart_at_equal_kl() -> None:
    """Of two that go along one curve, one twice as far, the ends differ; at equal KL one in twenty comparisons is claimed."""
    rng, ends, claimed = np.random.default_rng(5), 0, 0
    for _ in range(60):
        results = []
        for name, far in (("a", 4.0), ("b", 2.0)):
            for seed in range(8):
                kls = np.abs(np.linspace(0, far, 20) + rng.normal(scale=0.1, size=20))
                curve = [[i, kl**0.5 + rng.normal(scale=0.2), kl] for i, kl in enumerate(kls.tolist())]
                results.append({**run(name, seed, far**0.5 + rng.normal(scale=0.1)), "curve": curve})
        board = Leaderboard(SUITE, results)
        difference = at_equal_kl(board, "a", board, "b").difference
        assert difference is not None
        ends, claimed = ends + board.difference("a", "b").found, claimed + difference.found
    assert ends == 60
    assert claimed <= 9


def test_a_plot_of_reward_and_kl_stays_readable_with_many_contenders_and_one_far_away() -> None:
    names = [f"agent_{i:02}" for i in range(24)]
    results = [run(name, seed, 1.0, kls=(0.0, 2.0 + seed)) for name in names for seed in range(2)]
    results[-1] = run(names[-1], 1, 1.0, kls=(400.0,))
    svg = str(frontier_plot(Leaderboard(SUITE, results), "t"))
    assert "1 run beyond" in svg
    assert ">100<" not in svg  # no tick out there
    assert svg.count('class="line') == 24  # each contender's course
    heights = sorted(float(y) for y in re.findall(r'class="end c\d+" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(heights) == 24
    assert all(after - before >= 13.99 for before, after in pairwise(heights))
    assert heights[-1] <= float(re.findall(r'viewBox="0 0 560 (\d+)"', svg)[0])
