"""Offline preference learning: the losses by hand, their gradients, what is refused, and that it learns what was preferred."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import (
    LIMIT,
    NUM_ENVS,
    assert_same_weights,
    collected,
    gradient,
    letters_env,
    move_reference,
    small_agent,
    weights,
)

from rlhf_gym.agents import PreferenceOptimization
from rlhf_gym.agents.common.preference_losses import kto_loss, kto_reference_point, orpo_loss, simpo_loss
from rlhf_gym.errors import ConfigError, TextsTooLong

LOSSES = ["dpo", "ipo", "kto", "orpo", "simpo"]
DATA = [("abc", "aab", "c"), ("d", "aaaa", "dd"), ("efg", "aa", "fff"), ("bb", "aaaaa", "bbb"), ("zz", "a", "zzzz")]


def agent_of(loss: str, **options: Any) -> Any:
    options = {"preferences": DATA, "n_episodes": NUM_ENVS, "loss": loss} | options
    make: Any = PreferenceOptimization
    return small_agent(lambda *a, **k: make(*a, **{key: v for key, v in k.items() if key != "kl_coef"}), **options)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_losses_by_hand() -> None:
    ratios, desirable = torch.tensor([2.0, -1.0], requires_grad=True), torch.tensor([True, False])
    losses = kto_loss(ratios, desirable, torch.tensor(0.5), 0.1, desirable_weight=1.5, undesirable_weight=0.5)
    # lambda (1 - sigmoid(beta (r - z))) and lambda (1 - sigmoid(beta (z - r))).
    torch.testing.assert_close(losses, torch.tensor([1.5 * (1 - sigmoid(0.15)), 0.5 * (1 - sigmoid(0.15))]))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    slope = 0.1 * sigmoid(0.15) * (1 - sigmoid(0.15))
    torch.testing.assert_close(ratios.grad, torch.tensor([-1.5 * slope, 0.5 * slope]))
    # The reference point is a mean, never below 0.
    assert kto_reference_point(torch.tensor([1.0, 3.0, -1.0])) == 1
    assert kto_reference_point(torch.tensor([1.0, -3.0])) == 0

    # Probabilities 1/2 and 1/5 have the odds 1 and 1/4: log-odds that differ by log 4.
    chosen, rejected = torch.tensor([0.5]).log().requires_grad_(), torch.tensor([0.2]).log().requires_grad_()
    found = orpo_loss(chosen, rejected, 0.25)
    torch.testing.assert_close(found, torch.tensor([math.log(2) - 0.25 * math.log(4 / 5)]))
    found.sum().backward()  # type: ignore[no-untyped-call]
    # d log odds / dm = 1 / (1 - P); sigmoid(-log 4) = 1/5.
    torch.testing.assert_close(chosen.grad, torch.tensor([-1 - 0.25 * 0.2 * 2]))
    torch.testing.assert_close(rejected.grad, torch.tensor([0.25 * 0.2 * 1.25]))
    assert torch.isfinite(orpo_loss(torch.zeros(1), torch.zeros(1), 1.0)).all()

    chosen, rejected = torch.tensor([-1.0], requires_grad=True), torch.tensor([-1.5])
    found = simpo_loss(chosen, rejected, 2.0, 0.3)  # 2 * 0.5 - 0.3
    torch.testing.assert_close(found, torch.tensor([-math.log(sigmoid(0.7))]))
    found.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(chosen.grad, torch.tensor([-2.0 * (1 - sigmoid(0.7))]))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_is_that_of_whole_responses(loss: str) -> None:
    """Against autograd over plain passes of the model, response by response; micro-batches change nothing."""
    agent = agent_of(loss, scale=4.0, beta=0.3, batch_size=NUM_ENVS, tokens_per_batch=40)
    if agent.reference is not None:  # orpo and simpo hold none
        move_reference(agent)
    rollout = collected(agent)
    [rows] = rollout.minibatches(NUM_ENVS, agent._update_rng)
    found = gradient(agent, rollout, rows)
    agent.policy.optimizer.zero_grad()

    def log_prob(network: Any, prompt: list[int], response: list[int]) -> Any:
        logits = network(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        logits[:, list(agent.policy.limits.suppress_tokens)] = -torch.inf
        return logits.log_softmax(-1)[range(len(response)), response].sum()

    policy = agent.policy.language_model.model

    def ratio(i: int, prompt_of: int | None = None) -> Any:
        prompt = rollout.episodes[i if prompt_of is None else prompt_of].prompt_ids
        response = rollout.episodes[i].response_ids
        return log_prob(policy, prompt, response) - log_prob(agent.reference.model, prompt, response).detach()

    def mean(i: int) -> Any:
        episode = rollout.episodes[i]
        return log_prob(policy, episode.prompt_ids, episode.response_ids) / len(episode.response_ids)

    pairs, sigma = list(zip(rows[::2], rows[1::2], strict=True)), torch.nn.functional.logsigmoid
    assert loss == "kto" or all(rollout.episodes[i].info["chosen"] and i + 1 == j for i, j in pairs)
    if loss == "dpo":
        expected = -sum(sigma(0.3 * (ratio(i) - ratio(j))) for i, j in pairs) / len(pairs)
    elif loss == "ipo":
        expected = sum((ratio(i) - ratio(j) - 1 / 0.6) ** 2 for i, j in pairs) / len(pairs)
    elif loss == "simpo":
        expected = -sum(sigma(0.3 * (mean(i) - mean(j)) - 1.0) for i, j in pairs) / len(pairs)
    elif loss == "orpo":
        odds = {i: torch.log(mean(i).exp() / (1 - mean(i).exp())) for pair in pairs for i in pair}
        expected = sum(-mean(i) - 0.3 * sigma(odds[i] - odds[j]) for i, j in pairs) / len(pairs)
    else:
        others = rows[1:] + rows[:1]
        with torch.no_grad():
            point = max(0.0, float(sum(ratio(j, i) for i, j in zip(rows, others, strict=True)) / len(rows)))
        signs = {i: 1 if rollout.episodes[i].info["chosen"] else -1 for i in rows}
        expected = sum(1 - torch.sigmoid(signs[i] * 0.3 * (ratio(i) - point)) for i in rows) / len(rows)
    expected.backward()
    wanted = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_what_was_preferred_and_goes_on_from_a_checkpoint(loss: str, tmp_path: Path) -> None:
    options = {"batch_size": 8, "learning_rate": 3e-3}
    agent = agent_of(loss, **options)
    before = agent.measure(DATA)
    agent.learn(iterations=4).save(tmp_path / "half")
    loaded = PreferenceOptimization.load(tmp_path / "half", env=letters_env(), preferences=DATA)
    agent.learn(iterations=8, reset_num_timesteps=False)
    loaded.learn(iterations=8, reset_num_timesteps=False)
    assert_same_weights(weights(agent), weights(loaded))
    after = agent.measure(DATA)
    assert after["loss"] < before["loss"]
    assert after["rewards/chosen"] - after["rewards/rejected"] > before["rewards/chosen"] - before["rewards/rejected"]
    if loss != "kto":
        assert after["rewards/accuracies"] > 0.7
        assert after["rewards/margins"] == pytest.approx(after["rewards/chosen"] - after["rewards/rejected"], abs=1e-5)


def test_kto_takes_single_responses() -> None:
    agent = agent_of("kto", preferences=[("ab", "a", None), ("b", None, "bb"), ("c", "aa", None)], batch_size=2)
    agent.learn(iterations=1)
    assert [e.info["chosen"] for e in agent.rollout.episodes].count(False) in (5, 6)  # each third of 16
    assert agent.n_episodes == NUM_ENVS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: agent_of("dpo", preferences=[]), "PreferenceOptimization needs preferences"),
        (
            lambda: agent_of("dpo", preferences=["abc"]),
            r"preferences\[0\] must be a triple \(prompt, chosen, rejected\)",
        ),
        (lambda: agent_of("dpo", preferences=[*DATA, ("a", "b", 3)]), r"preferences\[5\] must be a triple"),
        (
            lambda: agent_of("dpo", preferences=[("a", "b", None)]),
            "has only one response, and loss='dpo' learns from pairs",
        ),
        (lambda: agent_of("kto", preferences=[("a", None, None)]), r"preferences\[0\] must be a triple"),
        (lambda: agent_of("simpo", batch_size=3), "learns from pairs: batch_size must be even, got 3"),
        (lambda: agent_of("kto", batch_size=1), "batch_size must be at least 2"),
        (lambda: agent_of("kto", label_smoothing=0.1), "belongs to loss='dpo'"),
        (lambda: agent_of("dpo", kl_limit=3.0), "PreferenceOptimization has no setting kl_limit"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_longer_responses_than_the_limit_are_cut() -> None:
    with pytest.warns(TextsTooLong, match="1 of 2 responses to learn exceed the length limit"):
        agent = agent_of("dpo", preferences=[("a", "b" * (LIMIT + 3), "c")])
    chosen, rejected = collected(agent).episodes[:2]
    assert (len(chosen.response_ids), chosen.ended, rejected.ended) == (LIMIT, False, True)
