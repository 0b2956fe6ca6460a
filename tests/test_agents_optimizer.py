"""The optimizer: its settings arrive, the value function may have its own rate and norm, and the rate follows its schedule."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ppo_setups import assert_same_weights, collected, learn, learn_from, letters_env, small_ppo, weights
from tiny_models import LetterTokenizer, tiny_language_model

from rlhf_gym.agents import PPO
from rlhf_gym.agents.common.norms import layer_groups, moments
from rlhf_gym.agents.common.optimizer import check_parts, clip_gradients, rate_at, split_weights
from rlhf_gym.errors import ConfigError


@pytest.mark.parametrize(
    ("decay", "warmup", "done", "rate"),
    [
        ("constant", 0.0, 0.9, 1.0),
        ("linear", 0.0, 0.25, 0.75),
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.0, 0.5, 0.5),
        ("cosine", 0.0, 1.0, 0.0),
        ("cosine", 0.0, 1 / 3, 0.75),
        ("constant", 0.2, 0.0, 0.1),
        ("constant", 0.2, 0.1, 0.55),
        ("linear", 0.2, 0.2, 1.0),
        ("linear", 0.2, 0.6, 0.5),
        ("cosine", 0.5, 0.75, 0.5),
    ],
)
def test_the_rate_by_hand(decay: str, warmup: float, done: float, rate: float) -> None:
    assert rate_at(1 - done, decay, warmup) == pytest.approx(rate)


def test_the_step_is_adamws() -> None:
    """Against the equations of Loshchilov and Hutter 2019, two steps, all settings away from their defaults."""
    options = {"adam_beta1": 0.7, "adam_beta2": 0.9, "adam_epsilon": 1e-3, "weight_decay": 0.2}
    agent = small_ppo(learning_rate=0.01, max_grad_norm=1e9, **options)
    collected(agent)
    weight = torch.nn.Parameter(agent.policy.value_head.linear.weight.detach().clone())
    at, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    for step in (1, 2):
        slope = torch.linspace(-1, 2, weight.numel()).view_as(weight) * step
        for parameter in agent.policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        agent.policy.value_head.linear.weight.grad = slope.clone()
        agent.step_optimizer()
        m, v = 0.7 * m + 0.3 * slope, 0.9 * v + 0.1 * slope**2
        at = at - 0.01 * 0.2 * at - 0.01 * (m / (1 - 0.7**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
    torch.testing.assert_close(agent.policy.value_head.linear.weight.detach(), at, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["shared", "separate"])
def test_the_value_function_has_its_own_rate_and_norm(network: Any) -> None:
    agent = small_ppo(
        value_network=network, value_learning_rate=6e-3, learning_rate_decay="linear", value_max_grad_norm=0.5
    )
    collected(agent)
    values, others = split_weights(agent.policy)
    assert len(values) == 2 if network == "shared" else len(values) > 2
    assert not {id(p) for p in values} & {id(p) for p in others}
    agent._current_progress_remaining = 0.5
    agent._update_learning_rate(agent.policy.optimizer)
    assert [group["lr"] for group in agent.policy.optimizer.param_groups] == pytest.approx([1.5e-3, 3e-3])
    for p in (*values, *others):
        p.grad = torch.ones_like(p)
    norms = clip_gradients(agent.policy, 2.0, 0.5)
    sizes = [sum(p.numel() for p in group) ** 0.5 for group in (others, values)]
    assert [float(norm) for norm in norms.values()] == pytest.approx(sizes)
    after = [torch.cat([p.grad.flatten() for p in group]).norm().item() for group in (others, values)]
    assert after == pytest.approx([2.0, 0.5], rel=1e-4)


def test_a_large_value_loss_leaves_the_policys_step_alone() -> None:
    """With one norm for both, a separate value network slows the policy down through the clip."""
    moved = []
    for vf_coef in (0.1, 1000.0):
        agent = small_ppo(value_network="separate", vf_coef=vf_coef, value_max_grad_norm=1.0, n_epochs=1, batch_size=16)
        learn_from(agent, collected(agent))
        moved.append({name: value for name, value in weights(agent).items() if not name.startswith("value")})
    for name, value in moved[0].items():
        torch.testing.assert_close(value, moved[1][name], rtol=0, atol=0, msg=name)


def test_a_schedule_takes_no_decay() -> None:
    with pytest.raises(ConfigError, match="learning_rate is a schedule already"):
        small_ppo(learning_rate=lambda left: 1e-3, learning_rate_warmup=0.1)


def ppo_8bit(**options: Any) -> PPO:
    """Of a network with tensors on both sides of the size from which moments take 8 bits."""
    pytest.importorskip("bitsandbytes")
    return small_ppo(language_model=tiny_language_model(layers=1, hidden=64), optimizer="adamw_8bit", **options)


def test_steps_in_8_bits_are_near_those_of_exact_moments() -> None:
    """Against the equations, moments and weights, three steps; versions count them, which engines go by."""
    agent = ppo_8bit(learning_rate=0.01, max_grad_norm=1e9, weight_decay=0.2)
    collected(agent)
    weight = max(agent.policy.parameters(), key=torch.Tensor.numel)
    at, m, v = weight.detach().clone(), torch.zeros_like(weight), torch.zeros_like(weight)
    slopes = torch.Generator().manual_seed(0)
    version = weight._version
    for step in (1, 2, 3):
        slope = torch.randn(weight.shape, generator=slopes)
        for parameter in agent.policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = slope.clone()
        agent.step_optimizer()
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        at = at - 0.01 * 0.2 * at - 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-5)
    assert weight._version > version
    state = agent.policy.optimizer.state[weight]
    assert state["state1"].dtype == torch.uint8
    for found, exact in zip(moments(state), (m, v), strict=True):
        assert float((found - exact).norm() / exact.norm()) < 0.03
    moved = 0.01 * 3
    assert float((weight.detach() - at).abs().mean()) < 0.03 * moved
    small = agent.policy.optimizer.state[agent.policy.value_head.linear.weight]
    assert small["state1"].dtype == torch.float32


def test_update_norms_in_8_bits_are_those_of_the_weights_that_moved() -> None:
    agent = ppo_8bit(batch_size=16, n_epochs=1)
    before, named = weights(agent), dict(agent.policy.named_parameters())
    (row,) = learn(agent, 1)
    for group, members in layer_groups(agent.policy).items():
        ids = {id(member) for member in members}
        moved = [(named[name] - before[name]).flatten() for name in named if id(named[name]) in ids]
        assert row[f"update_norm/{group}"] == pytest.approx(torch.cat(moved).norm().item(), rel=0.03), group


def test_an_agent_in_8_bits_goes_on_exactly_and_with_no_other_optimizer(tmp_path: Path) -> None:
    plain = ppo_8bit(kl_limit=5.0)
    plain.learn(iterations=2)
    plain.save(tmp_path / "agent.zip")
    given: dict[str, Any] = {"env": letters_env(), "tokenizer": LetterTokenizer()}
    loaded = PPO.load(tmp_path / "agent.zip", **given)
    saved = weights(loaded)
    for agent in (plain, loaded):
        agent.learn(iterations=4)  # in all
    assert_same_weights(weights(plain), weights(loaded))
    assert any(not torch.equal(saved[name], now) for name, now in weights(loaded).items())
    with pytest.raises(
        ConfigError, match="holds the moments of optimizer='adamw_8bit', which 'adamw' cannot go on from"
    ):
        PPO.load(tmp_path / "agent.zip", optimizer="adamw", **given)


def test_8_bits_without_their_library_or_in_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: Any = SimpleNamespace(sharded=True, shared=True)
    check_parts("adamw", parts)
    with pytest.raises(ConfigError, match="cannot step weights of which each rank keeps a part"):
        check_parts("adamw_8bit", parts)
    monkeypatch.setattr("rlhf_gym.lm.quantization.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"optimizer='adamw_8bit' needs bitsandbytes: pip install 'rlhf-gym\[quantized\]'"
    ):
        small_ppo(optimizer="adamw_8bit")
