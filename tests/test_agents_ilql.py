"""Offline RL on stored trajectories: ILQL's losses by hand, its gradient, where rewards are paid, and what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import LIMIT, NUM_ENVS, assert_same_weights, collected, gradient, letters_env, small_agent, weights
from tiny_models import LetterTokenizer, tiny_language_model
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_gym.agents import ILQL
from rlhf_gym.agents.common.action_value_heads import (
    ActionValueHeads,
    TokenQ,
    conservative_loss,
    expectile_loss,
    next_values,
    q_loss,
    token_q,
)
from rlhf_gym.agents.common.validation import Validation
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError, ModelError, TextsTooLong
from rlhf_gym.lm.action_values import FILE
from rlhf_gym.lm.decoding import generate
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.rewards import score
from rlhf_gym.tasks import load_task

DATA: list[Any] = [
    ("abc", "aab", 2.0), ("d", "aaaa", 4), ("efg", "", 0.0), ("bb", "abcd", [1, 0, 0.5, 0]), ("zz", "c", [0.0, -1.0]),
]  # fmt: skip
"""Whole rewards; an empty response; a reward of each token, without and with one for EOS."""


def agent_of(**options: Any) -> Any:
    options = {"trajectories": DATA, "n_episodes": NUM_ENVS} | options
    make: Any = ILQL
    return small_agent(lambda *a, **k: make(*a, **{key: v for key, v in k.items() if key != "kl_coef"}), **options)


def test_losses_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 0.0], requires_grad=True)
    losses = expectile_loss(values, torch.tensor([3.0, 1.0, 0.0]), 0.8)
    torch.testing.assert_close(losses, torch.tensor([0.8 * 4, 0.2 * 1, 0.0]))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(values.grad, torch.tensor([-2 * 0.8 * 2, 2 * 0.2 * 1, 0.0]))

    # Three responses of 2, 1 and 3 tokens: a value is that of the state after the token, and 0 after the last one of each.
    found = next_values(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), [2, 1, 3])
    assert found.tolist() == [2, 0, 0, 5, 6, 0]

    q1, q2 = torch.tensor([0.5, 1.0], requires_grad=True), torch.tensor([1.5, 1.0])
    at = TokenQ(q1, q2, torch.tensor([2.0, 3.0]), torch.tensor([2.5, 1.0]))
    torch.testing.assert_close(q_loss(at, torch.tensor([1.0, 0.0])), torch.tensor([0.25 + 0.25, 2.0]))
    torch.testing.assert_close(conservative_loss(at), torch.tensor([1.5 + 1.0, 2.0]))
    (q_loss(at, torch.tensor([1.0, 0.0])) + conservative_loss(at)).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(q1.grad, torch.tensor([2 * (0.5 - 1) - 1, 2 * 1 - 1.0]))


def test_values_of_tokens_do_not_depend_on_chunks_and_leave_out_what_is_forbidden() -> None:
    torch.manual_seed(0)
    heads, hidden = ActionValueHeads(4, 6, 2.0), torch.randn(5, 4)
    tokens, positions = torch.tensor([2, 3, 0, 4, 0]), torch.tensor([0, 1, 2, 0, 1])
    limits = Limits(eos_id=0, suppress_tokens=(1,), min_new_tokens=1)
    for parameter in heads.online.parameters():
        torch.nn.init.normal_(parameter)
    q1, q2 = heads.online.both(hidden)
    for q in (q1, q2):
        q[:, 1] = -torch.inf
        q[[0, 3], 0] = -torch.inf  # EOS, at a first token
    for chunk in (6, 13, 1000):
        found = token_q(heads.online, hidden, tokens, positions, limits, chunk=chunk)
        torch.testing.assert_close(found.q1, q1[range(5), tokens])
        torch.testing.assert_close(found.q2, q2[range(5), tokens])
        torch.testing.assert_close(found.log_sum1, q1.logsumexp(-1))
        torch.testing.assert_close(found.log_sum2, q2.logsumexp(-1))
    torch.testing.assert_close(heads.online.least_of(hidden, tokens), torch.minimum(found.q1, found.q2))
    before = heads.target.q1.weight.clone()
    heads.follow(0.25)
    torch.testing.assert_close(heads.target.q1.weight, 0.75 * before + 0.25 * heads.online.q1.weight)


def test_a_reward_is_paid_at_its_token() -> None:
    with pytest.warns(TextsTooLong, match="2 of 7 responses to learn exceed the length limit"):
        agent = agent_of(trajectories=[*DATA, ("a", "b" * LIMIT, 3.0), ("b", "a" * (LIMIT + 1), [1.0] * (LIMIT + 1))])
    rewards = {e.info["prompt"]: (e.rewards, e.ended) for e in collected(agent).episodes}
    assert rewards["abc"] == ([0, 0, 0, 2], True)  # EOS is the token that ends the response
    assert rewards["efg"] == ([0], True)
    assert rewards["bb"] == ([1, 0, 0.5, 0, 0], True)
    assert rewards["zz"] == ([0, -1], True)
    # Cut at the limit, without EOS: the last token that is left has what the others would have got.
    assert rewards["a"] == ([0] * (LIMIT - 1) + [3], False)
    assert rewards["b"] == ([1] * (LIMIT - 1) + [2], False)
    sums = [2, 4, 0, 1.5, -1, 3, LIMIT + 1]
    assert agent.reward_scale == pytest.approx(np.std(sums))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_gradient_is_that_of_the_equations(normalize: bool) -> None:
    """Against autograd over plain passes of the model, response by response; padding and micro-batches change nothing."""
    options = {"gamma": 0.9, "expectile": 0.8, "q_coef": 0.7, "cql_coef": 0.3, "normalize_rewards": normalize}
    agent = agent_of(scale=4.0, batch_size=NUM_ENVS, tokens_per_batch=20, **options)
    for parameter in agent.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    heads, network, rollout = agent.heads, agent.policy.language_model.model, collected(agent)
    [rows] = rollout.minibatches(NUM_ENVS, agent._update_rng)
    scale, tokens, total = agent.reward_scale if normalize else 1.0, sum(rollout.lengths), torch.zeros(())
    for episode in rollout.episodes:
        prompt, response = episode.prompt_ids, episode.response_ids
        states = network.transformer(torch.tensor([[*prompt, *response]])).last_hidden_state[0]
        logits, forbidden = network.lm_head(states), list(agent.policy.limits.suppress_tokens)
        logits[:, forbidden] = -torch.inf
        values = heads.linear(states).squeeze(-1)
        for t, token in enumerate(response):
            at, last = len(prompt) - 1 + t, t + 1 == len(response)
            after = 0.0 if last else float(values[at + 1].detach())
            target = episode.rewards[t] / scale + 0.9 * after
            lesser = min(float(q(states[at])[token].detach()) for q in (heads.target.q1, heads.target.q2))
            u = lesser - values[at]
            term = -logits[at].log_softmax(-1)[token] + 0.7 * (0.8 if u > 0 else 0.2) * u**2
            for q in (heads.online.q1(states[at]), heads.online.q2(states[at])):
                allowed = torch.cat([q[:1], q[2:]])  # but padding
                term = term + 0.7 * (q[token] - target) ** 2 + 0.3 * (allowed.logsumexp(0) - q[token])
            total = total + term / tokens
    total.backward()
    wanted = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(gradient(agent, rollout, rows), wanted, rtol=2e-4, atol=2e-6)
    assert agent.minibatch_metrics["train/loss"][-1] == pytest.approx(float(total.detach()), rel=1e-4)
    assert all(p.grad is None for p in heads.target.parameters())


def test_it_acts_by_the_shifted_logits_everywhere_and_they_are_saved(tmp_path: Path) -> None:
    agent = agent_of(scale=2.0, beta=3.0, learning_rate=1e-2, target_rate=0.5).learn(iterations=6)
    policy, heads = agent.policy, agent.heads
    model, hidden = policy.acting_model, torch.randn(4, policy.language_model.hidden_size)
    log_pi, least = policy.language_model.logits(hidden).log_softmax(-1), torch.minimum(*heads.target.both(hidden))
    expected = (log_pi + 3.0 * (least - heads.linear(hidden))).softmax(-1)
    torch.testing.assert_close(model.logits(hidden).softmax(-1), expected)
    torch.testing.assert_close(
        policy.distribution(hidden, torch.full((4,), 2)).exp(),
        (log_pi + 3.0 * least).index_fill(1, torch.tensor([1]), -torch.inf).softmax(-1),
    )
    # predict, validation, and the folder that a run keeps, agree.
    prompts = [LetterTokenizer().encode(prompt) for prompt in ("abc", "d", "efghij", "bb")]
    greedy = [g.ids for g in generate(model, prompts, policy.limits, greedy=True)]
    observation: Any = letters_env(4).reset()
    firsts = agent.predict(observation, deterministic=True)[0].tolist()
    read = zip(observation["ids"].tolist(), observation["length"][:, 0], strict=True)
    begun = [ids[: int(length)] for ids, length in read]
    assert firsts == [g.ids[0] for g in generate(model, begun, policy.limits, greedy=True)]
    model.save(tmp_path / "model")
    loaded = LanguageModel.load(str(tmp_path / "model"), tokenizer=LetterTokenizer(), device="cpu")
    for one in (loaded, loaded.frozen_copy(), loaded.decoding_copy()):
        torch.testing.assert_close(one.logits(hidden), model.logits(hidden))
    assert [g.ids for g in generate(loaded, prompts, policy.limits, greedy=True)] == greedy
    validated = Validation(["zz"], every=1).evaluate(agent)
    agent.beta = heads.target.beta = 0.0
    assert Validation(["zz"], every=1).evaluate(agent)["response_length"] >= 1
    assert np.isfinite(validated["scores"])
    policy.language_model.save(tmp_path / "model")  # over it: the values of the model before are gone
    assert not (tmp_path / "model" / FILE).exists()
    # Learned from once more, a model that has values begins without them.
    assert agent_of(language_model=loaded).policy.language_model.action_values is None


def test_damaged_values_are_refused(tmp_path: Path) -> None:
    agent = agent_of()
    agent.policy.acting_model.save(tmp_path)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="do not go with the model beside them"):
        LanguageModel.load(str(tmp_path), tokenizer=LetterTokenizer(), device="cpu")


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_it_goes_on_exactly_from_a_checkpoint(lora: Any, tmp_path: Path) -> None:
    agent = agent_of(lora=lora, n_epochs=2, value_learning_rate=1e-2)
    agent.learn(iterations=2).save(tmp_path / "half")
    base = {"language_model": tiny_language_model()} if lora else {}
    loaded = ILQL.load(tmp_path / "half", env=letters_env(), trajectories=DATA, **base)
    assert loaded.heads.target.beta == 4.0
    agent.learn(iterations=4, reset_num_timesteps=False)
    loaded.learn(iterations=4, reset_num_timesteps=False)
    assert_same_weights(weights(agent), weights(loaded))
    one, other = agent.measure(DATA), loaded.measure(DATA)
    assert one == other
    parts = one["loss/policy_avg"] + one["loss/q_avg"] + one["loss/value_avg"] + 0.1 * one["loss/cql_avg"]
    assert one["loss"] == pytest.approx(parts, rel=1e-5)
    assert ILQL.load(tmp_path / "half", env=letters_env(), trajectories=DATA, beta=1.5, **base).heads.target.beta == 1.5


def test_the_scale_of_the_rewards_does_not_matter() -> None:
    found = []
    for factor in (0.125, 1.0, 8.0):  # powers of two: not even rounding differs
        data = [(p, r, [factor * x for x in w] if isinstance(w, list) else factor * w) for p, r, w in DATA]
        found.append(weights(agent_of(trajectories=data).learn(iterations=2)))
    assert_same_weights(found[0], found[1])
    assert_same_weights(found[1], found[2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "ILQL needs trajectories"),
        (["abc"], r"trajectories\[0\] must be a triple \(prompt, response, reward\)"),
        ([*DATA, ("a", "b")], r"trajectories\[5\] must be a triple"),
        ([("a", "b", float("nan"))], r"trajectories\[0\] must be a triple"),
        ([("a", "b", [0.0, float("inf")])], r"trajectories\[0\] must be a triple"),
        ([("a", "b", "good")], r"trajectories\[0\] must be a triple"),
        ([("a", "bcd", [1.0])], r"trajectories\[0\] has 1 rewards for a response of 3 tokens"),
        ([("a", "bcd", [1.0] * 5)], r"trajectories\[0\] has 5 rewards for a response of 3 tokens"),
    ],
)
def test_what_is_no_trajectory_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent_of(trajectories=data)


def test_it_is_better_than_the_data_and_than_imitating_it() -> None:
    """Copies of two letters, drawn at random. By cross-entropy alone (beta 0) the model does as the data does."""
    task = load_task("copy", length=2, num_symbols=3, num_prompts=64)
    assert task.reward is not None
    assert task.tokenizer is not None
    rng = np.random.default_rng(0)
    prompts = [prompt for prompt in task.prompts for _ in range(40)]
    texts = ["".join(rng.choice(list("abc"), 2)) for _ in prompts]
    answers = {"answer": [prompt.columns["answer"] for prompt in prompts]}
    rewards = score(task.reward, [prompt.text for prompt in prompts], texts, answers).values
    data: Any = list(zip([prompt.text for prompt in prompts], texts, map(float, rewards), strict=True))
    torch.manual_seed(0)
    size = {"n_positions": 8, "n_embd": 32, "n_layer": 1, "n_head": 4, "initializer_range": 0.1, "eos_token_id": 0}
    network = GPT2LMHeadModel(GPT2Config(vocab_size=task.tokenizer.vocab_size, bos_token_id=0, **size))
    agent = ILQL(
        env=make_sb3_env(16, task=task), language_model=LanguageModel(network, task.tokenizer, "tiny"), trajectories=data,
        n_episodes=192, batch_size=48, learning_rate=1e-2, seed=0, device="cpu",
    )  # fmt: skip
    agent.learn(iterations=25)
    validation = Validation([prompt for prompt in task.prompts for _ in range(16)], every=1)
    tuned = validation.evaluate(agent)["scores"]
    agent.heads.target.beta = 0.0
    imitated = validation.evaluate(agent)["scores"]
    assert imitated == pytest.approx(rewards.mean(), abs=0.06)
    assert tuned > imitated + 0.15
