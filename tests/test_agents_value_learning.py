"""How the value function learns: lambdas of its own, a warm-up, and units of the returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import assert_same_weights, collected, learn, letters_env, small_agent, small_ppo, weights
from tiny_models import tiny_language_model
from toy_tasks import count_a

from rlhf_gym.agents import A2C, NLPO, PPO, TRPO
from rlhf_gym.agents.common.advantages import gae, length_adaptive_lambda, returns_to_go
from rlhf_gym.agents.common.value_head import ValueHead

QUICK: dict[str, Any] = {"learning_rate": 0.01, "n_epochs": 1, "task": {"limit": 4}}


def sum_of_errors(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Advantages from their definition, ``sum_k (gamma lambda)^k delta_{t+k}`` (Schulman et al. 2016, equation 16)."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_lambda_grows_with_the_response_by_hand() -> None:
    lambdas = length_adaptive_lambda(torch.tensor([1, 2, 4, 100]), 0.5)
    assert lambdas.tolist() == pytest.approx([0.0, 0.0, 0.5, 0.98])
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    rewards, values = torch.tensor([[0.0, 1, 0, 2], [1, 3, 0, 0]]), torch.tensor([[0.5, 1, -1, 2], [2, 1, 0, 0]])
    advantages, _ = gae(rewards, values, mask, gamma=0.9, gae_lambda=length_adaptive_lambda(mask.sum(1), 0.5))
    for row, (length, lam) in enumerate([(4, 0.5), (2, 0.0)]):
        by_hand = sum_of_errors(rewards[row, :length].tolist(), values[row, :length].tolist(), 0.9, lam)
        assert advantages[row, :length].tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("options", "advantage", "target"),
    [
        ({"value_gae_lambda": 1.0}, lambda n: 0.6, 1.0),
        ({"gae_lambda_alpha": 0.4}, lambda n: max(0.0, 1 - 1 / (0.4 * n)), 0.6),
        ({"gae_lambda_alpha": 0.4, "value_gae_lambda": 0.2}, lambda n: max(0.0, 1 - 1 / (0.4 * n)), 0.2),
    ],
)
def test_advantages_and_targets_have_their_own_lambda(options: dict[str, Any], advantage: Any, target: float) -> None:
    model = small_ppo(kl_coef=0.0, normalize_advantage=False, gae_lambda=0.6, gamma=0.9, scale=4.0, **options)
    with torch.no_grad():
        model.policy.value_head.linear.bias.fill_(2.0)
    rollout = collected(model)
    assert len(set(rollout.lengths)) > 2
    for row, n in enumerate(rollout.lengths):
        rewards, values = rollout.rewards[row, :n].tolist(), rollout.values[row, :n].tolist()
        ours = sum_of_errors(rewards, values, 0.9, advantage(n))
        assert rollout.advantages[row, :n].tolist() == pytest.approx(ours, abs=1e-5)
        aims = np.array(sum_of_errors(rewards, values, 0.9, target)) + values
        assert rollout.returns[row, :n].tolist() == pytest.approx(aims.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (PPO, {"value_network": "shared", "weight_decay": 0.1, "ent_target": 9.0, "ent_coef": 0.01}),
        (PPO, {"value_network": "separate", "value_max_grad_norm": 0.5}),
        (PPO, {"value_network": "shared", "lora": {"rank": 2}}),
        (PPO, {"value_network": "separate", "lora": {"rank": 2}}),
        (A2C, {"kl_target": 1.0, "kl_coef": 0.1, "kl_horizon": 10.0}), (NLPO, {}), (TRPO, {"max_kl": 0.1}),
    ],
)  # fmt: skip
def test_in_the_warm_up_the_value_function_alone_learns(kind: Any, options: dict[str, Any], tmp_path: Path) -> None:
    quick = {name: value for name, value in QUICK.items() if name != "n_epochs" or kind is not A2C}
    model = small_agent(kind, **quick, value_warmup=2, **options)
    before, coefficient = weights(model), model.kl_controller.coef
    learn(model, None, iterations=1)
    model.save(tmp_path / "agent.zip")
    resumed = kind.load(tmp_path / "agent.zip", env=letters_env(limit=4), **{
        name: tiny_language_model() for name in ("language_model",) if "lora" in options
    })  # fmt: skip
    for agent in (model, resumed):
        rows = learn(agent, None, iterations=2, reset_num_timesteps=False)
        after = weights(agent)
        values = {name for name in before if name.startswith(("value_head.linear", "value_network"))}
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert moved <= values
        assert agent.kl_controller.coef == coefficient
        assert agent.entropy_controller.coef == agent.ent_coef
        assert rows[-1]["train/value_loss"] > 0
    assert_same_weights(weights(model), weights(resumed))
    learn(model, None, iterations=3, reset_num_timesteps=False)
    assert any(not torch.equal(weights(model)[name], after[name]) for name in after if name.startswith("lm."))


def test_a_warm_up_leaves_values_that_know_the_returns() -> None:
    """The score is known from the prompt alone."""
    task = {"limit": 2, "reward": lambda prompts, responses, number, **columns: [float(n) for n in number]}
    model = small_ppo(
        learning_rate=0.01, n_epochs=4, task=task, value_network="separate", kl_coef=0.0, value_gae_lambda=1.0,
        scale_returns=True, value_warmup=8,
    )  # fmt: skip
    explained = [row["train/explained_variance"] for row in learn(model, None, iterations=8)]
    assert np.mean(explained[:2]) < 0.3 < 0.8 < np.mean(explained[-2:])


def times(scale: float) -> Any:
    return lambda prompts, responses, **columns: [scale * score for score in count_a(prompts, responses)]


@pytest.mark.parametrize(("kl_coef", "network"), [(0.1, "shared"), (0.0, "separate")])
def test_rewards_of_another_scale_are_learned_alike(kl_coef: float, network: str) -> None:
    curves, values = [], []
    for scale in (0.1, 1.0, 10.0):
        model = small_ppo(
            kl_coef=scale * kl_coef, scale_returns=True, learning_rate=0.01, task={"limit": 3, "reward": times(scale)},
            value_network=network, seed=2,  # with which some response of the first rollout scores: no unit is one of rounding
        )  # fmt: skip
        rows = learn(model, None, iterations=4)
        curves.append([[row["objective/scores"] / scale, row["loss/value_avg"]] for row in rows])
        values.append((model.rollout.values / scale)[model.rollout.mask][:8].tolist())
    for other in (0, 2):
        np.testing.assert_allclose(curves[other], curves[1], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(values[other], values[1], rtol=1e-2, atol=1e-3)


def later(scale: float, scored: list[int]) -> Any:
    """0 for the first 16 responses."""

    def reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        scored.extend([0] * len(responses))
        return [scale * (len(scored) > 16) * score for score in count_a(prompts, responses)]

    return reward


def test_returns_of_rounding_are_no_unit() -> None:
    curves = []
    for scale in (0.1, 1.0, 10.0):
        scored: list[int] = []
        task = {"limit": 3, "reward": later(scale, scored)}
        model = small_ppo(kl_coef=0.1 * scale, scale_returns=True, task=task, seed=2)
        rows = learn(model, None, iterations=1)
        head = model.policy.value_head
        assert head is not None
        assert len(scored) == 16
        assert (float(head.unit), float(head.seen)) == (1.0, 0.0)
        assert rows[0]["loss/value_avg"] < 1e-3  # the values are near 0, and so are the returns
        rows += learn(model, None, iterations=3, reset_num_timesteps=False)
        assert scale / 10 < float(head.unit) < 3 * scale
        curves.append([[row["objective/scores"] / scale, row["loss/value_avg"]] for row in rows])
    for other in (0, 2):
        np.testing.assert_allclose(curves[other], curves[1], rtol=1e-2, atol=1e-3)


def test_a_penalty_alone_may_be_the_return() -> None:
    model = small_ppo(
        scale_returns=True, kl_coef=0.2, task={"reward": lambda prompts, responses, **columns: [0.0] * len(responses)}
    )
    with torch.no_grad():
        for weight in model.reference.model.parameters():  # a teacher that is another model
            weight.mul_(3.0)
    learn(model, None, iterations=1)
    head, rollout = model.policy.value_head, model.rollout
    returns = returns_to_go(-0.2 * (rollout.log_probs - rollout.reference_log_probs) * rollout.mask, rollout.mask)
    assert float(head.unit) == pytest.approx(float(returns[rollout.mask].square().mean().sqrt()), rel=1e-3)


def test_the_unit_of_values_by_hand() -> None:
    torch.manual_seed(0)
    head, hidden = ValueHead(4), torch.randn(3, 4)
    with torch.no_grad():
        head.linear.bias.fill_(0.5)
    first = head(hidden)
    assert head.measure(torch.zeros(5)) == 1.0  # nothing to measure yet
    assert torch.equal(head(hidden), first)
    assert head.measure(torch.tensor([3.0, -4.0])) == pytest.approx(12.5**0.5)
    torch.testing.assert_close(head(hidden), first * 12.5**0.5)
    now = head(hidden)
    assert head.measure(torch.tensor([1.0, 2.0])) == 1.0
    assert float(head.unit) == pytest.approx((30 / 4) ** 0.5)
    torch.testing.assert_close(head(hidden), now)  # another unit, the same values
