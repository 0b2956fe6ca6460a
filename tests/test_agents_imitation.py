"""Agents that imitate or compare instead of following a reward's gradient: SFT, RAFT, online DPO and IPO, best-of-n."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import (
    LIMIT,
    NUM_ENVS,
    assert_same_weights,
    collected,
    gradient,
    learn,
    letters_env,
    move_reference,
    small_agent,
    weights,
)
from stable_baselines3.common.evaluation import evaluate_policy
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import count_a

from rlhf_gym.agents import RAFT, SFT, BestOfN, OnlineDPO
from rlhf_gym.agents.best_of_n import best_of_n, best_of_n_kl
from rlhf_gym.agents.common.given_pairs import place_in_pass
from rlhf_gym.agents.common.preference_losses import preference_loss
from rlhf_gym.agents.common.setup import limits_of
from rlhf_gym.agents.online_dpo import preferred
from rlhf_gym.errors import ConfigError, ModelError
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.raters.base import Ticket

DATA = [("abc", "aab"), ("d", "aaaa"), ("efghij", "aa"), ("bb", "aaaaaaaaaaaa"), ("zz", "a")]


def sft(**options: Any) -> Any:
    options = {"data": DATA, "n_episodes": NUM_ENVS} | options
    return small_agent(lambda *a, **k: SFT(*a, **{key: v for key, v in k.items() if key != "kl_coef"}), **options)


def dpo(**options: Any) -> Any:
    return small_agent(lambda *a, **k: OnlineDPO(*a, **{key: v for key, v in k.items() if key != "kl_coef"}), **options)


# ------------------------------------------------------------------------------------------------- online DPO


def test_preference_losses_by_hand() -> None:
    margins = torch.tensor([2.0, -1.0])
    expected = torch.tensor([math.log(1 + math.exp(-0.2)), math.log(1 + math.exp(0.1))])
    torch.testing.assert_close(preference_loss(margins, 0.1), expected)
    smoothed = 0.9 * expected + 0.1 * torch.tensor([math.log(1 + math.exp(0.2)), math.log(1 + math.exp(-0.1))])
    torch.testing.assert_close(preference_loss(margins, 0.1, label_smoothing=0.1), smoothed)
    torch.testing.assert_close(preference_loss(margins, 0.1, "ipo"), torch.tensor([9.0, 36.0]))


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_the_gradient_is_that_of_whole_responses(loss: str) -> None:
    """Against autograd over plain passes of the model, pair by pair."""
    agent = dpo(scale=4.0, beta=0.3, loss=loss, batch_size=NUM_ENVS, tokens_per_batch=40)
    move_reference(agent)
    rollout = collected(agent)
    rows = [i for batch in rollout.minibatches(NUM_ENVS, agent._update_rng) for i in batch]
    found = gradient(agent, rollout, rows)
    assert 0 < len(rows) < NUM_ENVS  # some pairs are equal
    agent.policy.optimizer.zero_grad()

    def log_prob(network: Any, i: int) -> Any:
        episode = rollout.episodes[i]
        logits = network(torch.tensor([episode.prompt_ids + episode.response_ids])).logits[0].clone()
        logits[:, 1] = -torch.inf  # padding is never generated
        logs, start = logits.log_softmax(-1), len(episode.prompt_ids)
        return sum(logs[start - 1 + t, token] for t, token in enumerate(episode.response_ids))

    losses = []
    for first in range(0, NUM_ENVS, 2):
        better, worse = sorted((first, first + 1), key=lambda i: -rollout.episodes[i].score)
        if rollout.episodes[better].score == rollout.episodes[worse].score:
            assert first not in rows
            continue
        with torch.no_grad():
            base = log_prob(agent.reference.model, better) - log_prob(agent.reference.model, worse)
        h = log_prob(agent.policy.lm, better) - log_prob(agent.policy.lm, worse) - base
        losses.append(-torch.log(torch.sigmoid(0.3 * h)) if loss == "dpo" else (h - 1 / 0.6) ** 2)
    torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-3)


class Shorter:
    """A rater that is three: two like the shorter response, one the longer; the first of those corrects itself at "z"."""

    name = "shorter"

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        self.queries += queries
        return [Ticket(query.id, self.name, number) for query in queries for number in range(3)]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        out = []
        for query in self.queries:
            if query.id not in {ticket.query_id for ticket in tickets}:
                continue
            lengths = [len(response) for response in query.responses]
            if lengths[0] == lengths[1]:
                out.append(Judgement(query_id=query.id, rater="shorter/a", tie=True))
                continue
            best = int(lengths[1] < lengths[0])
            out += [Judgement(query_id=query.id, rater=f"shorter/{m}", choice=best) for m in "ab"]
            out.append(Judgement(query_id=query.id, rater="shorter/c", choice=1 - best))
            if "z" in query.prompt:
                skip = Judgement(query_id=query.id, rater="shorter/a", skipped=True, supersedes=out[-3].id)
                out.append(skip)
        return out


def test_a_raters_answers_by_hand() -> None:
    pairs = [("p", ("aa", "b")), ("p", ("a", "bb")), ("p", ("a", "b")), ("z", ("a", "bb"))]
    queries = [Query(prompt=p, responses=r, index=i) for i, (p, r) in enumerate(pairs)]
    assert preferred(queries, Shorter()).tolist() == [-1, 1, 0, 0]  # the last: one for, one against, one skipped
    assert preferred([], Shorter()).tolist() == []


def test_a_rater_may_judge_in_the_place_of_the_reward(tmp_path: Path) -> None:
    rater = Shorter()
    agent = dpo(scale=2.0, rater=rater)
    rollout = collected(agent)
    for first in range(0, NUM_ENVS, 2):
        a, b = (rollout.episodes[i].info["response"] for i in (first, first + 1))
        expected = float(np.sign(len(b) - len(a)))
        assert rollout.advantages[first : first + 2, 0].tolist() == [expected, -expected]
        assert rollout.learn_from is not None
        assert (first in rollout.learn_from) == (expected != 0)
    assert all(query.responses[0] != query.responses[1] for query in rater.queries)
    rows = learn(agent, 3000)
    assert rows[-1]["response_length"] < 0.5 * rows[0]["response_length"]
    agent.save(tmp_path / "judged")
    with pytest.raises(ConfigError, match="values of rater that it cannot hold"):
        OnlineDPO.load(tmp_path / "judged", env=letters_env())
    assert OnlineDPO.load(tmp_path / "judged", env=letters_env(), rater=rater).rater is rater


def test_pairs_of_equal_scores_are_left_out_whatever_their_tokens_rewards() -> None:
    """Every response is worth 1 in all; sums of its tokens' own rewards differ by rounding."""

    def shares(prompts: list[str], responses: list[str], response_ids: list[list[int]]) -> list[list[float]]:
        parts = [np.array([1.0 + token for token in ids]) for ids in response_ids]
        return [(part / part.sum()).tolist() for part in parts]

    shares.per_token = True  # type: ignore[attr-defined]
    rollout = collected(dpo(scale=4.0, task={"reward": shares}))
    sums = rollout.rewards.sum(1).view(-1, 2)
    assert bool((sums[:, 0] != sums[:, 1]).any())
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert rollout.learn_from == []


def test_pairs_share_a_minibatch() -> None:
    agent = dpo(scale=4.0, batch_size=4)
    rollout = collected(agent)
    for batch in rollout.minibatches(4, np.random.default_rng(0)):
        assert all(b == a + 1 and a % 2 == 0 for a, b in zip(batch[::2], batch[1::2], strict=True))


# ------------------------------------------------------------------------------------------------- RAFT, SFT


def test_raft_learns_the_best_of_each_group_only() -> None:
    agent = small_agent(RAFT, scale=4.0, group_size=4, kl_coef=0.0)
    rollout = collected(agent)
    scores = [e.score for e in rollout.episodes]
    expected = [max(range(i, i + 4), key=lambda j: scores[j]) for i in range(0, NUM_ENVS, 4)]
    assert rollout.learn_from == expected
    found = gradient(agent, rollout, expected)
    agent.policy.optimizer.zero_grad()
    total = sum(cross_entropy(agent, rollout.episodes[i]) for i in expected)
    (total / sum(rollout.lengths[i] for i in expected)).backward()  # type: ignore[union-attr]
    by_hand = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=1e-4)


def test_expert_iteration_imitates_what_the_verifier_passes() -> None:
    """Whatever the KL penalty says; the policy ends up passing, and an iteration without a passing response learns nothing."""

    def verifier(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        return [float("a" in response) for response in responses]

    agent = small_agent(
        RAFT, letters_env(reward=verifier), scale=4.0, learning_rate=1e-2, **RAFT.preset("expert_iteration")
    )
    rollout = collected(agent)
    passed = [i for i, e in enumerate(rollout.episodes) if "a" in e.info["response"]]
    assert rollout.learn_from == passed
    assert 0 < len(passed) < NUM_ENVS
    best = small_agent(RAFT, letters_env(reward=verifier), scale=4.0, min_score=1.0, group_size=2, kl_coef=3.0, seed=1)
    move_reference(best)
    rollout = collected(best)
    assert 0 < len(rollout.learn_from or []) < NUM_ENVS / 2
    assert all("a" in rollout.episodes[i].info["response"] for i in rollout.learn_from or [])
    rows = learn(agent, 1, iterations=10)
    assert rows[-1]["objective/scores"] > 0.9 > 0.5 > rows[0]["objective/scores"]
    assert rows[-1]["groups/imitated_share"] == rows[-1]["objective/scores"]
    never = small_agent(RAFT, min_score=1e6, keep="all")
    before = [p.clone() for p in never.policy.parameters()]
    learn(never, 1, iterations=1)
    assert all(torch.equal(a, b) for a, b in zip(before, never.policy.parameters(), strict=True))


def cross_entropy(agent: Any, episode: Any) -> Any:
    """The response's tokens alone, by transformers' own convention of labels."""
    ids = torch.tensor([episode.prompt_ids + episode.response_ids])
    logits = agent.policy.lm(ids).logits.clone()
    logits[..., 1] = -torch.inf
    labels = ids.clone()
    labels[0, : len(episode.prompt_ids)] = -100
    return torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")


def test_sft_learns_responses_with_their_eos_and_no_prompt() -> None:
    agent = sft(scale=4.0, batch_size=None, n_episodes=NUM_ENVS)
    rollout = collected(agent)
    by_prompt = {tuple(e.prompt_ids): e for e in rollout.episodes}
    short, long = by_prompt[2, 3, 4], by_prompt[3, 3]
    assert (short.response_ids, short.ended) == ([2, 2, 3, 0], True)
    assert (long.response_ids, long.ended) == ([2] * LIMIT, False)  # cut at the limit: its end is not its own
    rows = list(range(NUM_ENVS))
    found = gradient(agent, rollout, rows)
    agent.policy.optimizer.zero_grad()
    total = sum(cross_entropy(agent, episode) for episode in rollout.episodes)
    (total / sum(rollout.lengths)).backward()  # type: ignore[union-attr]
    by_hand = torch.cat([p.grad.flatten() for p in agent.policy.parameters() if p.grad is not None])
    torch.testing.assert_close(found, by_hand, atol=1e-6, rtol=1e-4)


def test_sft_takes_each_pair_once_a_pass_in_another_order() -> None:
    agent = sft(data=[("a", "a" * (i % 7 + 1)) for i in range(NUM_ENVS)])
    first, second = (
        [place_in_pass(turn * NUM_ENVS + i, len(agent.data), agent.seed) for i in range(NUM_ENVS)] for turn in (0, 1)
    )
    assert sorted(first) == sorted(second) == list(range(NUM_ENVS))
    assert first != second


def test_sft_learns_its_data_by_heart() -> None:
    agent = sft(learning_rate=5e-3)
    before = evaluate_policy(agent, letters_env(4), n_eval_episodes=16, warn=False)[0]
    rows = learn(agent, 6000)
    assert rows[-1]["loss/policy_avg"] < 0.2 < 2.0 < rows[0]["loss/policy_avg"]
    env = letters_env(4)
    env.seed(0)
    observation = env.reset()
    prompts = [observation["ids"][i, : observation["prompt_length"][i, 0]].tolist() for i in range(4)]
    answers: dict[int, str] = {}
    while len(answers) < 4:
        observation, _, dones, infos = env.step(agent.predict(observation, deterministic=True)[0])
        for i in np.flatnonzero(dones):
            answers.setdefault(int(i), infos[i]["response"])
    known = dict(DATA)
    assert all(answers[i] == known[LetterTokenizer().decode(prompts[i])][:LIMIT] for i in range(4))
    assert before < 1


# ------------------------------------------------------------------------------------------------- as SB3 algorithms


@pytest.mark.parametrize("name", ["raft", "dpo", "ipo", "sft"])
def test_training_resumes_exactly(tmp_path: Path, name: str) -> None:
    make: Any = {
        "raft": lambda **o: small_agent(RAFT, **o),
        "dpo": dpo,
        "ipo": lambda **o: dpo(loss="ipo", **o),
        "sft": lambda **o: sft(data=[("a", "b" * LIMIT)] * 3, **o),
    }[name]
    task = {"minimum": LIMIT - 1}
    tokens = NUM_ENVS * LIMIT
    whole, half = make(task=task), make(task=task)
    whole.learn(6 * tokens)
    half.learn(3 * tokens)
    half.save(tmp_path / "half")
    given = {"data": half.data} if name == "sft" else {}
    resumed = type(half).load(tmp_path / "half", env=letters_env(**task), device="cpu", **given)
    resumed.learn(3 * tokens, reset_num_timesteps=False)
    assert resumed.iteration == whole.iteration == 6
    assert_same_weights(weights(resumed), weights(whole))
    if name == "sft":
        with pytest.raises(ConfigError, match="values of data that it cannot hold"):
            SFT.load(tmp_path / "half", env=letters_env(**task))


@pytest.mark.parametrize(
    "make", [lambda **o: small_agent(RAFT, kl_coef=0.0, **o), dpo, lambda **o: dpo(loss="ipo", beta=0.03, **o)]
)
def test_it_learns_to_write_the_letter_that_is_paid_for(make: Any) -> None:
    """The best possible is 8, untrained 0.3; over four seeds each of them reached 7.9 to 8.0."""
    rows = learn(make(learning_rate=3e-3), 6000)
    assert sum(row["objective/scores"] for row in rows[-3:]) / 3 > 6.0


def test_ipo_stops_at_its_margin() -> None:
    """With beta 0.1 it wants 5 nats between the two of a pair, and no more: it stays near the reference where DPO goes on."""
    free, held = learn(dpo(learning_rate=3e-3), 6000), learn(dpo(loss="ipo", learning_rate=3e-3), 6000)
    assert held[-1]["objective/kl"] < 0.5 * free[-1]["objective/kl"]


def test_a_function_may_judge_in_the_place_of_the_reward() -> None:
    def shorter(prompt: str, a: str, b: str) -> int | None:
        return None if len(a) == len(b) else int(len(b) < len(a))

    by_function, by_rater = collected(dpo(scale=2.0, rater=shorter)), collected(dpo(scale=2.0, rater=Shorter()))
    assert torch.equal(by_function.advantages, by_rater.advantages)
    assert by_function.learn_from == by_rater.learn_from != []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpo(beta=0), "beta must be a finite number above 0"),
        (lambda: dpo(loss="hinge"), "loss must be one of dpo, ipo"),
        (lambda: dpo(label_smoothing=0.1, loss="ipo"), r"label_smoothing \(0.1\) belongs to loss='dpo'"),
        (lambda: dpo(label_smoothing=0.5), r"label_smoothing must be a number in \[0, 0.5\)"),
        (lambda: dpo(batch_size=5), "batch_size must be even, got 5"),
        (lambda: dpo(group_size=4), "OnlineDPO has no setting group_size; leave it out"),
        (lambda: small_agent(RAFT, clip_range=0.2), "RAFT has no setting clip_range"),
        (lambda: dpo(rater=len), r"rater 'len' is a function whose parameters are \(obj\)"),
        (lambda: dpo(rater=3), "a rater is an object with name, submit and collect, or a function"),
        (lambda: sft(data=[]), "SFT needs data"),
        (lambda: sft(temperature=0.5), "SFT has no setting temperature"),
        (
            lambda: sft(task={"minimum": 4}),
            r"data\[0\] has the response 'aab' of 4 tokens.*: EOS is not allowed in the first 4",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_data_that_do_not_fit_in_the_model_are_refused() -> None:
    with pytest.raises(ModelError, match=r"data\[1\]: a prompt of 63 tokens and a response of up to 2 do not fit"):
        sft(data=[("a", "b"), ("a" * 63, "b")])


# ------------------------------------------------------------------------------------------------- best of n


def test_the_kl_of_best_of_n() -> None:
    """Against the exact KL of the best of n draws from many equally likely values."""
    assert best_of_n_kl(1) == 0
    for n in (2, 4, 16):
        m = 20_000
        cdf = np.arange(m + 1) / m
        p = np.diff(cdf**n)
        assert float((p * np.log(np.maximum(p, 1e-300) * m)).sum()) == pytest.approx(best_of_n_kl(n), abs=1e-3)


def test_the_best_is_kept() -> None:
    model = tiny_language_model(scale=2.0)
    limits = Limits(0, (1,), 0, 6)
    one = best_of_n(model, ["abc", "d"], count_a, 1, limits, seed=3)
    many = best_of_n(model, ["abc", "d"], count_a, 64, limits, seed=3)
    assert [s for _, s in many] == [float(g.text.count("a")) for g, _ in many]
    assert all(b[1] >= a[1] for a, b in zip(one, many, strict=True))
    assert sum(s for _, s in many) > sum(s for _, s in one)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        best_of_n(model, ["a"], count_a, 0, limits)


def test_a_stop_sequence_ends_what_the_reward_sees() -> None:
    """An environment cuts responses before a stop sequence: so do the responses that are chosen from."""
    seen: list[str] = []

    def look(prompts: list[str], responses: list[str]) -> list[float]:
        seen.extend(responses)
        return [0.0] * len(responses)

    env = letters_env(4, stop=("a", "e", "i"))
    chooser: Any = BestOfN(tiny_language_model(), look, 8, limits_of(env, tiny_language_model()), stop=env.stop)
    evaluate_policy(chooser, env, n_eval_episodes=8, warn=False)
    assert len(seen) >= 64
    assert not any(set(text) & set("aei") for text in seen)


def test_columns_reach_the_reward() -> None:
    def match(prompts: list[str], responses: list[str], wanted: list[str], **columns: Any) -> list[float]:
        return [float(w in r) for w, r in zip(wanted, responses, strict=True)]

    found = best_of_n(
        tiny_language_model(), ["a", "b"], match, 200, Limits(0, (1,), 0, 4), columns={"wanted": ["c", "e"]}
    )
    assert ["c" in found[0][0].text, "e" in found[1][0].text] == [True, True]


def test_it_predicts_whole_episodes() -> None:
    model = tiny_language_model(scale=2.0)
    means = {}
    for n in (1, 16):
        env = letters_env(4)
        env.seed(0)
        chooser: Any = BestOfN(model, count_a, n, limits_of(env, model), seed=1)
        means[n], _ = evaluate_policy(chooser, env, n_eval_episodes=24, warn=False)
    assert means[16] > means[1] + 0.5
    env = letters_env(4)
    observation = env.reset()
    env.step(np.full(4, 5))
    observation["ids"][:, 8] = 5
    observation["length"] += 1
    with pytest.raises(ConfigError, match="did not begin"):
        BestOfN(model, count_a, 2, limits_of(env, model)).predict(observation)
