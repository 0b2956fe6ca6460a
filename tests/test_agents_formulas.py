"""Advantages, KL estimators, controllers and losses: numbers worked by hand, and independent ways to the same result."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from rlhf_gym.agents.common.advantages import gae, whiten
from rlhf_gym.agents.common.kl import AdaptiveKL, Estimator, FixedKL, kl_estimate
from rlhf_gym.agents.common.losses import clipped_policy_loss, clipped_value_loss, token_weights


def test_gae_at_eos_and_at_the_length_limit_by_hand() -> None:
    """Row 0 ends by EOS after 2 tokens, row 1 runs to the limit of 3: both terminate, with value 0 after the last."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = torch.tensor([[-0.1, 1.0, 9.0], [0.2, 0.0, 2.0]])
    values = torch.tensor([[0.5, 0.4, 9.0], [1.0, 0.5, 0.25]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=0.5)
    # row 0: delta = [-0.1 + 0.4 - 0.5, 1 - 0.4] = [-0.2, 0.6]; A = [-0.2 + 0.5 * 0.6, 0.6]
    # row 1: delta = [0.2 + 0.5 - 1, 0.25 - 0.5, 2 - 0.25] = [-0.3, -0.25, 1.75]; A2 = 1.75, A1 = 0.625, A0 = 0.0125
    expected = torch.tensor([[0.1, 0.6, 0.0], [0.0125, 0.625, 1.75]])
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, torch.tensor([[0.6, 1.0, 0.0], [1.0125, 1.125, 2.0]]))


def test_gae_bootstraps_only_what_a_time_limit_cut() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    advantages, _ = gae(
        torch.zeros(2, 2), torch.zeros(2, 2), mask, gamma=0.5, gae_lambda=1.0, bootstrap=torch.tensor([8.0, 0.0])
    )
    torch.testing.assert_close(advantages, torch.tensor([[2.0, 4.0], [0.0, 0.0]]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_gae_is_stable_baselines(lengths: list[int], gamma: float, lam: float, seed: int) -> None:
    """Responses one after the other in stable-baselines3's own buffer, each a whole episode."""
    generator = torch.Generator().manual_seed(seed)
    total, width = sum(lengths), max(lengths)
    rewards, values = torch.randn(total, generator=generator), torch.randn(total, generator=generator)
    starts = np.zeros(total, dtype=np.float32)
    starts[np.cumsum([0, *lengths[:-1]])] = 1
    space = spaces.Discrete(2)
    buffer = RolloutBuffer(total, space, space, device="cpu", gae_lambda=lam, gamma=gamma)
    for t in range(total):
        step = np.zeros(1, dtype=np.int64)
        buffer.add(step, step, rewards[t : t + 1].numpy(), starts[t : t + 1], values[t : t + 1], torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.tensor([5.0]), np.ones(1))
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    padded = torch.full((2, *mask.shape), 7.0)
    padded[0][mask], padded[1][mask] = rewards, values
    advantages, returns = gae(padded[0], padded[1], mask, gamma=gamma, gae_lambda=lam)
    torch.testing.assert_close(advantages[mask], torch.from_numpy(buffer.advantages[:, 0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(returns[mask], torch.from_numpy(buffer.returns[:, 0]), atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
def test_gae_equals_the_sum_of_discounted_errors(length: int, gamma: float, lam: float, seed: int) -> None:
    """Schulman et al. 2016, equation 16, term by term."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(length, generator=generator), torch.randn(length, generator=generator)
    after = torch.cat([values[1:], torch.zeros(1)])
    errors = rewards + gamma * after - values
    expected = [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, length)) for t in range(length)]
    padded = torch.nn.functional.pad
    mask = torch.arange(9)[None] < length
    found, returns = gae(
        padded(rewards, (0, 9 - length), value=5.0)[None], padded(values, (0, 9 - length), value=-3.0)[None], mask,
        gamma=gamma, gae_lambda=lam,
    )  # fmt: skip
    torch.testing.assert_close(found[0, :length], torch.stack([torch.as_tensor(x) for x in expected]))
    torch.testing.assert_close(returns[0, :length], found[0, :length] + values)
    assert not found[0, length:].any()


def test_whitening_sees_valid_tokens_only_and_may_keep_the_mean() -> None:
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, -99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    white = whiten(values, mask)
    torch.testing.assert_close(white[mask], torch.tensor([-1.0, 0.0, 1.0]))  # mean 3, standard deviation 2
    assert not white[~mask].any()
    torch.testing.assert_close(whiten(values, mask, shift_mean=False)[mask], torch.tensor([2.0, 3.0, 4.0]))


def test_whitening_leaves_constants_at_zero() -> None:
    values = torch.full((4, 5), 0.1)
    assert float(whiten(values, torch.ones(4, 5, dtype=torch.bool)).abs().max()) < 1e-9
    one = torch.tensor([[True, False]])
    torch.testing.assert_close(whiten(torch.tensor([[7.0, 1.0]]), one), torch.zeros(1, 2))
    assert whiten(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)).shape == (1, 2)


def test_estimators_by_hand() -> None:
    log_probs, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])  # r = 1/2
    assert kl_estimate(log_probs, reference, "k1").item() == pytest.approx(math.log(2))
    assert kl_estimate(log_probs, reference, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_estimate(log_probs, reference, "k3").item() == pytest.approx(0.5 - 1 + math.log(2))
    with pytest.raises(ValueError, match="k1, k2, k3"):
        kl_estimate(log_probs, reference, "k4")  # type: ignore[arg-type]


def exact(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) of two categorical distributions given by logits."""
    p, q = policy.log_softmax(-1), reference.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def distributions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(True), torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_(True)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_have_the_right_mean(estimator: Estimator) -> None:
    policy, reference = distributions()
    p = policy.log_softmax(-1)
    mean = (p.exp() * kl_estimate(p, reference.log_softmax(-1), estimator)).sum()
    torch.testing.assert_close(mean, exact(policy, reference))


def test_k2_and_k3_are_never_negative_and_k1_is_at_times() -> None:
    policy, reference = distributions()
    p, q = policy.log_softmax(-1), reference.log_softmax(-1)
    assert bool((kl_estimate(p, q, "k2") >= 0).all())
    assert bool((kl_estimate(p, q, "k3") >= 0).all())
    assert bool((kl_estimate(p, q, "k1") < 0).any())


def expected_gradient_in_loss(estimator: Estimator) -> Tensor:
    """E_pi[grad estimate], the samples held fixed: what a loss's gradient is on average."""
    policy, reference = distributions()
    p = policy.log_softmax(-1)
    mean = (p.exp().detach() * kl_estimate(p, reference.log_softmax(-1).detach(), estimator)).sum()
    return torch.autograd.grad(mean, policy)[0]


def expected_gradient_in_reward(estimator: Estimator) -> Tensor:
    """E_pi[estimate * grad log pi]: what a policy gradient makes of a cost."""
    policy, reference = distributions()
    p = policy.log_softmax(-1)
    cost = kl_estimate(p, reference.log_softmax(-1), estimator).detach()
    return torch.autograd.grad((p.exp().detach() * cost * p).sum(), policy)[0]


def test_gradients_of_the_estimators_are_what_the_documentation_says() -> None:
    policy, reference = distributions()
    towards = torch.autograd.grad(exact(policy, reference), policy)[0]  # grad KL(pi || ref)
    away = torch.autograd.grad(exact(reference, policy), policy)[0]  # grad KL(ref || pi)
    torch.testing.assert_close(expected_gradient_in_reward("k1"), towards)
    torch.testing.assert_close(expected_gradient_in_reward("k3"), towards - away)
    torch.testing.assert_close(expected_gradient_in_loss("k1"), torch.zeros_like(towards))
    torch.testing.assert_close(expected_gradient_in_loss("k2"), towards)
    torch.testing.assert_close(expected_gradient_in_loss("k3"), away)


def test_adaptive_controller_by_hand() -> None:
    kl = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    kl.update(6.6, 500)  # error 0.1
    assert kl.coef == pytest.approx(0.2 * (1 + 0.1 * 500 / 10_000))
    kl = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    kl.update(60.0, 500)  # clipped at 0.2
    assert kl.coef == pytest.approx(0.2 * 1.01)
    kl.update(0.0, 500)  # clipped at -0.2
    assert kl.coef == pytest.approx(0.2 * 1.01 * 0.99)
    kl = AdaptiveKL(coef=0.2, target=6.0, horizon=10)
    kl.update(0.0, 1000)
    assert kl.coef >= 0
    fixed = FixedKL(0.3)
    fixed.update(99.0, 10)
    assert fixed.coef == 0.3


def test_policy_loss_by_hand() -> None:
    """Ratios 1.5, 0.5, 1.5, 0.5, 1.1 with advantages 1, 1, -1, -1, 2 and clip 0.2."""
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    loss, clipped = clipped_policy_loss(ratio.log(), torch.zeros(5), advantages)
    torch.testing.assert_close(loss, torch.tensor([-1.2, -0.5, 1.5, 0.8, -2.2]))
    assert clipped.tolist() == [True, False, False, True, False]


def test_clip_higher_and_dual_clip_by_hand() -> None:
    ratio, advantages = torch.tensor([1.5, 0.5, 5.0]), torch.tensor([1.0, -1.0, -1.0])
    loss, clipped = clipped_policy_loss(ratio.log(), torch.zeros(3), advantages, clip_low=0.2, clip_high=0.28)
    torch.testing.assert_close(loss, torch.tensor([-1.28, 0.8, 5.0]))
    loss, clipped = clipped_policy_loss(ratio.log(), torch.zeros(3), advantages, dual_clip=3.0)
    torch.testing.assert_close(loss, torch.tensor([-1.2, 0.8, 3.0]))
    assert clipped.tolist() == [True, True, True]


def test_value_loss_by_hand() -> None:
    """Old value 0, target 1, clip 0.2: a value at 0.5 is held at 0.2, whose error is larger."""
    values, targets = torch.tensor([0.5, 0.1, 3.0]), torch.tensor([1.0, 1.0, 1.0])
    loss, clipped = clipped_value_loss(values, torch.zeros(3), targets, 0.2)
    torch.testing.assert_close(loss, torch.tensor([0.32, 0.405, 2.0]))
    assert clipped.tolist() == [True, False, False]
    near, old, far = 0.05 * torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    rounded = old + (near - old)  # a value held at no more than itself is not held
    assert ((rounded - far).square() > (near - far).square()).any()
    assert not clipped_value_loss(near, old, far, 1.0).clipped.any()
    free, none = clipped_value_loss(values, torch.zeros(3), targets, None)
    torch.testing.assert_close(free, torch.tensor([0.125, 0.405, 2.0]))
    assert not none.any()


def test_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    now, old, advantages, returns = (torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(4))
    now.requires_grad_(True)
    for dual in (None, 2.0):
        assert torch.autograd.gradcheck(
            lambda x, dual=dual: clipped_policy_loss(x, old, advantages, clip_high=0.4, dual_clip=dual).loss, now
        )
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, old, returns, 0.2).loss, now)
    for estimator in ("k1", "k2", "k3"):
        assert torch.autograd.gradcheck(lambda x, e=estimator: kl_estimate(x, old, e), now)


def test_a_clipped_ratio_has_no_gradient() -> None:
    log_probs = torch.tensor([1.0, -1.0], requires_grad=True)
    clipped_policy_loss(log_probs, torch.zeros(2), torch.tensor([1.0, -1.0])).loss.sum().backward()  # type: ignore[no-untyped-call]
    assert log_probs.grad is not None
    assert not log_probs.grad.any()


def test_aggregations_by_hand() -> None:
    """Losses 1, 1, 1 in one response and 4 in another: the mean of tokens is 7/4, of sequences 5/2, over 2 x 10 is 7/20."""
    lengths = torch.tensor([3, 1])
    losses = [torch.ones(3), torch.tensor([4.0])]
    for aggregation, expected in (("token", 7 / 4), ("sequence", 5 / 2), ("constant", 7 / 20)):
        weights = token_weights(lengths, aggregation, constant_length=10)  # type: ignore[arg-type]
        total = sum(float(w) * float(loss.sum()) for w, loss in zip(weights, losses, strict=True))
        assert total == pytest.approx(expected)
    with pytest.raises(ValueError, match="constant_length"):
        token_weights(lengths, "constant")
    with pytest.raises(ValueError, match="token, sequence, constant"):
        token_weights(lengths, "mean")  # type: ignore[arg-type]
