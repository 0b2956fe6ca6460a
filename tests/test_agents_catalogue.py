"""On every environment of the catalogue, decoding whole responses and stepping token by token give the same episodes."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from ppo_setups import decoded
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import tiny_language_model

from rlhf_gym.agents import PPO, LMPolicy
from rlhf_gym.agents.common.collect import SteppingCollector
from rlhf_gym.agents.common.setup import limits_of
from rlhf_gym.envs import TokenEnv, TokenVecEnv, make_sb3_env
from rlhf_gym.envs.registration import ENVIRONMENTS
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Sampling

NUM_ENVS, PER_SLOT = 6, 2
SAID = ("prompt", "response", "ended", "response_length", "reward_terms")


def options_of(name: str) -> dict[str, Any]:
    if name == "Reasoning-v0" and importlib.util.find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed (extra `reasoning`)")
    options: dict[str, Any] = dict(ENVIRONMENTS[name])
    return {"tokenizer": "embedded", **options} if name == "Reasoning-v0" else options


def model_for(env: TokenVecEnv, kind: Any) -> LanguageModel:
    """A random model that ends a response with a tenth's chance at every token, so that ends fall anywhere."""
    tokenizer = env.env.episodes.tokenizer
    context = max(16, env.env.episodes.capacity)
    made = tiny_language_model(kind, vocab_size=tokenizer.vocab_size, context=context, scale=3.0)
    model = LanguageModel(made.model, tokenizer, kind)
    ids = torch.randint(0, tokenizer.vocab_size, (8, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.hidden(ids).flatten(0, 1)
        wanted = model.logits(hidden).logsumexp(-1).mean() - 2.3
        mean = hidden.mean(0)
        network: Any = model.model
        network.get_output_embeddings().weight[tokenizer.eos_id] = wanted * mean / mean.square().sum()
    return model


def policy_for(env: TokenVecEnv, model: LanguageModel) -> LMPolicy:
    torch.manual_seed(0)
    return LMPolicy(env.observation_space, env.action_space, model, Sampling(), limits_of(env, model), "shared")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_decoding_and_stepping_agree(name: str, kind: Any) -> None:
    """Learned absolute and rotary positions, prompts of several lengths, EOS in mid-batch, slots that restart apart."""
    options = options_of(name)
    env, stepped = (make_sb3_env(NUM_ENVS, seed=3, **options) for _ in range(2))
    assert env.append_only
    model = model_for(env, kind)
    policy = policy_for(env, model)
    env.reset()
    fast = decoded(env, policy, seed=5, first_episode=0, per_slot=PER_SLOT)
    slow = SteppingCollector(stepped, policy, seed=5).collect(0, PER_SLOT)
    assert len({len(e.response_ids) for e in fast}) > 1
    assert len({tuple(e.prompt_ids) for e in fast}) > 1
    assert [e.prompt_ids for e in fast] == [e.prompt_ids for e in slow]
    assert [e.response_ids for e in fast] == [e.response_ids for e in slow]
    for a, b in zip(fast, slow, strict=True):
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)
        assert a.values == pytest.approx(b.values, abs=1e-5)
        assert a.rewards == b.rewards
        assert a.ended == b.ended
        assert {key: a.info[key] for key in SAID} == {key: b.info[key] for key in SAID}


@pytest.mark.parametrize("name", ["Copy-v0", "Sentiment-v0"])
def test_stock_vec_envs_of_single_environments_agree_too(name: str) -> None:
    """No fast path at all: what any Gymnasium user would build."""
    options = options_of(name)
    env = make_sb3_env(NUM_ENVS, **options)
    stock = DummyVecEnv([lambda: TokenEnv(**options) for _ in range(NUM_ENVS)])
    policy = policy_for(env, model_for(env, "llama"))
    for vec_env in (env, stock):
        vec_env.seed(7)
    ours = SteppingCollector(env, policy, seed=5).collect(0, 2)
    theirs = SteppingCollector(stock, policy, seed=5).collect(0, 2)
    for episode in theirs:
        assert len(episode.log_probs) == len(episode.response_ids) == len(episode.rewards) == len(episode.values)
        assert episode.ended == (episode.response_ids[-1] == env.eos_id)
    # SB3 seeds slot i with s + i, so the prompts are others; where they are the same, so is all that follows.
    for a, b in zip(ours, theirs, strict=True):
        if a.prompt_ids == b.prompt_ids:
            assert a.response_ids == b.response_ids
            assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)


def test_masks_that_change_are_never_decoded_past() -> None:
    """A grammar's masks depend on the text: such an environment is stepped, and no token breaks its rule."""
    pytest.importorskip("outlines_core")
    env = make_sb3_env(4, seed=0, task="copy", mask={"pattern": "(ab)+"})
    assert not env.append_only
    model = model_for(env, "gpt2")
    agent = PPO("LMPolicy", env, language_model=model, seed=0, device="cpu", n_episodes=8, batch_size=8)
    agent.learn(8)
    assert agent.rollout is not None
    for episode in agent.rollout.episodes:
        assert set(env.env.episodes.tokenizer.decode(episode.response_ids)) <= {"a", "b"}
        assert episode.masks is not None
