"""For every agent: its gradient is that of its loss, and it learns from generated tokens and finite numbers alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ppo_setups import (
    NUM_ENVS,
    assert_same_weights,
    collected,
    gradient,
    learn_from,
    letters_env,
    move_reference,
    small_agent,
    weights,
)
from tiny_models import tiny_language_model

from rlhf_gym import agents
from rlhf_gym.errors import RlhfGymError, TrainingError

PREFERENCES = [("ab", "ccaab", "b"), ("b", "a", "cc"), ("abc", "bb", "a")]

# Every agent, and every switch that changes what is differentiated.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "PPO": ("PPO", {"vf_coef": 0.5}),
    "PPO, separate values": ("PPO", {"vf_coef": 0.5, "value_network": "separate"}),
    "PPO, KL k2 in the loss": ("PPO", {"kl_in": "loss", "kl_coef": 1.0}),
    "PPO, KL k3 in the loss": ("PPO", {"kl_in": "loss", "kl_coef": 1.0, "kl_estimator": "k3"}),
    "PPO, entropy bonus": ("PPO", {"ent_coef": 0.5}),
    "PPO, mean of responses": ("PPO", {"aggregation": "sequence", "dual_clip": 3.0}),
    "PPO, temperature": ("PPO", {"temperature": 0.7}),
    "NLPO": ("NLPO", {"mask_top_p": 0.9}),
    "A2C": ("A2C", {"vf_coef": 0.5}),
    "REINFORCE": ("REINFORCE", {}),
    "REINFORCE++": ("ReinforcePlusPlus", {}),
    "RLOO": ("RLOO", {}),
    "ReMax": ("ReMax", {}),
    "GRPO": ("GRPO", {"kl_coef": 1.0}),
    "Dr. GRPO": ("GRPO", {"scale_rewards": "none", "aggregation": "constant", "kl_coef": 0.0}),
    "DAPO": ("GRPO", {"aggregation": "token", "clip_range_high": 0.28, "overlong_buffer": 4, "kl_coef": 0.0}),
    "GSPO": ("GSPO", {"clip_range": 0.2, "clip_range_high": 0.2}),
    "RLOO, ratio of the response": ("RLOO", {"policy_loss": "response", "clip_range": 0.2, "n_epochs": 2}),
    "REINFORCE, ratio without a clip": ("REINFORCE", {"policy_loss": "ratio", "n_epochs": 2}),
    "PPO, SAPO": ("PPO", {"vf_coef": 0.5, "policy_loss": "sapo"}),
    "GMPO": ("GRPO", {"policy_loss": "gmpo", "overlong_filtering": True, "kl_coef": 0.0}),
    "GRPO, Clip-Cov": ("GRPO", {"cov_control": "clip", "cov_share": 0.3, "cov_low": 0.0, "kl_coef": 0.0}),
    "online DPO": ("OnlineDPO", {}),
    "online IPO": ("OnlineDPO", {"loss": "ipo"}),
    "RAFT": ("RAFT", {}),
    "SFT": ("SFT", {"data": [("ab", "ccaab"), ("b", "a"), ("abc", "bb")], "n_episodes": NUM_ENVS}),
    "offline DPO": ("PreferenceOptimization", {"preferences": PREFERENCES, "n_episodes": NUM_ENVS}),
}
GIVEN = {
    name: {key: options[key]}
    for name, options in VARIANTS.values() for key in ("data", "preferences") if key in options
} | {"ILQL": {"trajectories": [("ab", "ccaab", 1.0), ("b", "a", -2.0), ("abc", "bb", 0.5)]}}  # fmt: skip
"""What agents learn from that do not generate."""
NAMES = sorted({name for name, _ in VARIANTS.values()} | {"TRPO", "ILQL", "ES"})
DIFFERENTIATED = [name for name in NAMES if name not in ("TRPO", "ES")]
"""The agents whose minibatches have a loss."""


def agent_of(name: str, **options: Any) -> Any:
    kind: Any = getattr(agents, name)
    if name in GIVEN:
        options = {**GIVEN[name], "n_episodes": NUM_ENVS} | options
    given = {"kl_coef": 0.05, "batch_size": 8, **options}
    has = kind.Settings.names() - ({"batch_size"} if name in ("TRPO", "ES") else set())
    env, model = options.pop("env", None), options.pop("language_model", None)
    given = {k: v for k, v in given.items() if k in has - {"language_model"}}
    return kind(
        "LMPolicy", env or letters_env(), language_model=model or tiny_language_model(scale=4.0), seed=0, device="cpu",
        **given,
    )  # fmt: skip


def learnable(agent: Any, rollout: Any) -> list[int]:
    """All episodes that the agent learns from, in the order of its minibatches."""
    return [row for batch in rollout.minibatches(len(rollout.episodes), agent._update_rng) for row in batch]


def learned_weights(agent: Any) -> dict[str, torch.Tensor]:
    """The policy's; TRPO fits its values, a network of their own, before the policy's step."""
    return {k: v for k, v in weights(agent).items() if not isinstance(agent, agents.TRPO) or k.startswith("lm.")}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_is_that_of_the_loss(variant: str) -> None:
    """Along a random direction through all weights at once, against the loss's central difference."""
    name, options = VARIANTS[variant]
    agent = agent_of(name, **options)
    if agent.reference is not None:
        move_reference(agent)
    rollout = collected(agent)
    rows = learnable(agent, rollout)
    with torch.no_grad():  # a step away from where the ratio is 1 and the values are the rollout's
        generator = torch.Generator().manual_seed(1)
        for parameter in agent.policy.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
    gradient(agent, rollout, rows)
    learned = [p for p in agent.policy.parameters() if p.grad is not None]
    assert max(float(p.grad.abs().max()) for p in learned) > 1e-4
    # Mostly along the gradient: along anything else the difference would drown in rounding.
    directions = [
        p.grad / p.grad.norm().clamp(min=1e-8) + 0.3 * torch.randn(p.shape, generator=generator) / math.sqrt(p.numel())
        for p in learned
    ]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(learned, directions, strict=True))

    def loss(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(learned, directions, strict=True):
                parameter += step * direction
        gradient(agent, rollout, rows)
        with torch.no_grad():
            for parameter, direction in zip(learned, directions, strict=True):
                parameter -= step * direction
        return float(agent.minibatch_metrics["train/loss"][-1])

    size = 1e-3
    assert (loss(size) - loss(-size)) / (2 * size) == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ES"])  # which reads weights to move them only
def test_weights_that_broke_stop_training_before_anything_moves(name: str) -> None:
    """A weight becomes NaN after the rollout was generated: learning stops, says where, and changes no weight."""
    agent = agent_of(name)
    collected(agent)
    broken = next(p for n, p in agent.policy.language_model.model.named_parameters() if "mlp" in n)
    with torch.no_grad():
        broken.view(-1)[0] = math.nan
    before = learned_weights(agent)
    with pytest.raises(TrainingError, match=r"iteration 1, (rollout|epoch 1|policy step)[^:]*: .* (is|are) not finite"):
        learn_from(agent, agent.rollout)
    for (key, value), old in zip(learned_weights(agent).items(), before.values(), strict=True):
        torch.testing.assert_close(value, old, atol=0, rtol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ES"])
def test_a_gradient_that_is_infinite_moves_nothing(name: str) -> None:
    agent = agent_of(name)
    collected(agent)
    parameter = next(p for n, p in agent.policy.language_model.model.named_parameters() if "mlp" in n)
    parameter.register_hook(lambda grad: torch.full_like(grad, math.inf))
    before = learned_weights(agent)
    with pytest.raises(TrainingError, match=r"iteration 1.*gradient is not finite"):
        learn_from(agent, agent.rollout)
    assert_same_weights(learned_weights(agent), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in GIVEN])
def test_a_reward_that_is_no_number_ends_the_rollout_by_name(name: str, value: float) -> None:
    def spoilt(prompts: list[str], responses: list[str]) -> list[float]:
        return [value if i == 1 else 1.0 for i in range(len(prompts))]

    agent = agent_of(name, env=letters_env(reward=spoilt))
    before = weights(agent)
    with pytest.raises(RlhfGymError, match="spoilt"):
        agent.learn(1)
    assert_same_weights(weights(agent), before)
    # And one that comes past the rewards' own check, from an environment of somebody else's.
    agent = agent_of(name)
    collected(agent)
    agent.rollout.rewards[0, 0] = value
    with pytest.raises(TrainingError, match=r"iteration 1, rollout: the environment's rewards are not finite \(1 of"):
        learn_from(agent, agent.rollout)
    assert_same_weights(weights(agent), before)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_nothing_is_learned_from_prompts_nor_after_the_end(name: str) -> None:
    """Only hidden states that predict a token of a response have a gradient: no prompt, no padding, nothing after EOS."""
    agent = agent_of(name, **({"group_size": 8} if name == "ReMax" else {}))  # the greedy ones of groups are left out
    if agent.reference is not None:
        move_reference(agent)
    rollout = collected(agent)
    assert len(set(rollout.lengths)) > 1  # some ended before others
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hidden = agent.policy.language_model.hidden

    def spy(ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out: torch.Tensor = hidden(ids, **kwargs)
        if out.requires_grad:
            out.retain_grad()
            seen.append((ids, out))
        return out

    agent.policy.language_model.hidden = spy
    rows = learnable(agent, rollout)
    gradient(agent, rollout, rows)
    spans = {
        tuple(e.prompt_ids + e.response_ids): (len(e.prompt_ids), len(e.prompt_ids) + len(e.response_ids))
        for e in rollout.episodes
    }
    checked = 0
    for ids, states in seen:
        assert states.grad is not None
        for row, grad in zip(ids.tolist(), states.grad, strict=True):
            touched = grad.abs().sum(-1) > 0
            last = int(touched.nonzero().max()) if touched.any() else -1
            start, total = max((span for key, span in spans.items() if row[: span[1]] == list(key)), key=lambda s: s[1])
            assert not touched[: start - 1].any()
            assert last < total - 1
            checked += 1
    assert checked == len(rows)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_how_a_minibatch_is_cut_and_ordered_changes_no_gradient(name: str) -> None:
    agent = agent_of(name)
    if agent.reference is not None:
        move_reference(agent)
    rollout = collected(agent)
    rows = learnable(agent, rollout)
    whole = gradient(agent, rollout, rows)
    pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]  # online DPO's pairs belong together
    agent.tokens_per_batch = 40
    other = gradient(agent, rollout, [row for pair in pairs[::-1] for row in pair])
    torch.testing.assert_close(other, whole, atol=1e-5, rtol=1e-3)


def test_small_agents_are_all_there() -> None:
    """An agent that is added stands in these tests, too."""
    learners = {
        name for name in agents.__all__
        if isinstance(getattr(agents, name), type) and hasattr(getattr(agents, name), "learn")
    } - {"TokenAlgorithm", "CriticFree", "BestOfN"}  # fmt: skip
    assert learners == set(NAMES)
    assert small_agent(agents.PPO) is not None
