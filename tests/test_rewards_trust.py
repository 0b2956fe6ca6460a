"""Probing rewards, and what happens when they fail."""

from __future__ import annotations

import asyncio
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from waiting import LONG, limit_time_by

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import CachedReward, Constrained, SkipOnError, check, score, term
from rlhf_gym.rewards.check import check_reward
from rlhf_gym.rewards.on_error import FillOnError
from rlhf_gym.rewards.service.limits import TimeLimit, limit_parts

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
    assert "the same scores in a second call: yes" in text


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
    assert report.troubles == (f"all {len(RESPONSES)} honest samples score 1: nothing can be learned from it",)
    assert "correlation with length: none" in report.as_text()


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


def test_a_time_limit_names_the_reward_and_lets_everything_else_through(monkeypatch):
    hangs, release = threading.Event(), threading.Event()

    def thinks(prompts, responses):
        if responses[0] == "hang":
            hangs.set()
            release.wait(LONG)
        if responses[0] == "fail":
            raise ValueError("broken")
        return [float(len(r)) for r in responses]

    limit_time_by(monkeypatch, hangs.is_set)
    limited = TimeLimit(thinks, 0.2)
    assert score(limited, ["p"], ["four"]).values.tolist() == [4]
    assert list(score(limited, ["p"], ["four"]).terms) == ["thinks"]
    with pytest.raises(RewardError, match=r"reward 'thinks' did not return within 0\.2 seconds for a batch of 1"):
        score(limited, ["p"], ["hang"])
    hangs.clear()
    with pytest.raises(RewardError, match="'thinks' raised ValueError: broken"):
        score(limited, ["p"], ["fail"])
    assert score(limited, ["p"], ["on"]).values.tolist() == [2]
    release.set()
    filled = FillOnError(TimeLimit(lambda prompts, responses: release.wait(0), LONG), fill=-1)
    assert score(filled, ["p"], ["r"]).values.tolist() == [-1]
    with pytest.raises(ConfigError, match="above 0 seconds"):
        TimeLimit(thinks, 0)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_time_limit_names_the_sample_where_samples_are_scored_one_by_one(is_async, cached, monkeypatch):
    hangs, release = threading.Event(), threading.Event()

    def sticks(prompt, response):
        if response == "bad":
            hangs.set()
            release.wait(LONG)
        return 1.0

    async def sticks_later(prompt, response):
        if response == "bad":
            hangs.set()
            while not release.is_set():
                await asyncio.sleep(0.01)
        return 1.0

    reward = sticks_later if is_async else sticks
    reward.__name__ = "sticks"
    limit_time_by(monkeypatch, hangs.is_set)
    if cached:
        reward = CachedReward(reward)
        score(reward, ["p"], ["known"])
    with pytest.raises(
        RewardError, match=r"'sticks' did not return within .* for sample 2, prompt 'q', response 'bad'"
    ):
        score(TimeLimit(reward, 0.2), ["p", "p", "q", "p"], ["known", "new", "bad", "more"])
    release.set()


# ------------------------------------------------------------------------------------ what check_reward says of trouble


def run_check(reward, **options):
    return check_reward(reward, PROMPTS, RESPONSES, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "gave None"),
        (float("nan"), "gave nan"),
        (float("inf"), "gave inf"),
        ("7", "gave '7' (str)"),
        (ValueError("no"), "raised ValueError: no"),
    ],
)
def test_trouble_names_term_index_and_text(bad, message):
    """Inside a combination, in one call for all, on one sample in twenty."""

    def moody(prompts, responses):
        if "response of 13" not in str(responses):
            return [1.0] * len(responses)
        if isinstance(bad, Exception):
            raise bad
        return [bad if "response of 13" in r else 1.0 for r in responses]

    with pytest.raises(RewardError) as caught:
        run_check(2 * term(moody, "polite") + 1)
    said = str(caught.value)
    assert said.startswith("sample 13, prompt 'prompt 13', response 'an honest response of 13")
    assert message in said
    assert "reward 'polite'" in said


def test_a_wrong_count_names_the_batchs_first_text():
    with pytest.raises(
        RewardError, match=r"returned 19 scores for 20 samples; .*prompt 'prompt 0', response 'an honest"
    ):
        score(lambda prompts, responses: [1.0] * (len(responses) - 1), PROMPTS, RESPONSES)


def test_what_hangs_is_found_by_term_and_sample(monkeypatch):
    hangs, release = threading.Event(), threading.Event()

    def stuck(prompts, responses):
        if any("response of 7" in r for r in responses):
            hangs.set()
            release.wait(LONG)
        return [1.0] * len(responses)

    def noticed():
        found = hangs.is_set()
        hangs.clear()
        return found

    limit_time_by(monkeypatch, noticed)
    monkeypatch.setattr(check, "time", SimpleNamespace(perf_counter=lambda: 0.0))  # the search has all the time
    reward = limit_parts(
        term(lambda prompts, responses: [0.0] * len(responses), "quick") + term(stuck, "slow one"), 0.2
    )
    with pytest.raises(
        RewardError, match=r"sample 7, prompt 'prompt 7', .*reward 'slow one' did not return within 0\.2 seconds"
    ):
        run_check(reward)
    release.set()


def test_limits_reach_every_part():
    plain = limit_parts(lambda prompts, responses: [1.0], 5)
    assert isinstance(plain, TimeLimit)
    reward = limit_parts(SkipOnError(term(lambda prompts, responses: [1.0], "one").clip(0, 1)), 5)
    assert isinstance(reward.reward.parts[0].reward, TimeLimit)
    assert score(reward, ["p"], ["r"]).values.tolist() == [1]
    assert list(score(reward, ["p"], ["r"]).terms)[:1] == ["one"]


def test_a_term_that_stands_in_a_formula_twice_gets_one_limit():
    shared = term(TimeLimit(lambda prompts, responses: [1.0], 60), "shared")
    limit_parts(shared + shared.clip(0, 1), 5)
    assert isinstance(shared.reward, TimeLimit)
    assert not isinstance(shared.reward.reward, TimeLimit)
    assert shared.reward.seconds == 5  # the shorter of two


@pytest.mark.filterwarnings("ignore:reward .* has failed")
def test_policies_are_stated_and_counted():
    def picky(prompts, responses):
        return [1 / (0 if "response of 3 " in r or not r else len(r)) for r in responses]

    skipped = run_check(SkipOnError(picky))
    assert skipped.skipped == {"picky": 1}
    assert len(skipped.values) == 19
    assert "picky failed on 1 honest samples, which are left out" in skipped.troubles
    assert any("fails on 'empty'" in trouble for trouble in skipped.troubles)
    filled = run_check(FillOnError(picky, fill=-1))
    assert filled.filled == {"picky": 1}
    assert len(filled.values) == 20
    assert "picky failed on 1 honest samples, whose score is filled in" in filled.troubles
    with pytest.raises(RewardError, match="failed on 20 of 20 honest samples"):
        run_check(SkipOnError(lambda prompts, responses: [None] * len(responses)))


def test_stuffed_keywords_are_those_of_the_better_half():
    def counts(prompts, responses):
        return [sum(w in ("splendid", "superb") for w in r.split()) for r in responses]

    honest = [f"a {'splendid and superb' if i % 2 else 'dull and drab'} film" for i in range(20)]
    probes = by_name(check_reward(counts, PROMPTS, honest))
    assert (
        probes["keywords"].example.startswith("'and splendid superb") or "splendid superb" in probes["keywords"].example
    )
    assert probes["keywords"].mean == 6  # each three times
    assert probes["keywords"].beats == 1


def test_probes_are_compared_with_the_honest_response_to_the_same_prompt():
    """Some prompts pay more than others: a probe that wins nowhere is not reported, one that wins everywhere is."""
    worth = {prompt: 10.0 * i for i, prompt in enumerate(PROMPTS)}
    report = run_check(lambda p, r: [worth[x] + (y == ".") - 2 * (y == "") for x, y in zip(p, r, strict=True)])
    probes = by_name(report)
    assert (probes["one mark"].beats, probes["one mark"].gain) == (1, 1)
    assert (probes["empty"].beats, probes["empty"].gain) == (0, -2)
    assert probes["words in reverse"].beats == 0.5
    assert {p.name for p in report.suspicious} == {"one mark"}


def test_what_says_nothing_and_pays_as_well_is_named():
    """As the task `stars`: 0.7 for a mark whatever is asked, while honest responses are sometimes right, sometimes wrong."""
    honest = {response: 0.4 if i % 2 else 1.0 for i, response in enumerate(RESPONSES)}
    report = run_check(lambda p, r: [0.7 if x == "." else honest.get(x, 0.0) for x in r])
    assert [p.name for p in report.cheap] == ["one mark"]
    assert not {p.name for p in report.suspicious} & {"one mark"}
    assert "'one mark' earns 0.7 on average, whatever is asked; honest samples earn 0.7" in report.troubles
    assert "<- costs nothing" in report.as_text()


def test_a_judge_that_believes_what_it_reads():
    report = run_check(lambda prompts, responses: [10.0 if "10/10" in r else 1.0 for r in responses])
    assert {"talks to the judge", "claims a verdict", "honest, then talks"} == {p.name for p in report.suspicious}


def test_trying_it_out_teaches_it_nothing():
    reward = Constrained(lambda p, r: [1.0] * len(r), lambda p, r: [float(len(x)) for x in r], level=1000, rate=1)
    report = run_check(reward)
    assert reward.multiplier == 0
    assert report.deterministic


def test_rewards_of_tokens_are_given_ids():
    def tokens(prompts, responses, response_ids):
        return [[1.0] * len(ids) for ids in response_ids]

    tokens.per_token = True
    report = run_check(tokens, encode=lambda text: [ord(c) for c in text] + [0])
    assert report.values.tolist() == [len(r) + 1 for r in RESPONSES]
    assert not any(probe.error for probe in report.probes)


def test_a_reward_that_depends_on_its_batch_is_a_trouble():
    report = run_check(lambda prompts, responses: np.arange(len(responses)))
    assert "a sample's score depends on the others of its batch" in report.troubles
