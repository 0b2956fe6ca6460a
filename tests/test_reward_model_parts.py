"""The reward model's pure parts: loss, calibration, standard error, split and minibatches."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.raters.choice_models import davidson, plackett_luce, rao_kupper
from rlhf_gym.reward_model import FitConfig, Rating, bradley_terry_loss, calibration, expected_ece, split_by_prompt
from rlhf_gym.reward_model.batches import ComparisonSet
from rlhf_gym.reward_model.evaluation import clustered_standard_error
from rlhf_gym.reward_model.losses import davidson_loss, ordinal_loss, plackett_luce_loss, rao_kupper_loss
from rlhf_gym.reward_model.objective import Objective


def letters(prompt: str, response: str, messages: object = None) -> list[int]:
    return [ord(c) for c in prompt + response]


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 1.0])
    expected = [math.log(1 + math.exp(-2)), math.log(2), math.log(1 + math.exp(2))]
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx(expected)


def test_margin_shifts_the_difference():
    one, zero = torch.tensor([1.0]), torch.tensor([0.0])
    loss = bradley_terry_loss(one, zero, margin=torch.tensor([3.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2)))


def test_tie_pulls_scores_together():
    chosen = torch.tensor([1.5], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(1), target=torch.tensor([0.5]))
    assert loss.item() == pytest.approx(0.5 * (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(1.5))))
    loss.backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(1 / (1 + math.exp(-1.5)) - 0.5)


def test_label_smoothing_has_its_minimum_at_the_true_log_odds():
    difference = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)
    loss = bradley_terry_loss(difference, torch.zeros(1), label_smoothing=0.1)
    expected = 0.9 * math.log(1 / 0.9) + 0.1 * math.log(1 / 0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert difference.grad is not None
    assert difference.grad.item() == pytest.approx(0, abs=1e-6)


def test_large_differences_stay_finite():
    loss = bradley_terry_loss(torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4]))
    assert loss.tolist() == pytest.approx([2e4, 0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def slope(function, at):
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    function(x).sum().backward()
    return x.grad


def test_ties_of_rao_and_kupper_by_hand():
    one, zero, tie = torch.tensor([1.0]), torch.zeros(1), torch.tensor([True])
    log_theta = torch.tensor(math.log(2.0))
    # pi_a = e, pi_b = 1: P(a) = e / (e + 2), P(b) = 1 / (1 + 2 e), and the rest are ties.
    a, b = math.e / (math.e + 2), 1 / (1 + 2 * math.e)
    assert rao_kupper_loss(one, zero, ~tie, log_theta).item() == pytest.approx(-math.log(a))
    assert rao_kupper_loss(zero, one, ~tie, log_theta).item() == pytest.approx(-math.log(b))
    assert rao_kupper_loss(one, zero, tie, log_theta).item() == pytest.approx(-math.log(1 - a - b))
    # The three probabilities are those of the simulated raters, and a tie pulls the scores together.
    assert [a, 1 - a - b, b] == pytest.approx([float(p) for p in rao_kupper(1.0, 0.0, beta=1.0, theta=2.0)])
    assert slope(lambda x: rao_kupper_loss(x, zero, tie, log_theta), [1.0]).item() == pytest.approx(a - b)
    assert slope(lambda x: rao_kupper_loss(x, zero, ~tie, log_theta), [1.0]).item() == pytest.approx(a - 1)


def test_ties_of_davidson_by_hand():
    one, zero, tie = torch.tensor([1.0]), torch.zeros(1), torch.tensor([True])
    log_nu = torch.tensor(math.log(0.5))
    total = math.e + 1 + 0.5 * math.sqrt(math.e)
    expected = [math.e / total, 0.5 * math.sqrt(math.e) / total, 1 / total]
    losses = [davidson_loss(one, zero, t, log_nu).item() for t in (~tie, tie)]
    losses.append(davidson_loss(zero, one, ~tie, log_nu).item())
    assert [math.exp(-loss) for loss in losses] == pytest.approx(expected)
    assert expected == pytest.approx([float(p) for p in davidson(1.0, 0.0, beta=1.0, nu=0.5)])
    # d(-log P(tie)) / d score_a = P(a) + P(tie) / 2 - 1/2.
    gradient = slope(lambda x: davidson_loss(x, zero, tie, log_nu), [1.0]).item()
    assert gradient == pytest.approx(expected[0] + expected[1] / 2 - 0.5)


def test_plackett_luce_by_hand():
    scores = torch.tensor([0.0, 1.0, 2.0])
    # The order 2, 0, 1: the best of three, then the better of two.
    first = math.exp(2) / (math.exp(2) + math.exp(1) + 1)
    second = 1 / (1 + math.exp(1))
    losses = plackett_luce_loss(
        scores[[2, 0]], torch.stack([scores[[0, 1]], scores[[1, 1]]]), torch.tensor([[True, True], [True, False]])
    )
    assert losses.tolist() == pytest.approx([-math.log(first), -math.log(second)])
    assert math.exp(-losses.sum()) == pytest.approx(plackett_luce([0.0, 1.0, 2.0], [2, 0, 1], beta=1.0))
    # The gradient of the chosen score is its probability less 1; that of another one is its probability.
    gradient = slope(lambda x: plackett_luce_loss(x[:1], x[None, 1:], torch.tensor([[True, True]])), [2.0, 0.0, 1.0])
    assert gradient.tolist() == pytest.approx(
        [first - 1, 1 / (math.exp(2) + math.e + 1), math.e / (math.exp(2) + math.e + 1)]
    )
    # With one other response it is Bradley-Terry.
    pair = plackett_luce_loss(scores[[1]], scores[[0]][None], torch.tensor([[True]]))
    assert pair.item() == pytest.approx(bradley_terry_loss(scores[[1]], scores[[0]]).item())


def test_ordinal_by_hand():
    cuts, scores = torch.tensor([-1.0, 0.5, 2.0]), torch.full((4,), 0.25)
    below = [0, sigmoid(-1.25), sigmoid(0.25), sigmoid(1.75), 1]
    expected = [b - a for a, b in pairwise(below)]
    losses = ordinal_loss(scores, torch.arange(4), cuts)
    assert torch.exp(-losses).tolist() == pytest.approx(expected)
    # d(-log P(k)) / d score = 1 - P(<= k) - P(<= k - 1).
    gradient = slope(lambda x: ordinal_loss(x, torch.arange(4), cuts.double()), [0.25] * 4)
    assert gradient.tolist() == pytest.approx([1 - a - b for a, b in pairwise(below)], rel=1e-5)
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    ordinal_loss(far, torch.tensor([1, 1]), cuts).sum().backward()
    assert far.grad.tolist() == pytest.approx([1, -1])


def test_the_objective_of_a_ranking_is_plackett_luce():
    ranking = [preference("p", x, y, "q", rater="ann") for x, y in (("a", "b"), ("a", "c"), ("b", "c"))]
    best = [preference("p", "a", y, "r", rater="ann") for y in ("b", "c")]
    tie = [preference("p", "a", "b", "s", tie=True)]
    for items, expected in (
        (ranking, -math.log(plackett_luce([2.0, 1.0, 0.0], [0, 1, 2], beta=1.0))),
        (best, -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))),
        (tie, 0.5 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1)))),
    ):
        [[batch]] = ComparisonSet(items, letters).minibatches(8, 1000, np.random.default_rng(0))
        scores = torch.tensor([{"a": 2.0, "b": 1.0, "c": 0.0}[chr(sequence[-1])] for sequence in batch.sequences])
        objective = Objective(FitConfig(loss="plackett_luce"), items)
        assert objective(scores, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_objective_of_pairs_smooths_centres_and_weighs():
    items = [preference("p", "a", "b", "q", rater="ann", margin=1.0), preference("p", "b", "a", "r", rater="bob")]
    [[batch]] = ComparisonSet(items, letters).minibatches(8, 1000, np.random.default_rng(0))
    scores = torch.tensor([{"a": 2.0, "b": 0.5}[chr(sequence[-1])] for sequence in batch.sequences])
    right, wrong = -math.log(sigmoid(1.5)), -math.log(sigmoid(-1.5))
    plain = Objective(FitConfig(), items)
    assert plain(scores, batch).item() == pytest.approx(right + wrong)
    smooth = Objective(FitConfig(label_smoothing=0.1, centring=0.01), items)
    assert smooth(scores, batch).item() == pytest.approx(right + wrong + 2 * 0.01 * 2.5**2)
    with_margin = Objective(FitConfig(margin_scale=0.5), items)
    assert with_margin(scores, batch).item() == pytest.approx(-math.log(sigmoid(1.0)) + wrong)
    davidsons = Objective(FitConfig(loss="davidson", label_smoothing=0.1), items)
    d, z = 1.5, math.log(math.exp(0.75) + math.exp(-0.75) + 1)  # nu begins at 1
    expected = 0.9 * (z - d / 2) + 0.1 * (z + d / 2) + 0.9 * (z + d / 2) + 0.1 * (z - d / 2)
    assert davidsons(scores, batch).item() == pytest.approx(expected, rel=1e-5)
    weighted = Objective(FitConfig(rater_weights="learned"), items)
    with torch.no_grad():
        weighted.log_beta.copy_(torch.tensor([math.log(2.0), math.log(0.5)]))
    prior = 0.5 * 2 * math.log(2) ** 2
    assert weighted(scores, batch).item() == pytest.approx(-math.log(sigmoid(3)) - math.log(sigmoid(-0.75)) + prior)
    assert weighted.raters_found() == pytest.approx({"ann": 2.0, "bob": 0.5})


def test_the_objective_of_ratings():
    items = [Rating("p", response, value) for response, value in (("a", 1.0), ("b", 3.0), ("c", 5.0), ("d", 3.0))]
    [[batch]] = ComparisonSet(items, letters).minibatches(8, 1000, np.random.default_rng(0))
    assert sorted(map(len, batch.sequences)) == [2, 2, 2, 2]
    regression = Objective(FitConfig(loss="regression"), items)
    assert regression(torch.zeros(4), batch).item() == pytest.approx(4)  # ratings of standard deviation 1
    ordinal = Objective(FitConfig(loss="ordinal"), items)
    # For scores of 0 the levels have the probabilities that they have in the data: 1/4, 1/2, 1/4.
    assert ordinal(torch.zeros(4), batch).item() == pytest.approx(2 * math.log(4) + 2 * math.log(2), rel=1e-4)
    with pytest.raises(FeedbackError, match="is fitted to ratings, and got 0"):
        Objective(FitConfig(loss="ordinal"), [])
    with pytest.raises(FeedbackError, match="101 different values: take the loss 'regression'"):
        Objective(FitConfig(loss="ordinal"), [Rating("p", "a", float(v)) for v in range(101)])


def test_calibration_by_hand():
    # Confidence 0.731 twice (one right, one wrong), 0.953 twice (both right).
    bins, ece = calibration(np.array([1.0, -1.0, 3.0, 3.0]))
    low, high = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert [(b.count, b.accuracy) for b in bins] == [(2, 0.5), (2, 1.0)]
    assert [b.confidence for b in bins] == pytest.approx([low, high])
    assert ece == pytest.approx((2 * (low - 0.5) + 2 * (1 - high)) / 4)


def test_calibration_of_equal_scores_and_of_nothing():
    bins, ece = calibration(np.zeros(3))
    assert [(b.confidence, b.accuracy, b.count) for b in bins] == [(0.5, 0.5, 3)]
    assert ece == 0
    assert calibration(np.zeros(0)) == ([], 0.0)
    assert calibration(np.array([1e4, -1e4]))[1] == pytest.approx(0.5)


def test_calibration_of_a_calibrated_model():
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 2, 20_000)
    chosen_first = rng.random(20_000) < 1 / (1 + np.exp(-differences))
    assert calibration(np.where(chosen_first, differences, -differences))[1] < 0.015


def test_the_floor_of_the_calibration_error():
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 2, 20_000)
    chosen_first = rng.random(20_000) < 1 / (1 + np.exp(-differences))
    signed = np.where(chosen_first, differences, -differences)
    for n in (60, 1000):
        floor = expected_ece(differences[:n])
        measured = np.mean([calibration(part)[1] for part in signed[: 20_000 // n * n].reshape(-1, n)])
        assert floor == pytest.approx(measured, rel=0.15)  # what calibrated models of that size do show
    assert expected_ece(np.array([1e3, -1e3])) == pytest.approx(0)
    assert expected_ece(np.zeros(4)) == pytest.approx(3 / 16, abs=0.03)  # mean of |heads / 4 - 1/2| of four coins
    assert math.isnan(expected_ece(np.zeros(0)))


def test_standard_error():
    values = np.array([1.0, 0.0, 1.0, 1.0])
    assert clustered_standard_error(values, ["a", "b", "c", "d"]) == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    # Every answer given twice says no more than once.
    doubled = clustered_standard_error(np.repeat(values, 2), ["a", "a", "b", "b", "c", "c", "d", "d"])
    assert doubled == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def preference(prompt, chosen, rejected, query_id="", **more):
    return Preference(prompt, chosen, rejected, query_id=query_id, **more)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_by_prompt(prompts, share, seed):
    preferences = [preference(f"p{i}", f"x{n}", f"y{n}") for n, i in enumerate(prompts)]
    if len(set(prompts)) < 2:
        with pytest.raises(FeedbackError, match="at least 2 prompts"):
            split_by_prompt(preferences, share, seed)
        return
    train, held = split_by_prompt(preferences, share, seed)
    assert train
    assert held
    assert not {p.prompt for p in train} & {p.prompt for p in held}
    assert len(train) + len(held) == len(preferences)
    again = split_by_prompt(preferences[::-1], share, seed)
    assert {p.prompt for p in again[1]} == {p.prompt for p in held}


def test_stages_of_one_dialogue_are_split_together():
    first = "\n\nHuman: Hi {}\n\nAssistant:"
    preferences = [
        preference(first.format(i) + later, "x", "y")
        for i in range(10)
        for later in ("", " Hello\n\nHuman: Bye\n\nAssistant:")
    ]
    train, held = split_by_prompt(preferences, 0.3, 0)
    assert (len(train), len(held)) == (14, 6)
    assert not {p.prompt.split("\n\nAssistant:")[0] for p in train} & {
        p.prompt.split("\n\nAssistant:")[0] for p in held
    }


def test_a_ranking_goes_through_once_and_together():
    responses = ["a", "bb", "ccc", "dddd"]
    ranking = [preference("p", x, y, "q") for i, x in enumerate(responses) for y in responses[i + 1 :]]
    others = [preference(f"o{i}", "x", "y", f"r{i}") for i in range(20)]
    for minibatch in ComparisonSet([*others, *ranking], letters).minibatches(4, 10_000, np.random.default_rng(0)):
        for part in minibatch:
            if letters("p", "a") in part.sequences:
                assert all(letters("p", r) in part.sequences for r in responses)
                assert len(part.sequences) == 2 * len(part) - 8  # 6 comparisons of 4 sequences
                return
    raise AssertionError


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 30)), min_size=1, max_size=60), st.integers(1, 8))
def test_minibatches_hold_every_comparison_once(shapes, size):
    preferences = [
        preference(f"p{i}", "x" * length + str(n), "y", f"q{i}" if i else "", tie=n % 5 == 0, margin=float(n))
        for n, (i, length) in enumerate(shapes)
    ]
    comparisons = ComparisonSet(preferences, letters)
    seen = []
    for minibatch in comparisons.minibatches(size, 120, np.random.default_rng(1)):
        for part in minibatch:
            assert len({tuple(s) for s in part.sequences}) == len(part.sequences)
            for c, r, tie, margin in zip(part.chosen, part.rejected, part.tie, part.margin, strict=True):
                seen.append((part.sequences[c], part.sequences[r], tie, margin))
    expected = [
        (letters(p.prompt, p.chosen), letters(p.prompt, p.rejected), p.tie, 0.0 if p.tie else p.margin)
        for p in preferences
    ]
    assert sorted(map(str, seen)) == sorted(map(str, expected))


def test_parts_stay_below_the_token_limit():
    preferences = [preference(f"{i:02}", "x" * (i % 13), "y" * (i % 7), f"q{i}") for i in range(50)]
    parts = [p for m in ComparisonSet(preferences, letters).minibatches(16, 60, np.random.default_rng(0)) for p in m]
    assert all(len(p.sequences) * max(map(len, p.sequences)) <= 60 for p in parts)
    assert max(len(p) for p in parts) > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0), ("epochs", 0), ("label_smoothing", 0.5), ("validation_fraction", 1.0), ("dropout", 1.0),
        ("batch_size", 0), ("patience", 0), ("trunk_layers", -2), ("layers", 0), ("pooling", "first"), ("precision", "int8"),
        ("loss", "hinge"), ("centring", -1.0), ("learning_rate", math.nan), ("seed", -1),
    ],
)  # fmt: skip
def test_settings_out_of_range(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        FitConfig(**{name: value})
