"""Probing rewards, and what happens when they fail."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import score
from rlhf_gym.rewards.on_error import FillOnError
from rlhf_gym.rewards.probes import check_reward
from rlhf_gym.rewards.time_limit import TimeLimit

PROMPTS = [f"prompt {i}" for i in range(20)]
RESPONSES = [f"an honest response of {i} " + "and more " * (i % 5) for i in range(20)]


def by_name(report):
    return {p.name: p for p in report.probes}


def test_a_length_reward_is_found_out():
    report = check_reward(lambda p, r: [len(x.split()) for x in r], PROMPTS, RESPONSES)
    assert report.length_correlation == pytest.approx(1)
    assert report.deterministic
    assert report.order_free
    suspicious = {p.name for p in report.suspicious}
    assert {"very long", "best word, 50 times"} <= suspicious
    assert "empty" not in suspicious
    assert by_name(report)["empty"].beats == 0
    assert by_name(report)["empty"].mean == 0
    text = report.as_text()
    assert "<- pays" in text
    assert "same numbers twice: yes" in text


def test_a_reward_that_is_not_steady():
    rng = np.random.default_rng(0)
    report = check_reward(lambda p, r: rng.random(len(r)), PROMPTS, RESPONSES)
    assert not report.deterministic
    relative = check_reward(lambda p, r: np.arange(len(r)), PROMPTS, RESPONSES)
    assert relative.deterministic
    assert not relative.order_free


def test_a_failing_probe_is_reported():
    def picky(prompt, response):
        return 1 / len(response.split())

    report = check_reward(picky, PROMPTS, RESPONSES)
    assert "ZeroDivisionError" in by_name(report)["empty"].error
    assert math.isnan(by_name(report)["empty"].mean)
    assert "failed: reward 'picky' raised" in report.as_text()


def test_a_constant_reward():
    report = check_reward(lambda p, r: [1.0] * len(r), PROMPTS, RESPONSES)
    assert math.isnan(report.length_correlation)
    assert not report.suspicious
    assert {p.beats for p in report.probes} == {0.5}


def test_too_few_samples_or_a_reward_that_fails():
    with pytest.raises(RewardError, match="at least 2 samples"):
        check_reward(lambda p, r: [1.0], ["p"], ["r"])
    with pytest.raises(RewardError, match="raised ValueError"):
        check_reward(lambda p, r: [float("x")], PROMPTS, RESPONSES)


def test_fill_on_error():
    seen = []

    def picky(prompts, responses):
        return [1 / len(r) for r in responses]

    reward = FillOnError(picky, fill=-1, on_failure=seen.append)
    scored = score(reward, ["p"] * 3, ["a", "", "bb"])
    assert scored.values.tolist() == [1, -1, 0.5]
    assert scored.terms["picky_failed"].tolist() == [0, 1, 0]
    assert scored.terms["picky"].tolist() == [1, -1, 0.5]
    assert reward.failures == len(seen) == 1
    assert "ZeroDivisionError" in str(seen[0])
    whole = score(reward, ["p"], ["bb"])
    assert whole.terms["picky_failed"].tolist() == [0]
    assert list(whole.terms) == list(scored.terms)


def test_fill_gives_up_on_a_dead_service():
    def dead(prompts, responses):
        raise ConnectionError("refused")

    reward = FillOnError(dead, fill=0, most=5)
    assert score(reward, ["p"] * 4, ["r"] * 4).values.tolist() == [0] * 4
    with pytest.raises(RewardError, match=r"5 samples in a row.*refused"):
        score(reward, ["p"] * 4, ["r"] * 4)
    with pytest.raises(ConfigError):
        FillOnError(dead, fill=math.nan)


def test_a_time_limit_names_the_reward_and_lets_everything_else_through():
    release = threading.Event()

    def thinks(prompts, responses):
        if responses[0] == "hang":
            release.wait(60)
        if responses[0] == "fail":
            raise ValueError("broken")
        return [float(len(r)) for r in responses]

    limited = TimeLimit(thinks, 0.2)
    assert score(limited, ["p"], ["four"]).values.tolist() == [4]
    assert list(score(limited, ["p"], ["four"]).terms) == ["thinks"]
    with pytest.raises(RewardError, match=r"reward 'thinks' did not return within 0\.2 seconds for a batch of 1"):
        score(limited, ["p"], ["hang"])
    with pytest.raises(RewardError, match="'thinks' raised ValueError: broken"):
        score(limited, ["p"], ["fail"])
    assert score(limited, ["p"], ["on"]).values.tolist() == [2]
    release.set()
    filled = FillOnError(TimeLimit(lambda prompts, responses: release.wait(0), 5), fill=-1)
    assert score(filled, ["p"], ["r"]).values.tolist() == [-1]
    with pytest.raises(ConfigError, match="above 0 seconds"):
        TimeLimit(thinks, 0)
