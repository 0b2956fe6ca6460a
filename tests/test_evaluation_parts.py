"""What an evaluation is made of: exact KL, fluency as a condition of winning, best-of-n; each against values worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tiny_models import tiny_language_model

from rlhf_gym.agents.best_of_n import best_of_n_kl
from rlhf_gym.feedback.preferences import Preference
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.response_kl import response_kls
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.loop.best_of_reference import best_of_n
from rlhf_gym.loop.fluency import Fluency, fluency, fluent_wins
from rlhf_gym.loop.reward_models import shuffled
from rlhf_gym.reward_model import Rating


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=3)])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_exact_and_sampled_kl_have_the_same_mean_and_the_exact_one_the_smaller_variance(
    sampling: Sampling, chunk: int
) -> None:
    policy, reference = (tiny_language_model(vocab_size=5, hidden=8, seed=seed, scale=4.0) for seed in (1, 2))
    limits = Limits(policy.tokenizer.eos_id, max_new_tokens=2)
    letters = range(1, 5)
    responses = [[0], *([a, 0] for a in letters), *(list(pair) for pair in itertools.product(letters, letters))]
    prompts = [[2, 3]] * len(responses)
    mine = [float(x.double().sum()) for x in response_log_probs(policy, prompts, responses, sampling, limits)]
    plain = Sampling(sampling.temperature)
    theirs = [float(x.double().sum()) for x in response_log_probs(reference, prompts, responses, plain, limits)]
    drawn = [i for i, log in enumerate(mine) if math.isfinite(log)]
    if sampling.top_k:  # a token that was not drawn counts as one more kept: those responses have no probability
        total = [math.exp(mine[i]) for i in drawn]
        kept = [
            i
            for i in drawn
            if all(
                _kept(policy, [2, 3, *responses[i][:t]], responses[i][t], sampling, limits)
                for t in range(len(responses[i]))
            )
        ]
        assert len(kept) < len(drawn)
        assert sum(total) > 1
        drawn = kept
    weights = np.array([math.exp(mine[i]) for i in drawn])
    assert weights.sum() == pytest.approx(1, abs=1e-5)
    found = response_kls(
        policy, reference, prompts[: len(drawn)], [responses[i] for i in drawn], sampling, limits, chunk=chunk
    )
    ratios = np.array([mine[i] - theirs[i] for i in drawn])
    assert [kl.k1 for kl in found] == pytest.approx(ratios, abs=1e-5)
    exact = np.array([kl.exact for kl in found])
    truth = float(weights @ ratios)
    assert float(weights @ exact) == pytest.approx(truth, abs=1e-5)
    assert (exact >= 0).all()
    assert truth > 0.01
    assert float(weights @ (exact - truth) ** 2) < float(weights @ (ratios - truth) ** 2)


def _kept(policy: object, context: list[int], token: int, sampling: Sampling, limits: Limits) -> bool:
    """True if the token is among the most probable ``top_k`` after the context."""
    logs = [
        float(response_log_probs(policy, [context], [[t]], Sampling(), limits)[0][0])  # type: ignore[arg-type]
        for t in range(5)
    ]
    return logs[token] >= sorted(logs)[-sampling.top_k]


def test_best_of_n_counts_every_choice_of_n() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, (3, 4)).astype(float), rng.normal(size=(3, 4))
    points = best_of_n(proxy, gold)
    assert [p.n for p in points] == [1, 2, 3, 4]
    for point in points:
        by_hand = []
        for p, g in zip(proxy, gold, strict=True):
            choices = [list(c) for c in itertools.combinations(range(4), point.n)]
            # Of equal proxies any may be taken.
            by_hand.append(np.mean([np.mean([g[i] for i in c if p[i] == p[c].max()]) for c in choices]))
        assert point.proxy == pytest.approx(
            np.mean([[p[list(c)].max() for c in itertools.combinations(range(4), point.n)] for p in proxy])
        )
        if point.n in (1, 4):
            assert point.gold == pytest.approx(np.mean(by_hand))
    distinct = np.arange(12.0).reshape(3, 4)
    assert best_of_n(distinct, -distinct)[1].gold == pytest.approx(-(3 * 3 + 2 * 2 + 1) / 6 - 4)
    assert best_of_n(np.zeros((0, 4)), np.zeros((0, 4))) == []
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_salad_and_repetition_are_not_fluent_and_do_not_win() -> None:
    before = [f"the film number {i} has a plot that goes {'on ' * (i % 2)}well" for i in range(40)]
    usual = np.linspace(30, 60, 40)
    text = [f"the film number {i} has an end that goes {'on ' * (i % 2)}well" for i in range(40)]
    loop = ["so good " * 8] * 40
    salad = [f"{i} = of with the {i} a" for i in range(40)]
    calm, looped, mixed = (
        fluency(usual, given, before, after)
        for given, after in ((usual - 2, text), (usual / 4, loop), (usual * 4, salad))
    )
    assert calm.after.all()
    assert not any(m.flagged for m in calm.measures)
    assert not looped.after.any()
    assert not mixed.after.any()
    assert [m.name for m in looped.measures if m.flagged] == ["perplexity", "repetition", "distinct word pairs"]
    assert "perplexity" in [m.name for m in mixed.measures if m.flagged]
    better, equal = np.ones(40, bool), np.zeros(40, bool)
    assert fluent_wins(better, equal, calm) == 40
    unfluent_before = int((~mixed.before).sum())
    assert fluent_wins(better, equal, mixed) == unfluent_before / 2  # it wins by the reward everywhere
    few = fluency(usual[:5], usual[:5] * 9, before[:5], salad[:5])
    assert few.measures == ()
    assert few.after.all()


def test_shuffled_labels_say_nothing_and_keep_the_responses() -> None:
    given = [Preference(f"p{i}", "good", "bad", tie=i % 10 == 0, query_id=str(i)) for i in range(400)]
    rated = [Rating("p", f"r{i}", float(i)) for i in range(50)]
    preferences, ratings = shuffled(given, rated, seed=3)
    assert 160 < sum(p.chosen == "good" for p in preferences) < 240
    assert all({p.chosen, p.rejected} == {"good", "bad"} for p in preferences)
    assert [p.query_id for p in preferences] == [p.query_id for p in given]
    assert sorted(r.value for r in ratings) == [r.value for r in rated]
    assert [r.response for r in ratings] == [r.response for r in rated]
    assert abs(np.corrcoef(range(50), [r.value for r in ratings])[0, 1]) < 0.4
    assert shuffled(given, rated, seed=3) == (preferences, ratings)


def test_two_equal_models_win_half_of_the_prompts_each() -> None:
    rng = np.random.default_rng(0)
    fluent = rng.random((2, 200)) < 0.7
    scores = rng.integers(0, 3, (2, 200))
    one = fluent_wins(scores[1] > scores[0], scores[1] == scores[0], Fluency(fluent[0], fluent[1], ()))
    other = fluent_wins(scores[0] > scores[1], scores[1] == scores[0], Fluency(fluent[1], fluent[0], ()))
    assert one + other == 200
