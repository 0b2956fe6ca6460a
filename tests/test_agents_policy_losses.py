"""Policy losses other than PPO's: numbers and gradients by hand, and the settings that choose them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ppo_setups import NUM_ENVS, collected, gradient, learn, letters_env, small_agent
from tiny_models import tiny_language_model
from toy_tasks import count_a

from rlhf_gym.agents import GRPO, PPO, REINFORCE, RLOO
from rlhf_gym.agents.common.policy_losses import OF_RESPONSES, gmpo_loss, policy_loss
from rlhf_gym.errors import ConfigError


def no_score(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(responses)


def test_gmpo_by_hand() -> None:
    """Positive: 0.9 is held at 0.4 and has no gradient, -0.9 is not held. Negative: the other way round."""
    difference = torch.tensor([0.9, -0.9, 0.2, 0.9, -0.9], requires_grad=True)
    advantages, lengths = torch.tensor([2.0, 2.0, 2.0, -3.0, -3.0]), torch.tensor([3, 2])
    loss, clipped = gmpo_loss(difference, torch.zeros(5), advantages, lengths, clip_low=0.3, clip_high=0.4)
    first, second = math.exp((0.4 - 0.9 + 0.2) / 3), math.exp((0.9 - 0.3) / 2)
    torch.testing.assert_close(loss, torch.tensor([-2 * first] * 3 + [3 * second] * 2))
    assert clipped.tolist() == [True, False, False, False, True]
    (loss * torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.5, 0.5])).sum().backward()  # type: ignore[no-untyped-call]
    by_hand = torch.tensor([0.0, -2 * first / 3, -2 * first / 3, 3 * second / 2, 0.0])
    assert difference.grad is not None
    torch.testing.assert_close(difference.grad, by_hand)


def test_the_ratio_alone_by_hand() -> None:
    new = torch.tensor([0.5, -0.5], requires_grad=True)
    loss, clipped = policy_loss(
        "ratio", new, torch.zeros(2), torch.tensor([2.0, -1.0]), torch.tensor([2]), clip_low=0.0
    )
    torch.testing.assert_close(loss, torch.tensor([-2 * math.exp(0.5), math.exp(-0.5)]))
    assert not clipped.any()


@pytest.mark.parametrize("kind", ["ratio", "cispo", "sapo", "gspo", "gmpo", "response"])
def test_every_loss_begins_with_the_policy_gradient(kind: str) -> None:
    """Where the policy has not moved, all have the gradient of REINFORCE."""
    found = []
    for chosen in (kind, "ppo"):
        agent = small_agent(
            REINFORCE, scale=4.0, kl_coef=0.0, policy_loss=chosen, clip_range=0.2, aggregation="constant"
        )
        rollout = collected(agent)
        if kind == "response" and chosen == "ppo":
            # Each token has the loss of its response, so a response counts as often as it has tokens.
            rollout.advantages = rollout.advantages * torch.tensor(rollout.lengths)[:, None]
        found.append(gradient(agent, rollout, list(range(NUM_ENVS))))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["ppo", "ratio", "cispo", "sapo", "gspo", "gmpo", "response"])
def test_responses_of_one_token_and_groups_of_equal_scores(kind: Any) -> None:
    """With one token, a response's ratio is its token's; an advantage of 0 has no gradient wherever the policy is."""
    new = torch.tensor([0.1, -0.1, 0.5, -0.5], requires_grad=True)
    old, clips = torch.zeros(4), {"clip_low": 0.2, "clip_high": 0.3}
    nothing = policy_loss(kind, new, old, torch.zeros(4), torch.tensor([3, 1]), **clips).loss
    assert torch.equal(nothing, torch.zeros(4))
    assert torch.equal(torch.autograd.grad(nothing.sum(), new)[0], torch.zeros(4))
    if kind in OF_RESPONSES:
        advantages, ones = torch.tensor([2.0, -1.0, 2.0, -1.0]), torch.ones(4, dtype=torch.long)
        if kind == "gmpo":  # it clips the logarithm of the ratio, at the same two points here
            clips = {"clip_low": -math.log(0.8), "clip_high": math.log(1.3)}
        found = policy_loss(kind, new, old, advantages, ones, **clips)
        plain = policy_loss("ppo", new, old, advantages, ones, clip_low=0.2, clip_high=0.3)
        torch.testing.assert_close(found.loss, plain.loss)
        for one, other in zip(*(torch.autograd.grad(x.loss.sum(), new) for x in (found, plain)), strict=True):
            torch.testing.assert_close(one, other)


def test_a_response_has_one_ratio_and_counts_once() -> None:
    settings: Any = RLOO.Settings
    assert settings.of({}).aggregation == "constant"
    assert settings.of({"policy_loss": "response", "clip_range": 0.2}).aggregation == "sequence"
    given = {"policy_loss": "response", "clip_range": 0.2, "aggregation": "token"}
    assert settings.of(given).aggregation == "token"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (RLOO, {"policy_loss": "cispo"}, "without a clip_range there cannot be policy_loss='cispo'"),
        (RLOO, {"policy_loss": "ratio", "clip_range_high": 0.3}, "policy_loss='ratio' clips nothing"),
        (GRPO, {"policy_loss": "gmpo", "dual_clip": 3.0}, "dual_clip does not go with policy_loss='gmpo'"),
        (PPO, {"policy_loss": "gspo"}, "policy_loss must be one of ppo, ratio, cispo, sapo; got 'gspo'"),
    ],
)
def test_settings_that_a_loss_does_not_know_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_agent(kind, **options)


def test_responses_that_were_cut_leave_the_loss_and_stay_in_the_metrics() -> None:
    options: dict[str, Any] = {"group_size": 4, "scale": 4.0, "kl_coef": 0.0, "n_epochs": 1, "batch_size": NUM_ENVS}
    agent, plain = small_agent(GRPO, overlong_filtering=True, **options), small_agent(GRPO, **options)
    rollout, all_of_it = collected(agent), collected(plain)
    ended = [i for i, episode in enumerate(rollout.episodes) if episode.ended]
    assert 0 < len(ended) < NUM_ENVS
    assert rollout.learn_from == ended
    torch.testing.assert_close(rollout.advantages, all_of_it.advantages)  # they count in their group's mean
    rows = [learn(small_agent(GRPO, **options, **more), 1)[0] for more in ({}, {"overlong_filtering": True})]
    for key in ("response_length", "eos_rate", "objective/scores", "episode"):
        assert rows[0][key] == rows[1][key]
    cut = small_agent(GRPO, letters_env(limit=1), overlong_filtering=True, group_size=4)  # nearly all of them, or all
    assert learn(cut, 1)[0]["response_length"] == 1


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (GRPO, GRPO.preset(name)) for name in ("cispo", "sapo", "gmpo", "opo", "clip_cov", "kl_cov")},
    "RLOO, several passes": (RLOO, {"policy_loss": "response", "clip_range": 0.2, "n_epochs": 2, "batch_size": 8}),
    "REINFORCE, several passes": (REINFORCE, {"policy_loss": "ratio", "n_epochs": 2, "batch_size": 8}),
    "PPO, SAPO, entropy target": (PPO, {"policy_loss": "sapo", "ent_target": 0.3}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_to_write_the_letter_that_is_paid_for(name: str) -> None:
    """Untrained: 0.3."""
    kind, options = VARIANTS[name]
    given = {"learning_rate": 1e-2, "kl_coef": 0.0, "batch_size": 8, **options}
    rows = learn(small_agent(kind, letters_env(), **given), 1, iterations=12)
    assert sum(row["objective/scores"] for row in rows[-3:]) / 3 > 1.5


def test_a_policy_learns_from_a_teacher_and_from_the_reward_at_once() -> None:
    """On-policy distillation: without a reward the policy becomes its teacher; with one it becomes what is paid for, nearby."""
    teacher = tiny_language_model(seed=5, scale=30.0)
    options: dict[str, Any] = {"kl_in": "loss", "kl_estimator": "k2", "reference": teacher}
    found = []
    for reward, coef in ((no_score, 1.0), (count_a, 0.01)):
        agent = small_agent(GRPO, letters_env(reward=reward), **(options | {"kl_coef": coef}))
        found.append(learn(agent, 1, iterations=12))
    alone, mixed = found
    assert alone[-1]["objective/kl"] < 0.6 * alone[0]["objective/kl"]
    assert mixed[-1]["objective/scores"] > mixed[0]["objective/scores"] + 1
