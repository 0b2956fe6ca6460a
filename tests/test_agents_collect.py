"""Collection: two ways with one result, and numbers from generation that learning agrees with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_setups import decoded
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

from rlhf_gym.agents.common.callbacks import StepCounter
from rlhf_gym.agents.common.collect import SteppingCollector
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout, unpack_masks
from rlhf_gym.agents.common.setup import limits_of
from rlhf_gym.envs import TokenEnv, TokenVecEnv, make_sb3_env
from rlhf_gym.errors import TrainingError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import token_log_probs
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import pack_sequences, response_positions

LIMIT = 12


def letters_env(num_envs: int = 6, seed: int = 3, **task: Any) -> TokenVecEnv:
    task = {"limit": LIMIT} | task
    return make_sb3_env(num_envs, seed=seed, task=letter_task(**task), tokenizer=LetterTokenizer())


def policy_for(env: Any, model: LanguageModel, sampling: Sampling | None = None) -> LMPolicy:
    torch.manual_seed(0)
    limits = limits_of(env, model)
    return LMPolicy(env.observation_space, env.action_space, model, sampling or Sampling(), limits, "shared")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """Learned absolute and rotary positions; uneven enough that EOS comes at all lengths."""
    return tiny_language_model(request.param, scale=4.0)


def by_stepping(env: Any, policy: LMPolicy, per_slot: int) -> list[Episode]:
    return SteppingCollector(env, policy, seed=5).collect(0, per_slot)


def assert_same(one: list[Episode], other: list[Episode]) -> None:
    assert [e.prompt_ids for e in one] == [e.prompt_ids for e in other]
    assert [e.response_ids for e in one] == [e.response_ids for e in other]
    for a, b in zip(one, other, strict=True):
        assert a.log_probs == b.log_probs
        assert a.values == b.values
        assert a.rewards == b.rewards
        assert a.ended == b.ended
        assert a.info["response"] == b.info["response"]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=8), Sampling(1.2, top_p=0.9)])
def test_stepping_and_decoding_give_the_same_episodes(model: LanguageModel, sampling: Sampling) -> None:
    """Prompts of all lengths, EOS in mid-batch, slots that start over at different times."""
    env = letters_env()
    policy = policy_for(env, model, sampling)
    env.reset()
    fast = decoded(env, policy, seed=5, first_episode=0, per_slot=5)
    slow = by_stepping(letters_env(), policy, per_slot=5)
    assert_same(fast, slow)
    lengths = {len(e.response_ids) for e in fast}
    assert len(lengths) > 1
    assert {e.ended for e in fast} == {True, False}
    assert len({tuple(e.prompt_ids) for e in fast}) > 2


@pytest.mark.parametrize("options", [{"minimum": 5}, {"stop": ("ab", "q")}])
def test_they_agree_on_minimum_length_and_stop_sequences(model: LanguageModel, options: dict[str, Any]) -> None:
    env = letters_env(**options)
    policy = policy_for(env, model)
    env.reset()
    fast = decoded(env, policy, seed=5, first_episode=0, per_slot=2)
    assert_same(fast, by_stepping(letters_env(**options), policy, per_slot=2))


def test_they_agree_over_successive_rollouts(model: LanguageModel) -> None:
    env, stepped = letters_env(), letters_env()
    policy = policy_for(env, model)
    env.reset()
    collector = SteppingCollector(stepped, policy, seed=5)
    for first in (0, 12):
        fast = decoded(env, policy, seed=5, first_episode=first, per_slot=2)
        assert_same(fast, collector.collect(first, 2))


def test_the_order_and_number_of_slots_change_no_noise() -> None:
    """Episode numbers, not slots, decide what is drawn: the same prompt in the same episode gives the same response."""
    model = tiny_language_model(scale=4.0)
    wide, narrow = letters_env(6), letters_env(6)
    policy = policy_for(wide, model)
    wide.reset()
    narrow.reset()
    one = decoded(wide, policy, seed=1, first_episode=0, per_slot=1)
    two = decoded(narrow, policy, seed=2, first_episode=0, per_slot=1)
    assert [e.prompt_ids for e in one] == [e.prompt_ids for e in two]
    assert [e.response_ids for e in one] != [e.response_ids for e in two]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.9)])
def test_learning_agrees_with_generation_on_either_side_of_padding(
    model: LanguageModel, side: Any, sampling: Sampling
) -> None:
    env = letters_env()
    policy = policy_for(env, model, sampling)
    env.reset()
    episodes = decoded(env, policy, seed=5, first_episode=0, per_slot=2)
    batch = pack_sequences([e.prompt_ids for e in episodes], [e.response_ids for e in episodes], 1, side=side)
    hidden = model.response_states(batch)
    chosen, _ = token_log_probs(
        model, hidden, batch.responses[batch.response_mask], response_positions(batch), sampling, policy.limits
    )
    expected = torch.tensor([x for e in episodes for x in e.log_probs])
    torch.testing.assert_close(chosen, expected, atol=1e-5, rtol=0)
    values = torch.tensor([x for e in episodes for x in e.values])
    torch.testing.assert_close(policy.values(hidden), values, atol=1e-5, rtol=0)


def test_a_wrapped_environment_and_a_foreign_one_are_stepped() -> None:
    model = tiny_language_model(scale=4.0)
    task = letter_task(limit=LIMIT)
    make: list[Callable[[], gym.Env[Any, Any]]] = [lambda: TokenEnv(task, LetterTokenizer()) for _ in range(4)]
    foreign = DummyVecEnv(make)
    foreign.seed(0)
    policy = policy_for(foreign, model)
    episodes = by_stepping(foreign, policy, per_slot=2)
    assert len(episodes) == 8
    assert all(e.masks is not None for e in episodes)
    assert all(1 not in e.response_ids for e in episodes)  # the environment's mask forbids padding
    wrapped = VecMonitor(letters_env(4))
    assert len(by_stepping(wrapped, policy_for(wrapped, model), per_slot=2)) == 8


class OddLetters(gym.Wrapper[Any, Any, Any, Any]):
    """Allows odd ids at even places and even ids at odd places; pays per token."""

    def action_masks(self) -> np.ndarray:
        masks = np.zeros(28, dtype=np.bool_)
        place = int(self.env.unwrapped.episodes.length[0])  # type: ignore[attr-defined]
        masks[2 + place % 2 :: 2] = True
        return masks

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, float(reward) + 0.5, terminated, truncated, info


def test_masks_hold_in_sampling_and_in_learning_and_rewards_per_token_are_kept() -> None:
    model = tiny_language_model(scale=4.0)
    env = DummyVecEnv([lambda: OddLetters(TokenEnv(letter_task(limit=5), LetterTokenizer())) for _ in range(3)])
    env.seed(1)
    policy = policy_for(env, model)
    episodes = by_stepping(env, policy, per_slot=2)
    for e in episodes:
        places = len(e.prompt_ids) + np.arange(len(e.response_ids))
        assert all((token - 2) % 2 == place % 2 for token, place in zip(e.response_ids, places, strict=True))
        assert e.rewards[:-1] == [0.5] * (len(e.rewards) - 1)
    allowed = unpack_masks(episodes, model.vocab_size)
    assert allowed is not None
    batch = pack_sequences([e.prompt_ids for e in episodes], [e.response_ids for e in episodes], 1)
    chosen, entropy = token_log_probs(
        model, model.response_states(batch), batch.responses[batch.response_mask], response_positions(batch),
        Sampling(), policy.limits, allowed=allowed, entropy=True,
    )  # fmt: skip
    torch.testing.assert_close(chosen, torch.tensor([x for e in episodes for x in e.log_probs]), atol=1e-5, rtol=0)
    assert entropy is not None
    assert entropy.max().item() <= np.log(13) + 1e-5


class NothingAllowed(OddLetters):
    def action_masks(self) -> np.ndarray:
        return np.zeros(28, dtype=np.bool_)


def test_a_mask_that_allows_nothing_is_refused() -> None:
    env = DummyVecEnv([lambda: NothingAllowed(TokenEnv(letter_task(), LetterTokenizer()))])
    with pytest.raises(TrainingError, match="allows no token"):
        by_stepping(env, policy_for(env, tiny_language_model()), per_slot=1)


def test_an_unscored_time_limit_is_worth_what_the_value_function_says() -> None:
    model = tiny_language_model(scale=0.1)
    make = [lambda: gym.wrappers.TimeLimit(TokenEnv(letter_task(minimum=6), LetterTokenizer()), 3) for _ in range(2)]
    env = DummyVecEnv(make)  # type: ignore[arg-type]
    env.seed(0)
    policy = policy_for(env, model)
    for e in by_stepping(env, policy, per_slot=1):
        assert len(e.response_ids) == 3
        assert e.bootstrap == pytest.approx(
            float(policy.state_values([[*e.prompt_ids, *e.response_ids]], [len(e.response_ids)])[0])
        )
        assert e.bootstrap != 0


def test_no_statistic_sees_prompts_or_what_follows_eos() -> None:
    """Tables are 0 wherever the mask is False, and the mask is True at response tokens only."""
    env = letters_env()
    policy = policy_for(env, tiny_language_model(scale=4.0))
    env.reset()
    rollout = Rollout.of(decoded(env, policy, seed=5, first_episode=0, per_slot=2))
    assert rollout.mask.sum(1).tolist() == rollout.lengths
    for table in (rollout.log_probs, rollout.values, rollout.rewards):
        assert not table[~rollout.mask].any()
    for episode in rollout.episodes:
        assert 0 not in episode.response_ids[:-1]
    batches = rollout.minibatches(5, np.random.default_rng(0))
    assert [len(b) for b in batches] == [5, 5, 2]
    assert sorted(i for b in batches for i in b) == list(range(12))


def test_a_token_that_has_left_the_nucleus_has_a_finite_log_probability() -> None:
    """Else the KL from a reference whose nucleus it is not in would be infinite; its gradient is finite, too."""
    model = tiny_language_model(scale=4.0)
    batch = pack_sequences([[2, 3]], [list(range(2, 28))], 1)
    sampling, limits = Sampling(0.7, top_k=3), Limits(0, (1,))
    hidden = model.response_states(batch).detach().requires_grad_(True)
    chosen, _ = token_log_probs(model, hidden, batch.responses[0], response_positions(batch), sampling, limits)
    assert bool(torch.isfinite(chosen).all())
    assert bool((chosen <= 0).all())
    chosen.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())
    # By hand: the three kept, and the token itself.
    logits = limits.apply(model.logits(hidden), response_positions(batch))[0] / 0.7
    outside = int(logits.argsort()[5])
    kept = torch.cat([logits.topk(3).values, logits[outside, None]])
    one, _ = token_log_probs(model, hidden[:1], torch.tensor([outside]), torch.tensor([0]), sampling, limits)
    torch.testing.assert_close(one[0], logits[outside] - kept.logsumexp(0))


def test_steps_deal_out_every_token_once() -> None:
    def episode(n: int) -> Episode:
        return Episode([2], list(range(n)), [0.0] * n, [0.0] * n, [0.0] * (n - 1) + [1.0], True, {"n": n})

    counter = StepCounter(4)
    first = list(counter.steps(Rollout.of([episode(5), episode(2), episode(3)])))
    assert len(first) == 2
    assert counter.waiting == 2
    second = list(counter.steps(Rollout.of([episode(2)])))
    assert len(second) == 1
    assert counter.waiting == 0
    infos = [info for step in first + second for info, done in zip(step.infos, step.dones, strict=True) if done]
    assert infos == [{"n": 5}, {"n": 2}, {"n": 3}, {"n": 2}]
    assert sum(float(step.rewards.sum()) for step in first + second) == 4.0
