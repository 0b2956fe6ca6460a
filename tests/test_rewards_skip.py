"""`on_error: skip`: an episode whose reward failed is in no gradient and in no figure, and is counted."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from ppo_setups import assert_same_weights, learn, letters_env, small_agent, weights
from stable_baselines3.common.logger import Logger
from tiny_models import LetterTokenizer, tiny_language_model
from tiny_run import save_tiny_model, tiny_settings
from toy_tasks import letter_task
from waiting import LONG

from rlhf_gym.agents import GRPO, PPO, OnlineDPO
from rlhf_gym.agents.best_of_n import best_of_n
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.envs import TokenEnv, TokenVecEnv, make_sb3_env
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.feedback.queries import Query
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.loop.config_file import build
from rlhf_gym.loop.progress import Progress
from rlhf_gym.loop.rounds import run_loop
from rlhf_gym.raters.simulated import SimulatedRater
from rlhf_gym.rewards import CachedReward, Constrained, Gate, RunningStandardise, SkipOnError, load_reward, score, term
from rlhf_gym.rewards.adaptive import frozen, reward_state
from rlhf_gym.rewards.on_error import FillOnError, on_error
from rlhf_gym.rewards.service.limits import TimeLimit

pytestmark = pytest.mark.filterwarnings("ignore:reward .* has failed")


def picky(prompts: list[str], responses: list[str]) -> list[float]:
    """Counts "a", and fails where the response has a "b" in it."""
    if any("b" in r for r in responses):
        raise ValueError("I cannot read b")
    return [float(r.count("a")) for r in responses]


def skipping() -> SkipOnError:
    return SkipOnError(picky, most=10_000)


def length(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(r)) for r in responses]


# ---------------------------------------------------------------------------------------------------------- the reward


def test_a_sample_that_fails_has_no_score() -> None:
    seen: list[RewardError] = []
    reward = SkipOnError(picky, on_failure=seen.append)
    scored = score(reward, ["p"] * 3, ["aa", "ab", "a"], may_skip=True)
    assert scored.kept.tolist() == [True, False, True]
    assert scored.values[scored.kept].tolist() == [2, 1]
    assert scored.failures is not None
    assert scored.failures[0] is None
    assert scored.failures[1] is not None
    assert scored.failures[1].name == "picky"
    assert "I cannot read b" in scored.failures[1].error
    assert (reward.failures, len(seen)) == (1, 1)
    # Always there, so that an environment's infos have the same keys whatever is in the batch.
    assert score(reward, ["p"], ["a"], may_skip=True).failures == (None,)


def test_who_cannot_leave_samples_out_gets_the_error() -> None:
    with pytest.raises(RewardError, match=r"no score for sample 1: 'picky' failed on it.*'ab'.*cannot read b"):
        score(skipping(), ["p"] * 2, ["a", "ab"])
    with pytest.raises(RewardError, match="no score for sample 0"):
        (2 * term(skipping()))(["p"], ["b"])
    with pytest.raises(RewardError, match="no score for sample 0"):
        skipping()(["p"], ["b"])
    assert FillOnError(skipping(), fill=-1)(["p"] * 2, ["a", "b"]) == [1, -1]


def test_the_first_failure_is_told_once() -> None:
    reward = SkipOnError(picky)
    with pytest.warns(UserWarning, match=r"'picky' has failed: leaving such samples out .*cannot read b") as told:
        score(reward, ["p"] * 2, ["b", "bb"], may_skip=True)
    # Others may be among them: the collector closes what earlier tests left, whenever it comes by.
    assert sum("has failed" in str(warning.message) for warning in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "reward .* has failed")
        score(reward, ["p"], ["b"], may_skip=True)
    with pytest.warns(UserWarning, match=r"filling in -1 from now on"):
        score(FillOnError(picky, fill=-1), ["p"], ["b"])


def test_a_dead_reward_is_raised_after_all() -> None:
    reward = SkipOnError(picky, most=3)
    score(reward, ["p"] * 2, ["b", "b"], may_skip=True)
    with pytest.raises(RewardError, match=r"3 samples in a row, so leaving such samples out stops here.*cannot read b"):
        score(reward, ["p"], ["b"], may_skip=True)
    with pytest.raises(ConfigError, match="most"):
        SkipOnError(picky, most=0)


def test_combinations_leave_the_whole_sample_out_and_learn_nothing_from_it() -> None:
    prompts, responses = ["p"] * 4, ["aa", "b" * 99, "a", ""]
    scored = score(term(skipping()) - 0.5 * term(length), prompts, responses, may_skip=True)
    assert scored.kept.tolist() == [True, False, True, True]
    assert scored.values[scored.kept].tolist() == [1, 0.5, 0]
    assert scored.terms["length_weighted"][scored.kept].tolist() == [-1, -0.5, 0]

    running, clean = RunningStandardise(skipping()), RunningStandardise(picky)
    some = score(running, prompts, responses, may_skip=True)
    without = score(clean, prompts[:3], ["aa", "a", ""])
    assert some.values[some.kept].tolist() == without.values.tolist()
    assert running.state_dict() == clean.state_dict()

    held, alone = (Constrained(r, length, level=3, rate=0.1) for r in (skipping(), picky))
    score(held, prompts, responses, may_skip=True)
    score(alone, prompts[:3], ["aa", "a", ""])
    assert held.multiplier == alone.multiplier == pytest.approx(0.1 * (1 + 2 + 3))

    gate = score(Gate(skipping(), length, level=1), prompts, responses, may_skip=True)
    assert gate.values[gate.kept].tolist() == [2, 1, 0]
    limited = score(TimeLimit(skipping(), LONG), prompts, responses, may_skip=True)
    assert limited.kept.tolist() == [True, False, True, True]


def test_all_fail() -> None:
    running = RunningStandardise(skipping())
    scored = score(running + 1, ["p"] * 2, ["b", "b"], may_skip=True)
    assert not scored.kept.any()
    assert np.isfinite(scored.values).all()
    assert running.count == 0


@pytest.mark.parametrize("policy", ["skip", {"fill": 0}])
def test_what_learns_inside_a_policy_learns_once_from_what_has_a_score(policy: Any) -> None:
    running = RunningStandardise(length)
    reward = on_error(running + term(picky), policy)
    score(reward, ["p"] * 3, ["a", "b", "aaa"], may_skip=True)
    assert (running.count, running.mean) == (2, 2)
    assert [state["name"] for state in reward_state(reward)] == ["running(length)"]  # a checkpoint finds it
    with frozen(reward):  # and so does an evaluation
        score(reward, ["p"], ["aaaaaaa"], may_skip=True)
    assert (running.count, running.mean) == (2, 2)


def test_a_cache_keeps_no_failures() -> None:
    calls: list[list[str]] = []

    def once(prompts: list[str], responses: list[str]) -> list[float]:
        calls.append(responses)
        if len(calls) <= 3 and "b" in responses:
            raise ConnectionError("away")
        return [1.0] * len(responses)

    cached = CachedReward(SkipOnError(once))
    first = score(cached, ["p"] * 2, ["a", "b"], may_skip=True)
    assert first.kept.tolist() == [True, False]
    again = score(cached, ["p"] * 2, ["a", "b"])
    assert again.values.tolist() == [1, 1]
    assert calls[-1] == ["b"]
    assert again.failures == (None, None)  # there in every batch: an environment's infos always have the same keys
    assert score(cached, ["p"], ["a"], may_skip=True).failures == (None,)


def test_yaml() -> None:
    reward = {"reward": f"{__name__}:picky", "on_error": "skip"}
    scored = score(
        load_reward({"sum": [reward, {"reward": "length", "weight": 2}]}), ["p"] * 2, ["a", "b"], may_skip=True
    )
    assert scored.kept.tolist() == [True, False]
    assert scored.values[0] == 3
    made = load_reward({"reward": "length", "on_error": {"skip": True, "most": 7}})
    assert made.reward.most == 7  # type: ignore[union-attr]
    assert score(load_reward({"reward": "length", "on_error": "raise"}), ["p"], ["a b"]).values.tolist() == [2]
    for wrong in ("ignore", {"skip": False}, {"skip": True, "fill": 0}, {}, {"skip": True, "many": 3}, 3):
        with pytest.raises(ConfigError, match="on_error must be raise, skip"):
            load_reward({"reward": "length", "on_error": wrong})
    with pytest.raises(ConfigError, match="on_error"):
        load_reward({"reward": "length", "on_error": {"fill": "nothing"}})


# --------------------------------------------------------------------------------------------------- the environments


def test_an_environment_says_so() -> None:
    options: dict[str, Any] = {"task": letter_task(limit=2), "reward": skipping(), "tokenizer": LetterTokenizer()}
    env = TokenEnv(**options)
    said = []
    for letters in ("aa", "ab"):
        env.reset(seed=0)
        for letter in letters:
            _, reward, terminated, _, info = env.step(LetterTokenizer().encode(letter)[0])
        assert terminated
        said.append((reward, info["reward_skipped"]))
    assert said == [(2, ""), (0, "picky")]
    assert "reward_skipped" not in _ending_info(letter_task(limit=1))
    vector = make_sb3_env(2, **options)
    vector.reset()
    rewards, infos = vector.score_ended(
        vector.end_episodes([0, 1], [LetterTokenizer().encode("aa"), LetterTokenizer().encode("ba")])
    )
    assert rewards[0] == 2
    assert [info["reward_skipped"] for info in infos] == ["", "picky"]


def _ending_info(task: Any) -> dict[str, Any]:
    env = TokenEnv(task=task, tokenizer=LetterTokenizer())
    env.reset(seed=0)
    return env.step(2)[4]


# --------------------------------------------------------------------------------------------------------- the agents


def env_of(reward: Any) -> TokenVecEnv:
    return letters_env(16, reward=reward)


@pytest.mark.parametrize("collect", ["auto", "step"])
def test_no_gradient_and_no_metric(collect: str) -> None:
    """Skipping is the same as if those episodes had never been in the rollout."""
    agent = small_agent(PPO, env_of(skipping()), collect=collect, seed=3)
    row = learn(agent, 1)[0]
    easy = term(lambda prompts, responses: [r.count("a") for r in responses], "picky")
    every = small_agent(PPO, env_of(easy), collect=collect, seed=3)
    every.set_logger(Logger(None, []))

    def kept(whole: Rollout, group_size: int = 1) -> Rollout:
        rollout = Rollout.of([e for e in whole.episodes if "b" not in e.info["response"]])
        every.complete(rollout)
        return rollout

    with patch.object(Rollout, "scored", kept):
        other = learn(every, 1)[0]
    assert 0 < len(every.rollout.episodes) < 16
    assert_same_weights(weights(agent), weights(every))
    ours = {
        k: v for k, v in row.items() if not k.startswith(("time/", "rollout/")) and "skip" not in k and "left" not in k
    }
    theirs = {k: v for k, v in other.items() if k in ours}
    assert ours == pytest.approx(theirs)
    count = 16 - len(every.rollout.episodes)
    assert (row["reward/skipped"], row["reward/skipped_picky"], row["reward/left_out"]) == (count, count, count)
    scores = [e.info["episode"]["r"] for e in every.rollout.episodes]
    assert [info["r"] for info in agent.ep_info_buffer] == scores  # SB3's rollout/ep_rew_mean
    assert agent.num_timesteps == every.num_timesteps  # what was written was written


def test_both_ways_of_collecting_agree() -> None:
    agents = [small_agent(PPO, env_of(skipping()), collect=collect, seed=1) for collect in ("auto", "step")]
    rows = [learn(agent, 300) for agent in agents]
    assert [r["reward/skipped"] for r in rows[0]] == [r["reward/skipped"] for r in rows[1]]
    assert any(r["reward/skipped"] for r in rows[0])
    for one, other in zip(weights(agents[0]).values(), weights(agents[1]).values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", [GRPO, OnlineDPO])
def test_a_group_is_left_out_whole(kind: Any) -> None:
    options = {"group_size": 4} if kind is GRPO else {}
    if kind is OnlineDPO:
        model = OnlineDPO("LMPolicy", env_of(skipping()), language_model=tiny_language_model(), seed=0, device="cpu")
    else:
        model = small_agent(kind, env_of(skipping()), **options)
    row = learn(model, 1)[0]
    size = model.group_size
    assert 0 < len(model.rollout.episodes) < 16
    assert len(model.rollout.episodes) % size == 0
    assert all(not e.skipped for e in model.rollout.episodes)
    assert row["reward/left_out"] == 16 - len(model.rollout.episodes) > row["reward/skipped"] > 0


def test_nothing_is_learned_where_everything_failed() -> None:
    def dead(prompts: list[str], responses: list[str]) -> list[float]:
        raise ConnectionError("refused")

    agent = small_agent(PPO, env_of(SkipOnError(dead, most=40)))
    before = weights(agent)
    rows = learn(agent, 1)
    assert agent.iteration == 1
    assert rows[0]["reward/skipped"] == rows[0]["reward/skipped_dead"] == 16
    assert "objective/scores" not in rows[0]
    assert_same_weights(before, weights(agent))
    with pytest.raises(RewardError, match="40 samples in a row"):
        learn(agent, 1000)


def test_best_of_n_chooses_among_those_with_a_score() -> None:
    model = tiny_language_model(scale=3.0)
    limits = Limits(0, (1,), 0, 3)
    best = best_of_n(model, ["a", "c"], skipping(), 64, limits)
    assert all("b" not in g.text for g, _ in best)
    with pytest.raises(RewardError, match="on all 2 responses"):
        best_of_n(model, ["a"], SkipOnError(lambda prompts, responses: [None] * len(responses)), 2, limits)


def test_a_simulated_rater_skips() -> None:
    rater = SimulatedRater(skipping())
    queries = [Query(prompt="p", responses=("aa", "")), Query(prompt="p", responses=("a", "b"))]
    judged = rater.collect(rater.submit(queries))
    assert [judgement.skipped for judgement in judged] == [False, True]


def test_a_whole_run(tmp_path: Path) -> None:
    """A gold reward that fails now and then: labels are skipped, episodes left out, and the evaluation says of how many."""
    (tmp_path / "often.py").write_text(
        "def often(prompts, responses):\n"
        "    assert not any('e' in r[:9] for r in responses), 'an e so early'\n"
        "    return [len(r) for r in responses]\n"
    )
    reward = f"{tmp_path}/often.py:often"
    model = save_tiny_model(tmp_path / "model")
    lines: list[str] = []
    for enabled in (True, False):
        out = tmp_path / str(enabled)
        settings = tiny_settings(
            model, task={"reward": reward, "on_error": "skip"}, reward_model={"enabled": enabled}, evaluation={"prompts": 30},
            sampling={"prompts": 40},
        )  # fmt: skip
        progress = Progress()
        progress.say = lines.append  # type: ignore[method-assign]
        run_loop(build(settings), out, progress=progress)
        with (out / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        skipped = sum(float(row["reward/skipped"]) for row in rows)
        assert 0 < skipped < 8 * len(rows)
        assert any("left out: reward failed" in line for line in lines)
        evaluation = json.loads((out / "evaluation.json").read_text())
        assert evaluation["n"] + evaluation["skipped"] == len(evaluation["pairs"]) == 30
        assert evaluation["skipped"] > 0
        left_out = [p for p in evaluation["pairs"] if None in (p["gold_before"], p["gold_after"])]
        assert len(left_out) == evaluation["skipped"]
        assert (out / "report.html").exists()
