"""Choice models against numbers worked by hand, against one another, and the simulated rater against the models."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import Judgement, Query
from rlhf_gym.raters import SimulatedRater
from rlhf_gym.raters import choice_models as cm
from rlhf_gym.study.agreement import (
    accuracy_from_agreement,
    beta_for_accuracy,
    beta_for_agreement,
)

N = 2500


def as_number(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response) for response in responses]


def judge(responses: tuple[str, ...], query_type: Any = "pair", n: Any = N, **knobs: Any) -> list[Judgement]:
    queries = [Query(prompt="p", responses=responses, query_type=query_type, index=i) for i in range(n)]
    rater = SimulatedRater(as_number, seed=7, **knobs)
    return rater.collect(rater.submit(queries))


def assert_frequency(hits: int, probability: float) -> None:
    """Within five standard deviations of the binomial (and the seed is fixed: it passes always or never)."""
    deviation = math.sqrt(N * max(probability * (1 - probability), 1 / N))
    assert abs(hits - N * probability) <= 5 * deviation, (
        f"{hits} of {N}, expected {N * probability:.0f} ± {deviation:.0f}"
    )


def test_boltzmann_by_hand() -> None:
    assert cm.boltzmann(math.log(3), 0.0, beta=1.0) == pytest.approx(0.75)  # odds of 3 to 1
    assert cm.boltzmann(0.0, math.log(3), beta=2.0) == pytest.approx(0.1)  # odds of 1 to 9
    assert cm.boltzmann([1.0, 0.0, 0.0], [0.0, 0.0, 1.0], beta=math.inf).tolist() == [1.0, 0.5, 0.0]
    assert cm.boltzmann([5.0, -5.0], 0.0, beta=0.0).tolist() == [0.5, 0.5]
    assert cm.boltzmann([1e6, -1e6], 0.0, beta=1e6).tolist() == [1.0, 0.0]  # no overflow


def test_thurstone_by_hand() -> None:
    assert cm.thurstone(math.sqrt(2), 0.0, sigma=1.0) == pytest.approx(0.841344746)  # Phi(1)
    assert cm.thurstone(0.0, 2 * math.sqrt(2) * 1.959963985, sigma=2.0) == pytest.approx(0.025)
    assert cm.thurstone([1.0, 0.0], 0.0, sigma=0.0).tolist() == [1.0, 0.5]
    # The normal and the logistic curve are at most .0095 apart at this slope (Camilli 1994).
    gaps = np.linspace(-6, 6, 1001)
    apart = cm.thurstone(gaps, 0.0, sigma=1 / math.sqrt(2)) - cm.boltzmann(gaps, 0.0, 1.702)
    assert 0.0090 < np.abs(apart).max() < 0.0096


def test_errors_by_hand() -> None:
    assert cm.with_errors([0.9, 0.5, 0.0], 0.2).tolist() == pytest.approx([0.82, 0.5, 0.1])
    assert cm.with_errors(1.0, 0.5) == pytest.approx(0.75)  # AlpacaFarm: half made coins, a quarter flipped
    assert cm.with_errors(1.0, 0.3, choices=3) == pytest.approx(0.8)


def test_plackett_luce_by_hand() -> None:
    rewards = np.log([4.0, 2.0, 1.0])
    assert cm.plackett_luce_choice(rewards, beta=1.0) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert cm.plackett_luce(rewards, [1, 0, 2], beta=1.0) == pytest.approx(2 / 7 * 4 / 5)
    assert cm.plackett_luce(rewards, [0, 1, 2], beta=math.inf) == 1.0
    assert sum(cm.plackett_luce(rewards, order, 0.7) for order in permutations(range(3))) == pytest.approx(1.0)
    # Two responses: Bradley-Terry.
    assert cm.plackett_luce([0.3, -0.4], [0, 1], 2.0) == pytest.approx(float(cm.boltzmann(0.3, -0.4, 2.0)))


def test_ties_by_hand() -> None:
    # pi = 2 and 1, theta = 2: P(a) = 2 / (2 + 2), P(b) = 1 / (1 + 4).
    assert [float(p) for p in cm.rao_kupper(math.log(2), 0.0, 1.0, theta=2.0)] == pytest.approx([0.5, 0.3, 0.2])
    # pi = 4 and 1, nu = 1: 4, sqrt(4) and 1 parts of 7.
    assert [float(p) for p in cm.davidson(math.log(4), 0.0, 1.0, nu=1.0)] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    for tied in (cm.rao_kupper(0.3, -0.1, 2.0, theta=1.0), cm.davidson(0.3, -0.1, 2.0, nu=0.0)):
        assert [float(p) for p in tied] == pytest.approx([float(cm.boltzmann(0.3, -0.1, 2.0)), 0.0, 1 - tied[0]])
    for far in (cm.rao_kupper(1e4, 0.0, 1.0, theta=3.0), cm.davidson(1e4, 0.0, 1.0, nu=3.0)):
        assert [float(p) for p in far] == pytest.approx([1.0, 0.0, 0.0])
    for equal in (cm.rao_kupper(1.0, 1.0, math.inf, theta=3.0), cm.davidson(1.0, 1.0, math.inf, nu=2.0)):
        assert [float(p) for p in equal] == pytest.approx([0.25, 0.5, 0.25])


def test_agreement_and_accuracy() -> None:
    assert accuracy_from_agreement(0.68) == pytest.approx(0.8)
    assert accuracy_from_agreement(0.65) == pytest.approx(0.774, abs=5e-4)  # the ceiling at people's 65%
    assert (accuracy_from_agreement(0.5), accuracy_from_agreement(1.0)) == (0.5, 1.0)
    for wrong in (0.49, 1.01, math.nan):
        with pytest.raises(ConfigError, match=r"0\.5\.\.1"):
            accuracy_from_agreement(wrong)


def test_beta_for_a_wanted_agreement() -> None:
    # One pair that differs by ln 3: accuracy 3/4 at beta 1, 9/10 at beta 2; agreement .82 at beta 2.
    gap = [math.log(3)]
    assert beta_for_accuracy(gap, 0.75) == pytest.approx(1.0)
    assert beta_for_accuracy(gap, 0.9) == pytest.approx(2.0)
    assert beta_for_agreement(gap, 0.82) == pytest.approx(2.0)
    assert beta_for_accuracy([-1e-9, 1e-9], 0.5) == pytest.approx(0.0, abs=1e-3)
    gaps = np.random.default_rng(0).normal(size=1000)
    right = cm.boltzmann(np.abs(gaps), 0.0, beta_for_agreement(gaps, 0.67))
    assert np.mean(right**2 + (1 - right) ** 2) == pytest.approx(0.67)
    assert beta_for_agreement(10 * gaps, 0.67) == pytest.approx(beta_for_agreement(gaps, 0.67) / 10)  # 1 / unit
    # Half of the pairs are equal: a rational rater is right on three quarters.
    with pytest.raises(ConfigError, match=r"0\.5\.\.0\.750; got 0\.8"):
        beta_for_accuracy([0.0, 1.0], 0.8)
    with pytest.raises(ConfigError, match="at least one"):
        beta_for_accuracy([], 0.8)


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_rater_follows_boltzmann(beta: float) -> None:
    judgements = judge(("1.0", "0.25"), beta=beta)
    assert_frequency(sum(j.choice == 0 for j in judgements), float(cm.boltzmann(1.0, 0.25, beta)))


def test_rater_follows_thurstone() -> None:
    judgements = judge(("1.0", "0.25"), beta=0.8, noise="normal")
    assert_frequency(sum(j.choice == 0 for j in judgements), float(cm.thurstone(1.0, 0.25, sigma=1 / 0.8)))


def test_rater_follows_the_error_mixture() -> None:
    judgements = judge(("1", "0"), beta=1.5, error_rate=0.4)
    assert_frequency(sum(j.choice == 0 for j in judgements), float(cm.with_errors(cm.boltzmann(1.0, 0.0, 1.5), 0.4)))
    assert_frequency(sum(j.choice == 0 for j in judge(("1", "0"), beta=math.inf, error_rate=0.2)), 0.9)


@pytest.mark.parametrize(("knob", "model"), [("rao_kupper_theta", cm.rao_kupper), ("davidson_nu", cm.davidson)])
def test_rater_follows_models_of_ties(knob: str, model: Any) -> None:
    p_a, p_tie, p_b = map(float, model(0.6, 0.0, 1.3, 1.8))
    judgements = judge(("0.6", "0"), beta=1.3, **{knob: 1.8})
    assert_frequency(sum(j.choice == 0 for j in judgements), p_a)
    assert_frequency(sum(j.tie for j in judgements), p_tie)
    assert_frequency(sum(j.choice == 1 for j in judgements), p_b)


@pytest.mark.parametrize(("knob", "p_tie"), [("rao_kupper_theta", 0.5), ("davidson_nu", 0.6)])
def test_rational_rater_ties_equals_only(knob: str, p_tie: float) -> None:
    # The limit of large beta. Equal: (theta - 1) / (theta + 1) and nu / (2 + nu).
    assert not any(j.tie for j in judge(("0.01", "0"), n=200, beta=math.inf, **{knob: 3.0}))
    assert_frequency(sum(j.tie for j in judge(("1", "1"), beta=math.inf, **{knob: 3.0})), p_tie)


def test_rater_follows_plackett_luce() -> None:
    rewards = [0.9, 0.2, -0.5]
    judgements = judge(tuple(map(str, rewards)), "ranking", beta=1.2)
    for order in permutations(range(3)):
        hits = sum(j.ranking == tuple((i,) for i in order) for j in judgements)
        assert_frequency(hits, cm.plackett_luce(rewards, order, 1.2))


def test_blind_rankings_are_uniform() -> None:
    judgements = judge(("3", "2", "1"), "ranking", beta=math.inf, error_rate=0.6)
    for order in permutations(range(3)):
        hits = sum(j.ranking == tuple((i,) for i in order) for j in judgements)
        assert_frequency(hits, 0.6 / 6 + 0.4 * (order == (0, 1, 2)))


def test_ratings_cut_a_gumbel() -> None:
    # v = beta r + Gumbel noise reaches beta c with probability 1 - exp(-exp(-beta (c - r))).
    cuts, beta, reward = (-1.0, 0.5, 2.0), 1.5, 0.3
    judgements = judge((str(reward),), "rating", beta=beta, rating_cuts=cuts)
    levels = [j.ratings["overall"][0] for j in judgements if j.ratings]
    reached = [1.0, *(1 - math.exp(-math.exp(-beta * (cut - reward))) for cut in cuts), 0.0]
    for level in (1, 2, 3, 4):
        assert_frequency(levels.count(level), reached[level - 1] - reached[level])


def test_strengths_grade_the_felt_difference() -> None:
    # The felt difference beta d + logistic noise passes beta c either way with these chances.
    judgements = judge(("0.5", "0"), beta=2.0, strength_cuts=(1.0,))
    clear = 1 / (1 + math.exp(2.0 * (1.0 - 0.5))) + 1 / (1 + math.exp(2.0 * (1.0 + 0.5)))
    assert_frequency(sum(j.strength == 2.0 for j in judgements), clear)
    assert {j.strength for j in judgements} == {1.0, 2.0}
    assert {j.strength for j in judge(("5", "0"), n=50, beta=math.inf, strength_cuts=(1.0, 3.0))} == {3.0}
