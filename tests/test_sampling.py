"""The behaviour distribution and the sampler, against hand-worked numbers and frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.lm.sampling import (
    Limits,
    Sampling,
    behaviour_log_probs,
    episode_uniforms,
    sample_tokens,
    top_p_mask,
)

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


def test_temperature_divides_the_logits() -> None:
    got = behaviour_log_probs(LOGITS, Sampling(temperature=0.5)).exp()
    expected = torch.tensor([[0.25, 0.09, 0.0225, 0.0025]]) / 0.365
    torch.testing.assert_close(got, expected)


def test_top_k_renormalises_what_it_keeps() -> None:
    got = behaviour_log_probs(LOGITS, Sampling(top_k=2)).exp()
    torch.testing.assert_close(got, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))


@pytest.mark.parametrize(("p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p: float, kept: int) -> None:
    # An exact sum (0.5, 0.8) is enough; float32 sums of these logits lie a rounding below or above, hence the tolerance.
    tolerance = 0 if p in (0.51, 0.81, 0.4, 1.0) else 1e-6
    assert int(top_p_mask(LOGITS, p - tolerance).sum()) == kept


def test_limits_ban_tokens_and_hold_back_eos() -> None:
    limits = Limits(eos_id=0, suppress_tokens=(3,), min_new_tokens=2)
    logits = limits.apply(LOGITS.expand(2, 4), torch.tensor([1, 2]))
    assert torch.isinf(logits).tolist() == [[True, False, False, True], [False, False, False, True]]
    assert not torch.isinf(LOGITS).any()


@given(st.floats(0, 1, exclude_max=True), st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))
def test_forbidden_tokens_are_never_drawn(u: float, kept: list[int]) -> None:
    log_probs = torch.full((1, 4), -torch.inf)
    log_probs[0, kept] = -float(np.log(len(kept)))
    assert int(sample_tokens(log_probs, torch.tensor([u], dtype=torch.float64))) in kept


def test_frequencies_follow_the_probabilities() -> None:
    uniforms = torch.from_numpy((np.arange(10_000) + 0.5) / 10_000)
    tokens = sample_tokens(LOGITS.expand(10_000, 4), uniforms)
    assert torch.bincount(tokens, minlength=4).tolist() == pytest.approx([5000, 3000, 1500, 500], abs=2)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_two_levels_find_what_one_running_sum_finds(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = 3 * torch.randn(500, size, generator=generator)
    logits[:, ::3] = -torch.inf if size > 1 else 0.0
    uniforms = torch.rand(500, generator=generator, dtype=torch.float64)
    cumulative = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    expected = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(-1)
    assert torch.equal(sample_tokens(logits, uniforms), expected)
    assert torch.equal(sample_tokens(torch.log_softmax(logits, -1), uniforms), expected)


@pytest.mark.parametrize("size", [3, 70])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_row_without_a_distribution_is_refused(size: int, value: float) -> None:
    log_probs = torch.zeros(2, size).log_softmax(-1)
    log_probs[1] = value
    with pytest.raises(ModelError, match="no next token can be drawn"):
        sample_tokens(log_probs, torch.tensor([0.5, 0.5], dtype=torch.float64))


def test_noise_depends_on_seed_and_episode_alone() -> None:
    assert np.array_equal(episode_uniforms(1, 7, 5), episode_uniforms(1, 7, 9)[:5])
    assert not np.array_equal(episode_uniforms(1, 7, 5), episode_uniforms(1, 8, 5))
    assert not np.array_equal(episode_uniforms(1, 7, 5), episode_uniforms(2, 7, 5))
    assert np.array_equal(episode_uniforms(-1, 7, 5), episode_uniforms((1 << 64) - 1, 7, 5))


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"min_new_tokens": -1}, {"min_new_tokens": 33}])
def test_bad_limits_are_refused_by_name(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Limits(eos_id=0, **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_bad_settings_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)  # type: ignore[arg-type]
