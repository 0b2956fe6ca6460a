"""Rewards made of rewards: numbers by hand, terms by name, state over a restart."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import score
from rlhf_gym.rewards.adaptive import (
    Constrained,
    RunningStandardise,
    Scheduled,
    frozen,
    restore_reward,
    reward_state,
)
from rlhf_gym.rewards.cached import CachedReward
from rlhf_gym.rewards.combine import Gate, Product, Sum, term
from rlhf_gym.rewards.ensemble import Ensemble, Minimum

PROMPTS, RESPONSES = ["p", "q", "r"], ["a", "b b", "c c c c"]


def length(prompts, responses):
    return [len(r.split()) for r in responses]  # 1, 2, 4


def label(prompts, responses, label):
    return label


def values(reward, **columns):
    return score(reward, PROMPTS, RESPONSES, columns).values.tolist()


def test_operators():
    x = term(length)
    assert values(2 * x - 1) == [1, 3, 7]
    assert values(1 - x / 2) == [0.5, 0, -1]
    assert values(x * x) == [1, 4, 16]
    assert values(-x) == [-1, -2, -4]
    assert values(x + length) == [2, 4, 8]
    assert values(length + x) == [2, 4, 8]
    assert values((x + x * x) * 0.5) == [1, 3, 10]
    assert values(x.clip(1.5, 3)) == [1.5, 2, 3]
    assert values(x.above(2)) == [0, 1, 1]
    assert values(x.above(3, then=-1, otherwise=5)) == [5, 5, -1]
    assert values(x.per_word()) == [1, 1, 1]
    assert values(Minimum([x, 3 - x])) == [1, 1, -1]
    assert values(Product([x, length, x])) == [1, 8, 64]
    assert values(Ensemble([x, 3 - x], variance_weight=1)) == pytest.approx([1.25, 1.25, 1.5 - 6.25])


@pytest.mark.parametrize("two", [2, np.float32(2), np.float64(2), np.int64(2)])
def test_numpys_numbers_are_numbers(two):
    for reward in (two * term(length), term(length) * two, term(length) / (1 / two)):
        assert values(reward) == [2, 4, 8]
    for reward in (two + term(length), term(length) + two, two - (-term(length)), term(length) - (-two)):
        assert values(reward) == [3, 4, 6]


@pytest.mark.parametrize("other", [None, "length", [1]])
def test_what_is_no_reward_is_refused_where_it_is_written(other):
    for formula in (lambda: term(length) + other, lambda: term(length) * other, lambda: other - term(length)):
        with pytest.raises(TypeError, match="expected a reward or a number in a formula, got"):
            formula()


def test_standardise_on_reference_samples():
    z = term(length).standardise(PROMPTS, RESPONSES)
    assert np.mean(values(z)) == pytest.approx(0)
    assert np.std(values(z)) == pytest.approx(1)
    assert score(z, ["p"], ["x " * 4]).values[0] == pytest.approx((4 - 7 / 3) / np.std([1, 2, 4]))
    with pytest.raises(ConfigError, match="do not differ"):
        term(length).standardise(["p"] * 2, ["a", "b"])


def test_every_term_by_name():
    reward = term(length, "words").clip(0, 3) - 0.5 * term(label)
    scored = score(reward, PROMPTS, RESPONSES, {"label": [10.0, 20.0, 30.0]})
    expected = {
        "words": [1, 2, 4], "clip(words)": [1, 2, 3], "label": [10, 20, 30],
        "clip(words)_weighted": [1, 2, 3], "label_weighted": [-5, -10, -15],
    }  # fmt: skip
    assert {name: v.tolist() for name, v in scored.terms.items()} == expected
    weighted = [v for name, v in scored.terms.items() if name.endswith("_weighted")]
    np.testing.assert_allclose(np.sum(weighted, axis=0), scored.values)


def test_names_never_collide_and_never_depend_on_the_data():
    reward = Sum([(length, 1.0), (length, 2.0)])
    names = ["length", "length_2", "length_weighted", "length_weighted_2"]
    assert list(score(reward, PROMPTS, RESPONSES).terms) == names
    assert list(score(reward, ["p"], [""]).terms) == names


def test_sums_of_sums_stay_one_sum():
    reward = 2 * (term(length, "a") + 3 * term(length, "b")).named("both") + term(length, "c")
    scored = score(reward, PROMPTS, RESPONSES)
    assert scored.values.tolist() == [9, 18, 36]
    assert scored.terms["both_weighted"].tolist() == [8, 16, 32]
    assert scored.terms["b_weighted"].tolist() == [3, 6, 12]
    flat = 2 * (term(length, "a") + 3 * term(length, "b"))
    assert score(flat, PROMPTS, RESPONSES).terms["b_weighted"].tolist() == [6, 12, 24]


def test_gate():
    gate = Gate(label, length, level=0.5, otherwise=-9)
    scored = score(gate, PROMPTS, RESPONSES, {"label": [1.0, 0.0, 0.5]})
    assert scored.values.tolist() == [1, -9, 4]
    assert scored.terms["gate_open"].tolist() == [1, 0, 1]


def test_what_goes_wrong_names_the_part():
    def nan(prompts, responses):
        return [1.0, float("nan"), 1.0]

    with pytest.raises(RewardError, match="'nan' gave nan"):
        values(term(length) + nan)
    with pytest.raises(RewardError, match="'politeness' gave nan"):
        values(term(length) + term(nan, "politeness"))
    huge = term(lambda p, r: [1e200] * len(r), "huge")
    with pytest.raises(RewardError, match=r"'product' gave inf for sample 0 \(huge = 1e\+200, huge = 1e\+200\).*'p'"):
        values(huge * huge)


@pytest.mark.parametrize(
    "build",
    [
        lambda: term(length).clip(2, 1),
        lambda: term(length) * float("nan"),
        lambda: Minimum([]),
        lambda: Sum([]),
        lambda: Scheduled(length, [(5, 1), (5, 2)]),
        lambda: Scheduled(length, []),
        lambda: Constrained(length, length, level=1, rate=0),
        lambda: RunningStandardise(length, clip=0),
        lambda: CachedReward(length, size=0),
    ],
)
def test_settings_that_make_no_sense(build):
    with pytest.raises(ConfigError):
        build()


def test_running_standardise_has_the_moments_of_all_samples():
    reward = RunningStandardise(length)
    rng = np.random.default_rng(0)
    texts = ["w " * n for n in rng.integers(1, 30, 200)]
    for begin in range(0, 200, 7):
        last = score(reward, ["p"] * len(texts[begin : begin + 7]), texts[begin : begin + 7]).values
    all_lengths = np.array([len(t.split()) for t in texts])
    np.testing.assert_allclose(last, (all_lengths[196:] - all_lengths.mean()) / all_lengths.std())
    with frozen(reward):
        before = reward_state(reward)
        score(reward, PROMPTS, RESPONSES)
        assert reward_state(reward) == before
    assert values(RunningStandardise(lambda p, r: [3.0] * len(r))) == [0, 0, 0]
    assert max(map(abs, values(RunningStandardise(length, clip=0.5)))) == 0.5
    assert min(values(RunningStandardise(length, shift=False))) > 0


def test_constraint_by_hand():
    reward = Constrained(label, length, level=3, rate=0.1, multiplier=1)
    scored = score(reward, PROMPTS, RESPONSES, {"label": [10.0, 20.0, 30.0]})
    assert scored.values.tolist() == [(10 + 1 - 3) / 2, (20 + 2 - 3) / 2, (30 + 4 - 3) / 2]
    assert scored.terms["constrained_multiplier"].tolist() == [1, 1, 1]
    assert reward.multiplier == pytest.approx(1 + 0.1 * (2 + 1 - 1))


def test_a_constraints_terms_raw_and_weighted():
    scored = score(Constrained(length, label, level=20, multiplier=3.0), PROMPTS, RESPONSES, {"label": [10, 20, 30]})
    assert scored.terms["length"].tolist() == [1, 2, 4]
    assert scored.terms["length_weighted"].tolist() == [0.25, 0.5, 1]
    assert scored.terms["label_weighted"].tolist() == [-7.5, 0, 7.5]
    np.testing.assert_allclose(scored.terms["length_weighted"] + scored.terms["label_weighted"], scored.values)


def test_constraint_holds_its_level():
    """A policy that shifts its mean by gradient ascent: alone the objective wants 0 words, the constraint at least 5."""
    rng = np.random.default_rng(0)
    reward = Constrained(-1 * term(length), length, level=5, rate=0.002, damping=0.5)
    mean, means = 8.0, []
    for _ in range(600):
        words = rng.poisson(mean, 64)
        scores = score(reward, ["p"] * 64, ["w " * n for n in words]).values
        gradient = np.mean((scores - scores.mean()) * (words - mean)) / mean
        mean = max(0.5, mean + 0.2 * gradient)
        means.append(mean)
    assert np.mean(means[300:]) == pytest.approx(5, abs=0.3)
    assert reward.multiplier == pytest.approx(1, abs=0.3)  # where the two pull equally


def test_schedule():
    reward = Scheduled(length, [(3, 0.0), (9, 1.0)])
    weights = [score(reward, PROMPTS, RESPONSES).terms["scheduled(length)_weight"][0] for _ in range(5)]
    assert weights == [0, 0, 0.5, 1, 1]


def test_state_over_a_restart():
    def build():
        inner = RunningStandardise(length)
        return Constrained(inner, length, level=3) + Scheduled(length, [(0, 1.0), (10, 0.0)])

    reward = build()
    values(reward)
    saved = json.loads(json.dumps(reward_state(reward)))
    again = build()
    restore_reward(again, saved)
    assert values(again) == values(reward)
    with pytest.raises(ConfigError, match="resume with the reward"):
        restore_reward(term(length), saved)


def test_a_cache_around_what_changes_is_refused():
    with pytest.raises(ConfigError, match="'running\\(length\\)' changes while it scores"):
        CachedReward(term(RunningStandardise(length)) * 2)


def test_a_cache_by_hand():
    calls = []

    def pure(prompts, responses, label):
        calls.append(list(responses))
        return [len(r) + x for r, x in zip(responses, label, strict=True)]

    cached = CachedReward(pure)
    columns = {"label": [1, 2, 1]}
    assert score(cached, ["p"] * 3, ["a", "a", "a"], columns).values.tolist() == [2, 3, 2]
    assert calls == [["a", "a"]]
    assert score(cached, ["p"] * 3, ["bb", "a", "a"], columns).values.tolist() == [3, 3, 2]
    assert calls[1:] == [["bb"]]
    assert (cached.hits, cached.misses) == (3, 3)
    combined = CachedReward(term(length) * 2)
    assert score(combined, PROMPTS, RESPONSES).terms.keys() == score(combined, PROMPTS, RESPONSES).terms.keys()
    small = CachedReward(length, size=2)
    assert values(small) == [1, 2, 4]
    values(small)
    assert small.misses == 4  # the least recently used one was dropped


def test_a_cache_keeps_no_failures():
    broken = [True]

    def flaky(prompts, responses):
        if broken:
            broken.pop()
            raise OSError("gone")
        return [1.0] * len(responses)

    cached = CachedReward(flaky)
    with pytest.raises(RewardError, match="'flaky' raised OSError: gone"):
        values(cached)
    assert values(cached) == [1, 1, 1]
