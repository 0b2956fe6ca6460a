"""Products in bfloat16 and float16 under float32 weights; what they do to ratios, and the weights that correct for it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import (
    assert_same_weights,
    collected,
    gradient,
    learn,
    letters_env,
    small_agent,
    small_ppo,
    weights,
)
from tiny_models import tiny_language_model

from rlhf_gym.agents import GRPO, NLPO, PPO, REINFORCE, TRPO, OnlineDPO
from rlhf_gym.agents.common.mismatch import importance_weights, mismatch_metrics
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm import precision
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import response_log_probs
from rlhf_gym.lm.lora import Lora, adapted
from rlhf_gym.lm.sampling import Limits, Sampling
from rlhf_gym.lm.sequences import SequenceBatch


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "lora"])
def test_decoding_with_rounded_weights_is_autocast(kind: Any) -> None:
    model = tiny_language_model("gpt2" if kind == "lora" else kind)
    if kind == "lora":
        model = adapted(model, Lora())
    model.product_dtype = torch.bfloat16
    before = {name: p.clone() for name, p in model.model.named_parameters()}
    limits = Limits(model.tokenizer.eos_id, (model.tokenizer.pad_id,), 6, 6)
    prompts = [[3, 4], [5], [6, 3, 4]]
    drawn = generate(model, prompts, limits, seed=1)
    read = response_log_probs(model, prompts, [g.ids for g in drawn], Sampling(), limits)
    for generation, logs in zip(drawn, read, strict=True):
        # One rounding of a logit to bfloat16 is 2^-9 of it; these are below 8.
        np.testing.assert_allclose(generation.log_probs, logs.numpy(), atol=0.06)
    exact = copy.copy(model)
    exact.product_dtype = None
    plain = response_log_probs(exact, prompts, [g.ids for g in drawn], Sampling(), limits)
    assert max((a - b).abs().max() for a, b in zip(read, plain, strict=True)) > 0
    for name, p in model.model.named_parameters():
        assert p.dtype == torch.float32
        assert torch.equal(p, before[name])
    assert model.slots_work is not None or kind == "t5"


@pytest.mark.parametrize("kind", [PPO, GRPO, REINFORCE, NLPO, OnlineDPO])
@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_weights_gradients_and_optimizer_stay_float32(kind: Any, name: str) -> None:
    own = {"beta": 0.1} if kind is OnlineDPO else {"kl_coef": 0.02}
    agent = kind(
        "LMPolicy",
        letters_env(),
        language_model=tiny_language_model("gpt2"),
        seed=0,
        batch_size=8,
        precision=name,
        **own,
    )
    before = weights(agent)
    learn(agent, 1, iterations=2)
    assert {p.dtype for p in agent.policy.parameters()} == {torch.float32}
    moments = [value for state in agent.policy.optimizer.state.values() for value in state.values()]
    assert {m.dtype for m in moments} == {torch.float32}
    assert any(not torch.equal(before[name], value) for name, value in weights(agent).items())


def test_the_gradient_in_bfloat16_points_where_the_exact_one_does() -> None:
    slopes = []
    for name in ("float32", "bf16"):
        agent = small_ppo(precision=name)
        rollout = collected(agent)
        slopes.append(gradient(agent, rollout, list(range(len(rollout.episodes)))))
    assert torch.cosine_similarity(*slopes, dim=0) > 0.99
    assert not torch.equal(*slopes)


def test_the_mismatch_is_measured_before_the_first_step_and_recomputing_takes_it_out_of_the_ratio() -> None:
    for mode, ratio in (("rollout", float(np.exp(-0.1))), ("recompute", 1.0)):
        agent = small_ppo(old_log_probs=mode)
        rollout = collected(agent)
        rollout.log_probs = (rollout.log_probs + 0.1) * rollout.mask
        if mode == "recompute":
            agent._recompute(rollout)
        agent.update(rollout, list(range(len(rollout.episodes))))
        metrics = agent.minibatch_metrics
        assert metrics["mismatch/log_prob_difference"] == pytest.approx([0.1], abs=1e-4)
        assert metrics["mismatch/ratio"] == pytest.approx([np.exp(-0.1)], abs=1e-4)
        assert metrics["mismatch/effective_sample_size"] == pytest.approx([1], abs=1e-4)
        assert metrics["val/ratio"][0] == pytest.approx(ratio, abs=1e-4)
    assert learn(small_ppo(precision="bf16", n_epochs=1, batch_size=16), 1)[0]["mismatch/log_prob_difference"] < 0.03


def test_importance_weights_by_hand() -> None:
    learner = torch.tensor([[2.0, 3.0, 0.5], [0.5, 1.0, 9.0]]).log()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    sampler = torch.zeros(2, 3)

    def given(correction: Any) -> list[list[float]]:
        table = importance_weights(learner, sampler, mask, correction, 2.5) * mask
        return [[round(value, 4) for value in row] for row in table.tolist()]

    assert given(None) == [[1, 1, 1], [1, 1, 0]]
    assert given("token_truncate") == [[2, 2.5, 0.5], [0.5, 1, 0]]
    assert given("token_mask") == [[2, 0, 0.5], [0.5, 1, 0]]
    assert given("sequence_truncate") == [[2.5, 2.5, 2.5], [0.5, 0.5, 0]]
    assert given("sequence_mask") == [[0, 0, 0], [0.5, 0.5, 0]]
    assert mismatch_metrics(0.5, 2.0, 5.0)["mismatch/effective_sample_size"] == pytest.approx(0.8)


@pytest.mark.parametrize("kind", [PPO, REINFORCE])
def test_importance_weights_multiply_the_policy_loss(kind: Any) -> None:
    """Tokens drawn half as probably as the learner has them: every policy gradient doubles."""
    agent = small_agent(kind, old_log_probs="recompute", importance_sampling="token_truncate", kl_coef=0.0)
    rollout = collected(agent)
    rows = list(range(len(rollout.episodes)))
    if kind is PPO:
        agent.vf_coef = 0.0
    plain = gradient(agent, rollout, rows)
    rollout.log_probs = rollout.log_probs - np.log(2)
    agent._recompute(rollout)
    torch.testing.assert_close(gradient(agent, rollout, rows), 2 * plain, rtol=1e-4, atol=1e-7)


def test_a_gradient_that_overflows_float16_is_skipped_and_the_scale_falls() -> None:
    agent = small_ppo(precision="fp16", n_epochs=1, batch_size=16)
    agent.scaler.load_state_dict({**agent.scaler.state_dict(), "scale": 1e38})
    before = weights(agent)
    row = learn(agent, 1)[0]
    assert_same_weights(before, weights(agent))
    assert row["train/loss_scale"] > agent.scaler.get_scale() > 0


def test_a_scaled_run_goes_on_exactly(tmp_path: Any) -> None:
    whole = small_ppo(precision="fp16")
    learn(whole, 1, iterations=3)
    first = small_ppo(precision="fp16")
    learn(first, 1, iterations=2)
    first.save(tmp_path / "agent")
    second = PPO.load(tmp_path / "agent", env=letters_env(), device="cpu")
    assert second.scaler.state_dict() == first.scaler.state_dict() != {}
    second.learn(None, iterations=3, reset_num_timesteps=False)
    assert_same_weights(weights(whole), weights(second))


def test_it_learns_in_bfloat16() -> None:
    rows = learn(small_ppo(precision="bf16", learning_rate=1e-2), 1, iterations=10)
    print([row["objective/scores"] for row in rows])
    assert rows[-1]["objective/scores"] > rows[0]["objective/scores"] + 1.5


def test_auto_takes_what_multiplies_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 3.0, torch.bfloat16: 1.0}
    monkeypatch.setattr(precision, "product_seconds", seconds.__getitem__)
    cpu = torch.device("cpu")
    precision.bf16_is_faster.cache_clear()
    assert precision.product_dtype("auto", cpu) == torch.bfloat16
    seconds[torch.bfloat16] = 2.5
    precision.bf16_is_faster.cache_clear()
    assert precision.product_dtype("auto", cpu) == torch.float32
    precision.bf16_is_faster.cache_clear()


def test_float32_is_float32() -> None:
    """Whatever is done for speed: a product of float32 matrices has float32's accuracy."""
    precision.use_fast_float32()
    assert precision.product_error() < 1e-6


def test_a_model_in_bfloat16_learns_with_float32_weights() -> None:
    model = tiny_language_model("gpt2")
    model.model.to(torch.bfloat16)
    agent = small_ppo(language_model=model, precision="bf16")
    assert {p.dtype for p in agent.policy.parameters()} == {torch.float32}
    assert model.product_dtype == torch.bfloat16


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="TRPO computes in float32"):
        small_agent(TRPO, precision="bf16")
    with pytest.raises(ConfigError, match="importance_sampling='token_mask' needs old_log_probs='recompute'"):
        small_ppo(importance_sampling="token_mask")


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "separate"])
def test_gradient_checkpointing_changes_nothing_but_memory(kind: Any) -> None:
    slopes = []
    for on in (False, True):
        options: dict[str, Any] = {"value_network": "separate"} if kind == "separate" else {"kind": kind}
        agent = small_agent(PPO, gradient_checkpointing=on, **options)
        rollout = collected(agent)
        with torch.autograd.graph.saved_tensors_hooks(Kept.pack, lambda tensor: tensor):
            Kept.numbers = 0
            slopes.append((gradient(agent, rollout, list(range(len(rollout.episodes)))), Kept.numbers))
    torch.testing.assert_close(slopes[0][0], slopes[1][0], rtol=1e-5, atol=1e-7)
    assert slopes[1][1] < 0.7 * slopes[0][1]


class Kept:
    """Counts the numbers that are kept for the backward pass."""

    numbers = 0

    @classmethod
    def pack(cls, tensor: torch.Tensor) -> torch.Tensor:
        cls.numbers += tensor.numel()
        return tensor


@pytest.mark.parametrize("kind", [PPO, OnlineDPO])
def test_memory_that_runs_out_halves_the_micro_batch_and_nothing_else(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agent() -> Any:
        own = {"beta": 0.1} if kind is OnlineDPO else {"kl_coef": 0.02}
        return kind("LMPolicy", letters_env(), language_model=tiny_language_model("gpt2"), seed=0, batch_size=8, **own)

    whole, short = agent(), agent()
    whole.learn(1, iterations=2)
    run, calls = LanguageModel.response_states, []

    def scarce(model: LanguageModel, batch: SequenceBatch) -> torch.Tensor:
        """No room for the whole batch; the failure comes in the middle of a minibatch, too."""
        calls.append(batch.ids.numel())
        if batch.ids.numel() > 30 and torch.is_grad_enabled() and len(calls) % 2:
            raise torch.OutOfMemoryError("no room")
        return run(model, batch)

    monkeypatch.setattr(LanguageModel, "response_states", scarce)
    short.tokens_per_batch = 64
    with pytest.warns(UserWarning, match="memory ran out; going on with tokens_per_batch=32"):
        short.learn(1, iterations=2)
    assert short.tokens_per_batch < 64
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(short)[name], rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(LanguageModel, "response_states", Raising.response_states)
    with (
        pytest.raises(torch.OutOfMemoryError, match="no room at all"),
        pytest.warns(UserWarning, match="memory ran out"),
    ):
        agent().learn(1)


class Raising:
    def response_states(self, batch: SequenceBatch) -> torch.Tensor:
        raise torch.OutOfMemoryError("no room at all")
