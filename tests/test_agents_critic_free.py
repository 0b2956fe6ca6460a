"""The agents without a value function, A2C, and the groups that some of them compare: numbers by hand, gradients, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_setups import (
    LIMIT,
    NUM_ENVS,
    Foreign,
    assert_same_weights,
    collected,
    gradient,
    learn,
    letters_env,
    move_reference,
    small_agent,
    weights,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

from rlhf_gym.agents import A2C, GRPO, GSPO, PPO, REINFORCE, RLOO, ReinforcePlusPlus
from rlhf_gym.agents.common.advantages import (
    equal_groups,
    group_relative,
    leave_one_out,
    overlong_penalty,
    returns_to_go,
)
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.common.losses import sequence_clipped_policy_loss
from rlhf_gym.envs import TokenEnv
from rlhf_gym.errors import ConfigError, TrainingError

CRITIC_FREE: list[Any] = [GRPO, GSPO, RLOO, REINFORCE, ReinforcePlusPlus]
ALL: list[Any] = [*CRITIC_FREE, A2C]
GROUPED: list[Any] = [GRPO, GSPO, RLOO]


# ------------------------------------------------------------------------------------------------- pure functions


def test_group_relative_by_hand() -> None:
    scores = torch.tensor([1.0, 3.0, 0.0, 0.0, 5.0, 6.0])
    std = 2**0.5
    expected = torch.tensor([-1 / std, 1 / std, 0.0, 0.0, -0.5 / std * 2, 0.5 / std * 2])
    torch.testing.assert_close(group_relative(scores, 2, epsilon=0.0).nan_to_num(), expected)
    centred = torch.tensor([-1.0, 1.0, 0.0, 0.0, -0.5, 0.5])
    torch.testing.assert_close(group_relative(scores, 2, "none"), centred)
    # All six: mean 2.5, squared differences 2.25, 0.25, 6.25, 6.25, 6.25, 12.25; their sum over five is 6.7.
    torch.testing.assert_close(group_relative(scores, 2, "batch", epsilon=0.0), centred / 6.7**0.5)


def test_equal_scores_have_no_advantage_whatever_their_rounding() -> None:
    """A mean of three times 0.1 is not 0.1 in float32; divided by its standard deviation it would be 1."""
    scores = torch.tensor([0.1, 0.1, 0.1, 1e6 + 0.1, 1e6 + 0.1, 1e6 + 0.1])
    for scale in ("group", "batch", "none"):
        assert not group_relative(scores, 3, scale, epsilon=1e-30).nan_to_num().any()  # type: ignore[arg-type]


def test_sums_that_differ_by_rounding_are_equal() -> None:
    """The first two are neighbours in float32; rewards that cancel are as rough as they are large."""
    rewards = torch.tensor([[0.5, 0.5], [0.5, 0.5 + 2**-23], [0.5, 0.5], [0.5, 0.5001], [0, 0], [0, 1e-9]])
    assert rewards[0].sum() != rewards[1].sum()
    assert equal_groups(rewards, 2).tolist() == [True, False, False]
    assert equal_groups(torch.tensor([[1e6, -1e6], [1.0, -0.75]]), 2).tolist() == [True]
    assert equal_groups(torch.tensor([[0, 1000.0], [0, 1000.0006]]), 2).tolist() == [False]  # nothing is summed
    assert equal_groups(torch.zeros(6, 3), 3).tolist() == [True, True]


def test_leave_one_out_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])
    torch.testing.assert_close(leave_one_out(scores, 3), torch.tensor([-3.0, -1.5, 4.5, 0.0, 0.0, 0.0]))


def test_returns_to_go_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    expected = torch.tensor([[1 + 1 + 1.0, 2 + 2.0, 4.0], [3 + 2.5, 5.0, 0.0]])
    torch.testing.assert_close(returns_to_go(rewards, mask, gamma=0.5), expected)


def test_the_overlong_penalty_by_hand() -> None:
    lengths = torch.tensor([1, 6, 7, 8, 10])
    torch.testing.assert_close(overlong_penalty(lengths, 10, 4), torch.tensor([0.0, 0.0, -0.25, -0.5, -1.0]))


def test_the_sequence_ratio_by_hand_and_its_gradient() -> None:
    old = torch.tensor([-1.0, -2.0, -1.5, -0.5, -3.0], dtype=torch.float64)
    new = (old + torch.tensor([0.1, -0.3, 0.02, 0.02, 0.02])).requires_grad_(True)
    advantages = torch.tensor([1.0, 1.0, -2.0, -2.0, -2.0], dtype=torch.float64)
    lengths = torch.tensor([2, 3])

    def loss(log_probs: torch.Tensor) -> torch.Tensor:
        out = sequence_clipped_policy_loss(
            log_probs.float(), old.float(), advantages.float(), lengths, clip_low=0.01, clip_high=0.01
        )
        return out.loss

    first, second = float(torch.exp(torch.tensor(-0.1))), float(torch.exp(torch.tensor(0.02)))
    expected = torch.tensor([-first, -first, 2 * second, 2 * second, 2 * second])
    torch.testing.assert_close(loss(new), expected, atol=1e-6, rtol=1e-6)
    # A > 0 with a ratio below 1 - clip, A < 0 with one above 1 + clip: neither is held, so both have a gradient.
    weights_ = torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3])
    (loss(new) * weights_).sum().backward()  # type: ignore[no-untyped-call]
    by_hand = torch.tensor([-first / 2, -first / 2, 2 * second / 3, 2 * second / 3, 2 * second / 3])
    assert new.grad is not None
    torch.testing.assert_close(new.grad.float(), by_hand, atol=1e-6, rtol=1e-6)
    held = sequence_clipped_policy_loss(
        new.float(), old.float(), -advantages.float(), lengths, clip_low=0.01, clip_high=0.01
    )
    assert held.clipped.all()


def test_gspo_takes_the_dual_clip_of_the_responses_ratio() -> None:
    """A ratio of 5 with a negative advantage: the loss is 3, not 5, and has no gradient."""
    log_probs = torch.full((4,), 5.0).log().requires_grad_(True)
    lengths, advantages = torch.tensor([3, 1]), torch.tensor([-1.0, -1.0, -1.0, 1.0])
    loss, clipped = sequence_clipped_policy_loss(
        log_probs, torch.zeros(4), advantages, lengths, clip_low=0.1, dual_clip=3.0
    )
    torch.testing.assert_close(loss, torch.tensor([3.0, 3.0, 3.0, -1.1]))
    assert clipped.all()
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert log_probs.grad is not None
    assert not log_probs.grad.any()
    agent, rollout = prepared(GSPO, dual_clip=1.5, kl_coef=0.0)
    rollout.advantages = -rollout.mask.float()
    rollout.log_probs = rollout.log_probs - rollout.mask.float()  # as if the policy had moved: every ratio is e
    assert not gradient(agent, rollout, list(range(8))).any()
    assert agent.minibatch_metrics["policy/clipfrac_avg"] == [pytest.approx(1.0)]


# ------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("collect", ["auto", "step"])
def test_a_group_answers_one_prompt_in_every_rollout(collect: str) -> None:
    agent = small_agent(GRPO, group_size=4, collect=collect, scale=4.0, n_episodes=2 * NUM_ENVS, n_epochs=1)
    seen = set()
    for _ in range(3):
        rollout = collected(agent)
        prompts = [tuple(e.prompt_ids) for e in rollout.episodes]
        assert all(prompts[i] == prompts[i // 4 * 4] for i in range(len(prompts)))
        seen |= set(prompts)
        assert len({tuple(e.response_ids) for e in rollout.episodes}) > len(prompts) // 4
    assert len(seen) > 2


def test_both_ways_to_collect_give_the_same_groups() -> None:
    agents = [
        small_agent(GRPO, group_size=4, scale=4.0, n_epochs=1, collect=c, learning_rate=1e-6) for c in ("auto", "step")
    ]
    for _ in range(3):
        a, b = (agent.learn(1, reset_num_timesteps=False).rollout for agent in agents)
        assert [e.prompt_ids for e in a.episodes] == [e.prompt_ids for e in b.episodes]
        assert [e.response_ids for e in a.episodes] == [e.response_ids for e in b.episodes]
        torch.testing.assert_close(a.log_probs, b.log_probs, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.advantages, b.advantages, atol=1e-4, rtol=0)


def test_groups_go_through_wrappers_and_a_new_environment() -> None:
    agent = small_agent(RLOO, VecMonitor(letters_env()), group_size=8)
    agent.learn(100)
    agent.set_env(letters_env(8))
    agent.n_episodes = 8
    rollout = collected(agent)
    assert len({tuple(e.prompt_ids) for e in rollout.episodes}) == 1
    env = letters_env()
    env.set_group_size(4)
    env.seed(None)  # fresh entropy, but whole groups
    ids = env.reset()["ids"]
    assert all((ids[i] == ids[i // 4 * 4]).all() for i in range(NUM_ENVS))


class OwnPrompts(VecEnvWrapper):
    """Gives the first slot a prompt of its own."""

    def reset(self) -> Any:
        observation: Any = self.venv.reset()
        observation["ids"][0, 0] = 9
        return observation

    def step_wait(self) -> Any:
        return self.venv.step_wait()


def test_groups_that_were_moved_apart_are_brought_together_and_broken_ones_are_noticed() -> None:
    env = letters_env()
    agent = small_agent(GRPO, env, group_size=4, kl_coef=0.0)
    env._seeds = list(range(NUM_ENVS))
    agent.learn(100)
    with pytest.raises(TrainingError, match="should answer one prompt"):
        small_agent(GRPO, OwnPrompts(letters_env()), group_size=4).learn(100)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GRPO, {"group_size": 1}, "group_size must be a whole number of at least 2, got 1"),
        (RLOO, {"group_size": 1}, "group_size must be a whole number of at least 2, got 1"),
        (GRPO, {"group_size": 5}, r"group_size \(5\) must divide the number of environments \(16\)"),
        (GRPO, {"group_size": 3, "n_episodes": 16}, r"group_size \(3\) must divide n_episodes \(16\)"),
        (GRPO, {"scale_rewards": "variance"}, "scale_rewards must be one of group, batch, none"),
        (GRPO, {"kl_estimator": "k1"}, "holds nothing back"),
        (RLOO, {"n_epochs": 2}, "without a clip_range there cannot be n_epochs above 1"),
        (REINFORCE, {"clip_range_high": 0.3}, "without a clip_range there cannot be clip_range_high"),
        (REINFORCE, {"baseline": "mean"}, "baseline must be one of"),
        (REINFORCE, {"baseline_decay": 1.5}, r"baseline_decay must be a number in \[0, 1\]"),
        (GRPO, {"max_resamples": 2}, r"max_resamples \(2\) replaces the groups that dynamic_sampling leaves out: give"),
        (GRPO, {"max_resamples": 2, "dynamic_sampling": True, "kl_in": "reward"}, "hardly any two are equal"),
        (GRPO, {"max_resamples": -1, "dynamic_sampling": True}, "max_resamples must be a whole number of at least 0"),
        (A2C, {"clip_range": 0.1}, "A2C has no setting clip_range; leave it out"),
        (PPO, {"clip_range": None}, "clip_range must be"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_agent(kind, **options)


def test_groups_need_an_environment_that_can() -> None:
    foreign = DummyVecEnv([lambda: Foreign(TokenEnv(letter_task(), LetterTokenizer())) for _ in range(4)])
    with pytest.raises(ConfigError, match="needs an environment whose slots can be given the same prompts"):
        small_agent(GRPO, foreign, group_size=2, batch_size=4)


# ------------------------------------------------------------------------------------------------- advantages and losses


def prepared(kind: Any, **options: Any) -> tuple[Any, Any]:
    """An agent and its first rollout, with a reference, if it has one, that differs from the policy."""
    agent = small_agent(kind, scale=4.0, **options)
    if agent.reference is not None:
        move_reference(agent)
    return agent, collected(agent)


def test_rloo_is_the_gradient_of_the_whole_responses() -> None:
    """Against autograd on log pi(y) of whole responses, rewards with their KL, worked without the agent's own functions."""
    agent, rollout = prepared(RLOO, group_size=4, kl_coef=0.1)
    found = gradient(agent, rollout, list(range(NUM_ENVS)))
    kl = ((rollout.log_probs - rollout.reference_log_probs) * rollout.mask).sum(1)
    totals = [e.score - 0.1 * float(k) for e, k in zip(rollout.episodes, kl, strict=True)]
    agent.policy.optimizer.zero_grad()
    parts = []
    for i, episode in enumerate(rollout.episodes):
        others = [totals[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        ids = torch.tensor([episode.prompt_ids + episode.response_ids])
        logits = agent.policy.lm(ids).logits[0].clone()
        logits[:, 1] = -torch.inf  # padding is never generated
        logs = logits.log_softmax(-1)
        start = len(episode.prompt_ids)
        chosen = sum(logs[start - 1 + t, token] for t, token in enumerate(episode.response_ids))
        parts.append(-(totals[i] - sum(others) / 3) * chosen)
    (sum(parts) / (NUM_ENVS * LIMIT)).backward()  # type: ignore[union-attr]
    expected = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_running_mean_is_a_part_of_rloos_baseline(tmp_path: Path) -> None:
    def totals(rollout: Any) -> Any:
        return rollout.rewards.sum(1)

    agent = small_agent(RLOO, group_size=4, kl_coef=0.0, running_share=0.25, baseline_decay=0.5)
    means = []
    for iteration in range(3):
        agent.learn(iterations=iteration + 1, reset_num_timesteps=False)
        rewards = totals(agent.rollout)
        expected = leave_one_out(rewards, 4)
        if means:
            running = means[0] if len(means) == 1 else 0.5 * means[0] + 0.5 * means[1]
            others = rewards - expected
            expected = rewards - (0.75 * others + 0.25 * running)
        torch.testing.assert_close(agent.rollout.advantages[:, 0], expected)
        means.append(float(rewards.mean()))
    agent.save(tmp_path / "agent")
    again = RLOO.load(tmp_path / "agent", env=letters_env(), tokenizer=LetterTokenizer())
    assert again.running_mean == agent.running_mean is not None


def test_grpo_compares_a_group_and_leaves_out_groups_that_are_equal() -> None:
    agent, rollout = prepared(GRPO, group_size=2, dynamic_sampling=True, scale_rewards="group")
    scores = [e.score for e in rollout.episodes]
    equal = [scores[i // 2 * 2] == scores[i // 2 * 2 + 1] for i in range(NUM_ENVS)]
    assert any(equal)
    assert not all(equal)
    assert rollout.learn_from == [i for i in range(NUM_ENVS) if not equal[i]]
    for i in range(NUM_ENVS):
        pair = torch.tensor(scores[i // 2 * 2 : i // 2 * 2 + 2])
        expected = 0.0 if equal[i] else float((scores[i] - pair.mean()) / (pair.std() + 1e-4))
        values = rollout.advantages[i][rollout.mask[i]]
        torch.testing.assert_close(values, torch.full_like(values, expected))
        assert not rollout.advantages[i][~rollout.mask[i]].any()
    rows = [i for batch in rollout.minibatches(4, agent._update_rng) for i in batch]
    assert sorted(rows) == rollout.learn_from


def test_minibatches_of_whole_groups() -> None:
    agent, rollout = prepared(GRPO, group_size=4, minibatch_groups=True, batch_size=8)
    batches = rollout.minibatches(8, agent._update_rng)
    assert all({i // 4 * 4 + k for i in batch for k in range(4)} == set(batch) for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(NUM_ENVS))
    _, fewer = prepared(GRPO, group_size=2, minibatch_groups=True, batch_size=8, dynamic_sampling=True)
    assert fewer.learn_from is not None
    assert len(fewer.learn_from) < NUM_ENVS  # groups that are left out are left out whole
    assert all({i, i ^ 1} <= set(batch) for batch in fewer.minibatches(8, agent._update_rng) for i in batch)
    with pytest.raises(ConfigError, match=r"batch_size \(6\) must be a multiple of group_size \(4\): take 8"):
        GRPO.Settings(group_size=4, minibatch_groups=True, batch_size=6)
    with pytest.raises(ConfigError, match="overlong_filtering"):
        GRPO.Settings(minibatch_groups=True, overlong_filtering=True)


def same_scores(rollout: Any, size: int) -> list[bool]:
    scores = [e.score for e in rollout.episodes]
    return [len(set(scores[i : i + size])) == 1 for i in range(0, len(scores), size)]


def test_more_is_generated_until_enough_groups_differ() -> None:
    options: dict[str, Any] = {"group_size": 2, "dynamic_sampling": True, "kl_coef": 0.05}
    agent, rollout = prepared(GRPO, max_resamples=5, **options)
    plain, once = prepared(GRPO, **options)
    parts = len(rollout.episodes) // NUM_ENVS
    assert 1 < parts <= 6
    assert len(rollout.episodes) == parts * NUM_ENVS
    # What comes first is what would have come without.
    assert [e.response_ids for e in rollout.episodes[:NUM_ENVS]] == [e.response_ids for e in once.episodes]
    torch.testing.assert_close(
        rollout.reference_log_probs, rollout_log_probs(agent.policy, agent.reference, rollout, 4096)
    )
    torch.testing.assert_close(
        rollout.log_probs, rollout_log_probs(agent.policy, agent.policy.language_model, rollout, 4096)
    )
    differing = [i for i, equal in enumerate(same_scores(rollout, 2)) if not equal]
    assert rollout.learn_from == [i for g in differing for i in (2 * g, 2 * g + 1)][:NUM_ENVS]
    # No part more than were needed.
    before_last = [g for g in differing if 2 * g < NUM_ENVS * (parts - 1)]
    assert 2 * len(before_last) < NUM_ENVS
    assert agent.episode_count == len(rollout.episodes)
    assert agent.num_timesteps // NUM_ENVS == sum(rollout.lengths) // NUM_ENVS
    assert plain.episode_count == NUM_ENVS


def test_a_penalty_for_length_makes_no_group_worth_learning_from() -> None:
    """DAPO's equation 11 asks for right and wrong responses; a group that is all right differs in length alone."""
    task = {"reward": lambda prompts, responses: [float(ord(prompt[0]) % 2) for prompt in prompts]}
    options: dict[str, Any] = {"group_size": 2, "dynamic_sampling": True, "kl_coef": 0.0, "overlong_buffer": LIMIT}
    agent, rollout = prepared(GRPO, task=task, **options)
    shaped = agent.scores(rollout).sum(1).view(-1, 2)
    assert bool((shaped[:, 0] != shaped[:, 1]).any())
    assert rollout.learn_from == []
    assert rollout.advantages.any()
    (row,) = learn(small_agent(GRPO, task=task, max_resamples=1, **options), 1)
    assert row["groups/resamples"] == 1
    _, rollout = prepared(GRPO, **options)
    assert rollout.learn_from == [
        2 * g + i for g, equal in enumerate(same_scores(rollout, 2)) if not equal for i in (0, 1)
    ]


def test_resampling_gives_up() -> None:
    agent = small_agent(
        GRPO, task={"reward": lambda prompts, responses: [1.0] * len(prompts)}, dynamic_sampling=True, max_resamples=2
    )
    rows = learn(agent, 1)
    assert rows[0]["groups/resamples"] == 2
    assert rows[0]["groups/equal_share"] == 1
    assert rows[0]["episode"] == 3 * NUM_ENVS


def test_a_checkpoint_from_within_a_resample_goes_back_to_the_rollouts_start(tmp_path: Path) -> None:
    class Saves(BaseCallback):
        """Saves at every step; the last one is from the last part."""

        def _on_step(self) -> bool:
            self.model.save(tmp_path / "agent.zip")
            self.states = [*getattr(self, "states", []), self.model.state()["episode_count"]]  # type: ignore[attr-defined]
            return True

    options: dict[str, Any] = {"group_size": 2, "dynamic_sampling": True, "max_resamples": 3}
    agent, callback = small_agent(GRPO, **options), Saves()
    agent.learn(1, callback=callback)
    assert set(callback.states) == {0}
    assert agent.episode_count > NUM_ENVS
    resumed = GRPO.load(tmp_path / "agent.zip", env=letters_env(), reference=agent.reference)
    resumed.learn(1, reset_num_timesteps=False)
    assert_same_weights(weights(resumed), weights(agent))


def test_an_iteration_without_any_difference_changes_nothing() -> None:
    agent = small_agent(GRPO, task={"reward": lambda prompts, responses: [1.0] * len(prompts)}, dynamic_sampling=True)
    before = weights(agent)
    rows = learn(agent, 50)
    assert_same_weights(weights(agent), before)
    assert rows[0]["groups/equal_share"] == 1


@pytest.mark.parametrize("kind", [GRPO, RLOO, REINFORCE, ReinforcePlusPlus])
def test_a_constant_reward_moves_nobody(kind: Any) -> None:
    options = {"baseline": "batch"} if kind is REINFORCE else {}
    agent = small_agent(kind, task={"reward": lambda prompts, responses: [3.0] * len(prompts)}, kl_coef=0.0, **options)
    before = weights(agent)
    agent.learn(300)
    for name, value in weights(agent).items():
        torch.testing.assert_close(value, before[name], atol=1e-4, rtol=0)


def test_dapo_charges_for_the_last_tokens_before_the_limit() -> None:
    _, plain = prepared(RLOO, group_size=2, kl_coef=0.0)
    agent, charged = prepared(RLOO, group_size=2, kl_coef=0.0, overlong_buffer=4)
    scores = torch.tensor([e.score for e in charged.episodes])
    shaped = scores + overlong_penalty(torch.tensor(charged.lengths), LIMIT, 4)
    expected = leave_one_out(shaped, 2)[:, None] * charged.mask
    torch.testing.assert_close(charged.advantages, expected)
    assert not torch.equal(plain.advantages, charged.advantages)
    assert agent.overlong_buffer == 4


def test_reinforce_baselines_by_hand() -> None:
    _, none = prepared(REINFORCE, baseline="none", kl_coef=0.0)
    scores = torch.tensor([e.score for e in none.episodes])
    torch.testing.assert_close(none.advantages, scores[:, None] * none.mask)
    _, batch = prepared(REINFORCE, baseline="batch", kl_coef=0.0)
    others = (scores.sum() - scores) / (NUM_ENVS - 1)
    torch.testing.assert_close(batch.advantages, (scores - others)[:, None] * batch.mask)
    agent, first = prepared(REINFORCE, baseline="running", baseline_decay=0.5, kl_coef=0.0)
    torch.testing.assert_close(first.advantages, none.advantages)
    agent.after_learning(first)
    assert agent.running_mean == pytest.approx(float(scores.mean()))
    second = collected(agent)
    paid = torch.tensor([e.score for e in second.episodes])
    torch.testing.assert_close(second.advantages, (paid - scores.mean())[:, None] * second.mask)
    agent.after_learning(second)
    assert agent.running_mean == pytest.approx(float((scores.mean() + paid.mean()) / 2))


def test_reinforce_plus_plus_whitens_what_is_paid_from_each_token_on() -> None:
    _, rollout = prepared(ReinforcePlusPlus, kl_coef=0.2)
    kl = (rollout.log_probs - rollout.reference_log_probs) * rollout.mask
    to_go = []
    for i, episode in enumerate(rollout.episodes):
        n = len(episode.response_ids)
        to_go += [episode.score - 0.2 * float(kl[i, t:n].sum()) for t in range(n)]
    flat = torch.tensor(to_go, dtype=torch.float64)
    expected = ((flat - flat.mean()) / flat.std()).float()
    torch.testing.assert_close(rollout.advantages[rollout.mask], expected, atol=1e-4, rtol=1e-4)
    _, grouped = prepared(ReinforcePlusPlus, kl_coef=0.0, group_size=4)
    scores = torch.tensor([e.score for e in grouped.episodes]).view(-1, 4)
    centred = (scores - scores.mean(1, keepdim=True)).flatten()[:, None].expand(grouped.mask.shape)[grouped.mask]
    torch.testing.assert_close(
        grouped.advantages[grouped.mask], (centred - centred.mean()) / centred.std(), atol=1e-4, rtol=1e-4
    )


def test_a2c_is_ppos_first_step() -> None:
    """Huang et al. 2022, "A2C is a special case of PPO"."""
    a2c, rollout = prepared(A2C)
    ppo, same = prepared(PPO, clip_range_vf=None, batch_size=NUM_ENVS)
    torch.testing.assert_close(rollout.advantages, same.advantages)
    rows = list(range(NUM_ENVS))
    torch.testing.assert_close(gradient(a2c, rollout, rows), gradient(ppo, same, rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_micro_batches_and_their_order_change_no_gradient(kind: Any) -> None:
    agent, rollout = prepared(kind)
    rows = list(range(NUM_ENVS))
    whole = gradient(agent, rollout, rows)
    agent.tokens_per_batch = 20
    torch.testing.assert_close(gradient(agent, rollout, rows[::-1]), whole, atol=1e-6, rtol=1e-4)
    assert whole.abs().max() > 0


# ------------------------------------------------------------------------------------------------- as SB3 algorithms


@pytest.mark.parametrize("kind", ALL)
def test_training_resumes_exactly(tmp_path: Path, kind: Any) -> None:
    options: dict[str, Any] = {"kl_coef": 0.05}
    if kind is REINFORCE:
        options["baseline"] = "running"
    task = {"minimum": LIMIT - 1}
    whole = small_agent(kind, task=task, **options)
    whole.learn(6 * NUM_ENVS * LIMIT)
    half = small_agent(kind, task=task, **options)
    half.learn(3 * NUM_ENVS * LIMIT)
    half.save(tmp_path / "half")
    resumed = kind.load(tmp_path / "half", env=letters_env(**task), device="cpu")
    resumed.learn(3 * NUM_ENVS * LIMIT, reset_num_timesteps=False)
    assert resumed.iteration == whole.iteration == 6
    assert resumed.settings == whole.settings
    assert_same_weights(weights(resumed), weights(whole))
    action, _ = resumed.predict(letters_env(**task).reset(), deterministic=True)
    assert action.shape == (NUM_ENVS,)


def final_score(kind: Any, seed: int) -> float:
    """Mean score of the last three of some dozen iterations, untrained: 0.3."""
    model = tiny_language_model(seed=seed)
    rows = learn(small_agent(kind, language_model=model, seed=seed, kl_coef=0.0, learning_rate=5e-3), 4000)
    return sum(row["objective/scores"] for row in rows[-3:]) / 3


@pytest.mark.parametrize("kind", ALL)
def test_it_learns_to_write_the_letter_that_is_paid_for(kind: Any) -> None:
    """The best possible is 8; over four seeds each of them reached 7.98 to 8.0."""
    assert final_score(kind, seed=0) > 6.0
