"""Rewards for single tokens: the form, the environment, both ways of collecting, masks, and a reward model read everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_setups import LIMIT, assert_same_weights, collected, learn, letters_env, small_agent, weights
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task
from waiting import LONG

from rlhf_gym.agents import GRPO, PPO
from rlhf_gym.agents.common.advantages import gae
from rlhf_gym.envs import TokenEnv, TokenVectorEnv, make_sb3_env
from rlhf_gym.errors import RewardError
from rlhf_gym.reward_model import RewardModel
from rlhf_gym.rewards import CachedReward, load_reward, score, term
from rlhf_gym.rewards.builtin.per_token import PerToken
from rlhf_gym.rewards.service.limits import TimeLimit

A, B = LetterTokenizer().encode("ab")


def letters(prompts: list[str], responses: list[str], response_ids: list[list[int]]) -> list[list[float]]:
    """An "a" is worth 1, a "b" -1, EOS a half, anything else nothing."""
    worth = {A: 1.0, B: -1.0, 0: 0.5}
    return [[worth.get(token, 0.0) for token in ids] for ids in response_ids]


letters.per_token = True  # type: ignore[attr-defined]


def at_the_end(prompts: list[str], responses: list[str], response_ids: list[list[int]]) -> list[float]:
    return [sum(row) for row in letters(prompts, responses, response_ids)]


# ------------------------------------------------------------------------------------------------------------ the form


def test_values_add_up_to_the_score() -> None:
    scored = score(letters, ["p", "p"], ["ab", "a"], {"response_ids": [[A, B], [A, 0]]})
    assert scored.values.tolist() == [0, 1.5]
    assert [row.tolist() for row in scored.tokens or ()] == [[1, -1], [1, 0.5]]
    assert scored.terms["letters"].tolist() == [0, 1.5]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([[1.0]], r"returned 1 rows for 2 samples"),
        (3.0, r"returned float for 2 samples"),
        ([[1.0, 2.0], [1.0]], r"shape \(1,\), expected \(2,\), for sample 1.*'aa'"),
        ([1.0, 2.0], r"shape \(\), expected \(2,\), for sample 0"),
        ([[1.0, 2.0], [1.0, float("nan")]], r"gave nan for token 1, expected finite numbers, of sample 1"),
        ([[1.0, 2.0], [1.0, None]], r"gave nan for token 1"),
        ([[1.0, 2.0], ["x", 1.0]], r"expected one number a token, for sample 1"),
        ([[1.0, 2.0], [[1.0], [1.0, 2.0]]], r"expected one number a token, for sample 1"),
    ],
)
def test_wrong_results_name_sample_and_token(returned: Any, message: str) -> None:
    def head(prompts: list[str], responses: list[str], response_ids: Any = None) -> Any:
        return returned

    head.per_token = True  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match=f"per-token reward 'head' .*{message}|per-token reward 'head' {message}"):
        score(head, ["p", "p"], ["a", "aa"], {"response_ids": [[A, 0], [A, A]]})


def test_sums_keep_tokens_and_other_combinations_pay_at_the_end() -> None:
    columns = {"response_ids": [[A, B, 0]]}
    length = term(lambda prompts, responses: [float(len(r)) for r in responses], "length")
    total = score(2 * term(letters) + 0.5 * length, ["p"], ["ab"], columns)
    assert [row.tolist() for row in total.tokens or ()] == [[2, -2, 1 + 0.5 * 2]]
    assert total.values.tolist() == [2.0]
    assert score(term(letters).clip(0, 0.25), ["p"], ["ab"], columns).tokens is None
    assert score(length + 1, ["p"], ["ab"]).tokens is None
    named = score(term(letters).named("mine"), ["p"], ["ab"], columns)
    assert [row.tolist() for row in named.tokens or ()] == [[1, -1, 0.5]]
    limited = score(TimeLimit(letters, LONG), ["p"], ["ab"], columns)
    assert limited.tokens is not None
    assert score(CachedReward(letters), ["p"], ["ab"], columns).values.tolist() == [0.5]


# ----------------------------------------------------------------------------------------------------- the environment


def test_the_ending_step_says_what_each_token_is_worth() -> None:
    options: dict[str, Any] = {
        "task": letter_task(limit=3),
        "tokenizer": LetterTokenizer(),
        "reward": term(letters) * 2,
    }
    env = TokenEnv(**options)
    env.reset(seed=0)
    paid = [env.step(token)[1] for token in (A, B)]
    _, reward, terminated, _, info = env.step(0)
    assert terminated
    assert [*paid, reward] == [0, 0, 1.0]
    assert info["token_rewards"].tolist() == [2, -2, 1]
    vector = TokenVectorEnv(3, **options, autoreset_mode="disabled")
    vector.reset(seed=0)
    infos = vector.step(np.array([A, 0, 0]))[4]
    assert [infos["token_rewards"][i].tolist() for i in (1, 2)] == [[1], [1]]
    assert infos["_token_rewards"].tolist() == [False, True, True]


def test_rewards_that_value_no_tokens_are_told_nothing_of_ids() -> None:
    seen: list[Any] = []

    def curious(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.append(sorted(columns))
        return [0.0] * len(responses)

    for reward in (curious, term(curious) + term(letters)):
        env = make_sb3_env(1, task=letter_task(reward, limit=2), tokenizer=LetterTokenizer())
        env.reset()
        env.score_ended(env.end_episodes([0], [[A, 0]]))
    assert seen == [["number"], ["number", "response_ids"]]


# ----------------------------------------------------------------------------------------------------------- the agents


@pytest.mark.parametrize("collect", ["auto", "step"])
def test_every_token_is_paid_its_own_and_padding_nothing(collect: str) -> None:
    agent = small_agent(
        PPO, letters_env(reward=letters), collect=collect, normalize_advantage=False, kl_coef=0.0, seed=2
    )
    rollout = collected(agent)
    assert len(set(rollout.lengths)) > 1  # there is padding
    assert any(e.response_ids[-1] == 0 for e in rollout.episodes)
    assert any(e.response_ids[-1] != 0 for e in rollout.episodes)  # cut at the limit
    for row, episode in enumerate(rollout.episodes):
        length = len(episode.response_ids)
        expected = letters([""], [""], [episode.response_ids])[0]
        assert rollout.rewards[row, :length].tolist() == pytest.approx(expected, abs=1e-6)
        assert not rollout.rewards[row, length:].any()
        assert episode.score == pytest.approx(sum(expected), abs=1e-6)
    advantages, _ = gae(rollout.rewards, rollout.values, rollout.mask, gamma=1.0, gae_lambda=0.95)
    torch.testing.assert_close(rollout.advantages, advantages)
    assert not rollout.advantages[~rollout.mask].any()


def test_both_ways_of_collecting_agree() -> None:
    agents = [small_agent(PPO, letters_env(reward=letters), collect=collect, seed=1) for collect in ("auto", "step")]
    rows = [learn(agent, 300) for agent in agents]
    assert [r["objective/scores"] for r in rows[0]] == pytest.approx([r["objective/scores"] for r in rows[1]], abs=1e-4)
    for one, other in zip(weights(agents[0]).values(), weights(agents[1]).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_agents_that_look_at_whole_responses_see_the_same_sum() -> None:
    def with_ids(prompts: list[str], responses: list[str]) -> list[float]:  # EOS leaves no trace in the text
        return [r.count("a") - r.count("b") + 0.5 * (len(r) < LIMIT) for r in responses]

    agents = [small_agent(GRPO, letters_env(reward=reward), group_size=4, seed=1) for reward in (letters, with_ids)]
    for agent in agents:
        learn(agent, 1)
    assert_same_weights(*(weights(agent) for agent in agents))


def test_it_learns_from_what_each_token_is_paid() -> None:
    """With lambda 0 and a value function that knows nothing yet, a token learns from its own pay only."""
    rows = learn(small_agent(PPO, letters_env(32, reward=letters), n_episodes=32, gae_lambda=0.0, kl_coef=0.0), 6000)
    assert np.mean([r["objective/scores"] for r in rows[-5:]]) > np.mean([r["objective/scores"] for r in rows[:5]]) + 1


# ------------------------------------------------------------------------------------------- a reward model, everywhere


def reward_model() -> RewardModel:
    model = RewardModel(tiny_language_model(seed=3, scale=2.0), seed=1)
    model.gain, model.bias = 2.0, 0.7
    return model


def test_a_reward_model_read_at_every_token() -> None:
    model = reward_model()
    reward = PerToken(model)
    prompts, ids = ["abc", "d"], [[A, B, 0], [B, B, A, A]]  # one ended by itself, one cut
    texts = [LetterTokenizer().decode(row) for row in ids]
    scored = score(reward, prompts, texts, {"response_ids": ids})
    whole = score(model, prompts, texts).values
    np.testing.assert_allclose(scored.values, whole, atol=1e-5)  # the model's own score of the whole
    assert scored.tokens is not None
    assert [len(row) for row in scored.tokens] == [3, 4]

    def value(prompt: str, prefix: list[int]) -> float:
        return model.scores([[*LetterTokenizer().encode_prompt(prompt), *prefix]]).item() * 2.0 + 0.7

    first = scored.tokens[0]
    assert first[0] == pytest.approx(value("abc", [A]) - value("abc", []), abs=1e-5)
    assert first[1] == pytest.approx(value("abc", [A, B]) - value("abc", [A]), abs=1e-5)
    assert first[2] == pytest.approx(value("abc", [A, B, 0]) - value("abc", [A, B]) + value("abc", []), abs=1e-5)
    cut = scored.tokens[1]
    closing = value("d", [B, B, A, A, 0]) - value("d", [B, B, A]) + value("d", [])
    assert cut[3] == pytest.approx(closing, abs=1e-5)  # the added EOS is the last token's
    # Without ids, as in an evaluation, only the sum counts.
    np.testing.assert_allclose(score(reward, prompts, texts).values, whole, atol=1e-5)


def test_by_its_folder_and_in_training(tmp_path: Path) -> None:
    model = reward_model()
    model.save(tmp_path / "rm")
    loaded = load_reward("per_token", model=str(tmp_path / "rm"), device="cpu", tokenizer=LetterTokenizer())
    ids = {"response_ids": [[A, 0]]}
    np.testing.assert_allclose(
        score(loaded, ["a"], ["a"], ids).values, score(PerToken(model), ["a"], ["a"], ids).values
    )
    rows = learn(small_agent(PPO, letters_env(reward=loaded)), 200)
    assert all(np.isfinite(row["objective/scores"]) for row in rows)
    with pytest.raises(RewardError, match="leaves no room for a prompt"):
        score(loaded, ["a"], ["a" * 64], {"response_ids": [[A] * 64]})
