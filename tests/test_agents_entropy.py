"""Clip-Cov, KL-Cov and the entropy bonus with a target: tokens, weights and gradients by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import LIMIT, NUM_ENVS, collected, gradient, learn, letters_env, small_agent

from rlhf_gym.agents import GRPO, PPO, RLOO
from rlhf_gym.agents.common.advantages import group_relative
from rlhf_gym.agents.common.covariance import covariances, tokens_to_clip, tokens_to_hold
from rlhf_gym.agents.common.entropy import EntropyController
from rlhf_gym.errors import ConfigError

ROWS = list(range(NUM_ENVS))
NOISE = torch.randn((NUM_ENVS, LIMIT), generator=torch.Generator().manual_seed(0))


def test_covariances_and_their_tokens_by_hand() -> None:
    log_probs, advantages = torch.tensor([-1.0, -3.0, -2.0, -2.0]), torch.tensor([2.0, -2.0, 1.0, -1.0])
    covariance = covariances(log_probs, advantages)
    assert covariance.tolist() == [2.0, 2.0, 0.0, 0.0]
    assert covariance.mean() == torch.cov(torch.stack([log_probs, advantages]), correction=0)[0, 1]
    values = torch.tensor([0.5, 1.5, 5.0, 2.0, 9.0, 3.0, 0.0, 1.0])
    within = [1, 3, 5]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        assert torch.nonzero(tokens_to_clip(values, 1.0, 1.0, 5.0, rng)).flatten().tolist() == within
        two = torch.nonzero(tokens_to_clip(values, 0.25, 1.0, 5.0, rng)).flatten().tolist()
        assert len(two) == 2
        assert set(two) < set(within)
        assert int(tokens_to_clip(values, 1e-4, 1.0, 5.0, rng).sum()) == 1
        assert not tokens_to_clip(values, 1.0, 20.0, 30.0, rng).any()
    assert torch.nonzero(tokens_to_hold(values, 0.25)).flatten().tolist() == [2, 4]
    assert torch.nonzero(tokens_to_hold(values, 1e-4)).flatten().tolist() == [4]


def moved(**options: Any) -> tuple[Any, Any]:
    """An agent, and a rollout from which its policy has moved a little."""
    agent = small_agent(GRPO, scale=4.0, group_size=4, kl_coef=0.0, policy_loss="ratio", **options)
    rollout = collected(agent)
    rollout.log_probs = (rollout.log_probs + 0.3 * NOISE[:, : rollout.mask.shape[1]]) * rollout.mask
    return agent, rollout


def test_clip_cov_takes_the_gradient_of_its_tokens() -> None:
    agent, rollout = moved(cov_control="clip", cov_share=0.3, cov_low=0.05)
    plain, same = moved()
    cut = (rollout.importance == 0) & rollout.mask
    assert 0 < int(cut.sum()) <= 0.3 * int(rollout.mask.sum())
    same.advantages = same.advantages * ~cut
    torch.testing.assert_close(gradient(agent, rollout, ROWS), gradient(plain, same, ROWS))
    assert agent.minibatch_metrics["loss/policy_avg"] == [pytest.approx(plain.minibatch_metrics["loss/policy_avg"][0])]


def test_kl_cov_holds_its_tokens_near_the_old_policy() -> None:
    """The gradient of `2 |log r|` is that of `-r A` with an advantage that is changed by `-2 sign(log r) / r`."""
    agent, rollout = moved(cov_control="kl", cov_share=0.3, cov_kl_coef=2.0)
    held = rollout.held
    assert int(held.sum()) == int(0.3 * int(rollout.mask.sum()))
    plain, same = moved()
    difference = -0.3 * NOISE[:, : rollout.mask.shape[1]] * rollout.mask
    same.advantages = same.advantages - held * 2 * difference.sign() * torch.exp(-difference)
    torch.testing.assert_close(gradient(agent, rollout, ROWS), gradient(plain, same, ROWS), atol=1e-4, rtol=1e-3)


def test_tokens_that_are_not_learned_from_are_not_chosen() -> None:
    agent = small_agent(GRPO, scale=4.0, cov_control="kl", cov_share=1.0, overlong_filtering=True)
    rollout = collected(agent)
    ended = torch.tensor([e.ended for e in rollout.episodes])
    assert torch.equal(rollout.held.bool(), rollout.mask & ended[:, None])
    learn(small_agent(GRPO, letters_env(limit=1), cov_control="kl", overlong_filtering=True), 1)  # nothing is left
    with pytest.raises(ConfigError, match=r"cov_low \(5\) must be below cov_high \(5.0\)"):
        small_agent(RLOO, cov_low=5)


def test_the_entropy_bonus_adapts_by_hand() -> None:
    controller, found = EntropyController(0.01, 1.0, 0.02), []
    for entropy in (0.5, 0.9, 1.0, 1.5, 2.0, 2.0, 0.5):
        controller.begin(entropy)
        found += [controller.bonus, controller.coef]
    assert found == pytest.approx([0.01, 0.03, 0.03, 0.05, 0.05, 0.03, 0, 0.01, 0, 0, 0, 0, 0, 0.02])
    fixed = EntropyController(0.3, None, 0.02)
    fixed.begin(9.0)
    assert (fixed.bonus, fixed.coef) == (0.3, 0.3)


def test_the_entropy_coefficient_is_saved_and_entropy_stays_near_the_target(tmp_path: Path) -> None:
    options: dict[str, Any] = {"learning_rate": 1e-2, "kl_coef": 0.0, "scale": 4.0, "n_epochs": 1}
    agent = small_agent(PPO, ent_target=1.5, ent_coef_step=0.05, **options)
    rows = learn(agent, 1, iterations=12) + learn(small_agent(PPO, **options), 1, iterations=12)
    assert max(row["train/ent_coef"] for row in rows[:12]) > 0
    assert rows[11]["objective/entropy"] > rows[23]["objective/entropy"]
    agent.save(tmp_path / "agent.zip")
    resumed = PPO.load(tmp_path / "agent.zip", env=letters_env(), device="cpu")
    assert resumed.entropy_controller.coef == agent.entropy_controller.coef


def test_the_mean_weighed_by_length_by_hand() -> None:
    """(3 * 1 + 1 * 5) / 4 = 2."""
    scores, lengths = torch.tensor([1.0, 5.0, 0.1, 0.1]), torch.tensor([3, 1, 7, 2])
    found = group_relative(scores, 2, "none", lengths=lengths)
    torch.testing.assert_close(found, torch.tensor([-1.0, 3.0, 0.0, 0.0]))
    assert (found[:2] * lengths[:2]).sum() == 0  # tokens' advantages have mean 0
    agent = small_agent(GRPO, **(GRPO.preset("opo") | {"group_size": 4, "scale": 4.0}))
    rollout = collected(agent)
    assert (rollout.advantages.view(-1, 4 * rollout.mask.shape[1]).sum(1).abs() < 1e-4).all()
