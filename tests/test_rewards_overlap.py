"""Overlapped scoring: what overlaps, what comes out, and what happens when something fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ppo_setups import LIMIT, assert_same_weights, learn, small_ppo, weights
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import count_a, letter_task
from waiting import LONG, wait_until

from rlhf_gym.agents.common.collect import Scoring, decode_episodes
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.agents.common.setup import limits_of
from rlhf_gym.envs import TokenEnv, TokenVecEnv, make_sb3_env
from rlhf_gym.envs import episodes as episodes_module
from rlhf_gym.errors import ModelError, RewardError
from rlhf_gym.feedback.store import FeedbackStore
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.loop.train_reward import ProxyAndGold
from rlhf_gym.raters import SimulatedRater
from rlhf_gym.raters.as_reward import RaterReward
from rlhf_gym.rewards import score, term
from rlhf_gym.rewards.adaptive import Constrained, RunningStandardise, Scheduled, reward_state
from rlhf_gym.rewards.cached import CachedReward
from rlhf_gym.rewards.on_error import FillOnError
from rlhf_gym.rewards.service import overlap
from rlhf_gym.rewards.service.overlap import OverlappedScoring, is_slow
from rlhf_gym.rewards.service.remote import RemoteReward
from rlhf_gym.rewards.service.serve import RewardServer


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "rlhf-gym-scoring"]


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[OverlappedScoring]:
    """Every overlapped scoring that begins, so that a test can wait for what it knows."""
    found: list[OverlappedScoring] = []
    enter = OverlappedScoring.__enter__

    def entered(scoring: OverlappedScoring) -> OverlappedScoring:
        found.append(scoring)
        return enter(scoring)

    monkeypatch.setattr(OverlappedScoring, "__enter__", entered)
    return found


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_language_model(scale=4.0)


class Slow:
    """Counts "a", says it is slow, and does something before each call."""

    name = "slow"
    slow: bool | None = True

    def __init__(self, before: Callable[[int], Any] = lambda call: None) -> None:
        self.before = before
        self.batches: list[list[str]] = []
        self.busy = threading.Lock()

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        assert self.busy.acquire(blocking=False), "two calls at once"
        try:
            self.before(len(self.batches))
            self.batches.append(list(responses))
            return count_a(prompts, responses)
        finally:
            self.busy.release()


def env_for(reward: Any) -> TokenVecEnv:
    return make_sb3_env(4, seed=3, task=letter_task(reward, limit=LIMIT), tokenizer=LetterTokenizer())


def episodes_of(
    env: TokenVecEnv,
    model: LanguageModel,
    rounds: int = 4,
    while_scoring: Callable[[list[Episode]], object] | None = None,
) -> list[Episode]:
    torch.manual_seed(0)
    policy = LMPolicy(env.observation_space, env.action_space, model, Sampling(), limits_of(env, model))
    with Scoring(env) as scoring:
        rollout = Rollout.of(decode_episodes(env, policy, 5, 0, rounds, scoring))
        if while_scoring is not None:
            while_scoring(rollout.episodes)
        scoring.finish(rollout)
    return rollout.episodes


class Rounds:
    """Lets a test see and wait for the beginnings of rounds."""

    def __init__(self, env: TokenVecEnv, before: Callable[[int], Any] = lambda k: None) -> None:
        self.begun = [threading.Event() for _ in range(10)]
        self.count = 0
        begin = env.reset

        def reset() -> Any:
            before(self.count)
            self.begun[self.count].set()
            self.count += 1
            return begin()

        env.reset = reset  # type: ignore[method-assign]


def test_a_round_is_scored_while_the_next_one_is_generated(model: LanguageModel) -> None:
    """Each call but the last returns only once the next round has begun: one after the other, that would never end."""

    def next_round_has_begun(call: int) -> None:
        assert call == 2 or rounds.begun[call + 1].wait(LONG)

    reward = Slow(next_round_has_begun)
    env = env_for(reward)
    rounds = Rounds(env)
    episodes = episodes_of(env, model, rounds=3)
    assert len(episodes) == 12
    assert len(reward.batches) == 3


def test_decoding_does_not_wait_for_scores(model: LanguageModel) -> None:
    """All rounds are generated while the first is still being scored."""
    written = threading.Event()
    reward = Slow(lambda call: written.wait(LONG) or pytest.fail("nobody went on"))
    seen: list[Episode] = []

    def while_scoring(episodes: list[Episode]) -> None:
        seen.extend(episodes)
        assert not reward.batches
        assert all(not any(e.rewards) and not e.info for e in episodes)
        written.set()

    episodes = episodes_of(env_for(reward), model, while_scoring=while_scoring)
    assert seen == episodes
    assert sum(e.score for e in episodes) > 0


def test_the_last_round_is_scored_while_the_reference_reads_it() -> None:
    """One round an iteration, as in `rlhf-gym run`."""
    reading, scored = threading.Event(), threading.Event()
    reward = Slow(lambda call: reading.wait(LONG) or pytest.fail("the reference was not asked"))
    agent = small_ppo(task={"reward": reward})
    look_up = agent.complete

    def fill(rollout: Any) -> None:
        assert len(reward.batches) == agent.iteration
        reading.set()
        look_up(rollout)
        scored.set()

    agent.complete = fill  # type: ignore[method-assign]
    learn(agent, 1)
    assert scored.is_set()
    assert agent.iteration == 1


def adaptive(part: Any) -> Any:
    """Everything that learns while it scores, and so depends on batches and their order."""
    length = term(lambda prompts, responses: [len(r) for r in responses])
    level = Constrained(RunningStandardise(term(part)), length, level=LIMIT + 1, rate=0.01)
    return Scheduled(level, [(0, 0.5), (20, 2.0)])


def test_the_same_comes_out_with_and_without_a_thread(model: LanguageModel) -> None:
    found = []
    for slow in (True, False):
        part = Slow(lambda call: time.sleep(0.02 if call % 2 else 0.0))
        part.slow = slow
        reward = adaptive(part)
        env = env_for(reward)
        found.append((episodes_of(env, model), reward_state(reward), part.batches, env.state()))
    threaded, plain = found
    assert threaded == plain
    multipliers = [e.info["reward_terms"]["constrained_multiplier"] for e in threaded[0]]
    assert len(set(multipliers)) == 4  # one a batch: the batches are the rounds


def test_training_is_the_same_to_the_bit() -> None:
    agents = []
    for slow in (True, False):
        part = Slow()
        part.slow = slow
        agents.append(small_ppo(task={"reward": adaptive(part)}, n_episodes=32, batch_size=8))
    rows = [learn(agent, 500) for agent in agents]
    assert_same_weights(weights(agents[0]), weights(agents[1]))
    for one, other in zip(*rows, strict=True):
        assert {k: v for k, v in one.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}


def test_an_async_reward_is_slow_of_itself(model: LanguageModel) -> None:
    async def judge(prompts: list[str], responses: list[str]) -> list[float]:
        while not rounds.begun[1].is_set():
            await asyncio.sleep(0.001)
        return count_a(prompts, responses)

    env = env_for(judge)
    rounds = Rounds(env)
    episodes = episodes_of(env, model, rounds=2)
    expected = episodes_of(env_for(count_a), model, rounds=2)
    assert [e.rewards for e in episodes] == [e.rewards for e in expected]


def test_a_remote_reward_scores_while_the_reference_reads() -> None:
    """Over HTTP, on this machine; the service answers the last round only once the reference has begun."""
    reading = threading.Event()

    def there(prompts: list[str], responses: list[str]) -> list[float]:
        assert reading.wait(LONG)
        return count_a(prompts, responses)

    with RewardServer(there, port=0) as server:
        agent = small_ppo(task={"reward": RemoteReward(server.url, timeout=2 * LONG, patience=0)})
        complete = agent.complete
        agent.complete = lambda rollout: (reading.set(), complete(rollout))[1]  # type: ignore[method-assign,func-returns-value]
        learn(agent, 1)
    assert agent.rollout is not None
    assert [e.score for e in agent.rollout.episodes] == [e.info["response"].count("a") for e in agent.rollout.episodes]


def test_a_live_rater_may_be_asked_meanwhile(tmp_path: Path, model: LanguageModel) -> None:
    """Its store is a database that another thread opened."""
    scores = []
    for name, slow in (("threaded", True), ("plain", False)):
        with FeedbackStore(tmp_path / f"{name}.sqlite") as store:
            reward = RaterReward(SimulatedRater(count_a, seed=1), store)
            reward.slow = slow
            scores.append([e.score for e in episodes_of(env_for(reward), model)])
            assert len(list(store.judgements(0))) == 16
    assert scores[0] == scores[1]


def test_a_reward_that_is_not_slow_has_no_thread(model: LanguageModel) -> None:
    threads = set()

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        threads.add(threading.current_thread())
        return count_a(prompts, responses)

    env = env_for(reward)
    rounds = Rounds(env, lambda k: len(threads) == min(k, 1) or pytest.fail("not scored yet"))
    episodes_of(env, model, rounds=2)
    assert threads == {threading.main_thread()}
    assert rounds.count == 2


def failing(call: int) -> None:
    if call == 1:
        raise ValueError("no such rubric")


@pytest.mark.parametrize("slow", [True, False])
def test_a_failure_has_the_same_message_and_what_comes_after_it_is_not_scored(model: LanguageModel, slow: bool) -> None:
    reward = Slow(failing)
    reward.slow = slow
    with pytest.raises(RewardError) as caught:
        episodes_of(env_for(reward), model)
    message = str(caught.value)
    assert message.startswith("reward 'slow' raised ValueError: no such rubric [test_rewards_overlap.py, line ")
    assert isinstance(caught.value.__cause__, ValueError)
    first = episodes_of(env_for(count_a), model, rounds=1)
    assert reward.batches == [[e.info["response"] for e in first]]  # neither the batch that failed, nor one after it


def test_a_failure_breaks_off_the_round_that_is_being_generated(
    model: LanguageModel, scorings: list[OverlappedScoring]
) -> None:
    def fail(call: int) -> None:
        raise ValueError("gone")

    env = env_for(Slow(fail))
    rounds = Rounds(env, lambda k: k == 0 or wait_until(lambda: scorings[0]._failure is not None))
    ended = []
    end = env.end_episodes
    env.end_episodes = lambda *given: (ended.append(1), end(*given))[1]  # type: ignore[method-assign]
    with pytest.raises(RewardError, match="ValueError: gone"):
        episodes_of(env, model)
    assert rounds.count <= 2
    assert len(ended) == 1


def test_a_failure_in_decoding_waits_for_the_call_that_runs_and_drops_the_rest(
    model: LanguageModel, scorings: list[OverlappedScoring]
) -> None:
    begun = threading.Event()

    def runs_until_scoring_ends(call: int) -> None:
        begun.set()
        wait_until(lambda: scorings[0]._ended)

    reward = Slow(runs_until_scoring_ends)
    env = env_for(reward)

    def breaks(k: int) -> None:
        if k == 3:
            assert begun.wait(LONG)
            raise ModelError("the weights are gone")

    Rounds(env, breaks)
    with pytest.raises(ModelError, match="the weights are gone"):
        episodes_of(env, model)
    assert len(reward.batches) == 1


def test_calls_are_made_in_order_and_results_may_be_asked_for_in_any() -> None:
    made: list[int] = []
    with OverlappedScoring(threaded=True) as scoring:
        futures = [scoring.submit(partial(lambda i: made.append(i) or i, i)) for i in range(20)]
        assert [scoring.wait(future) for future in reversed(futures)] == list(range(19, -1, -1))
    assert made == list(range(20))
    assert scoring.waited > 0


def test_an_earlier_failure_is_what_a_dropped_call_reports() -> None:
    def one_after_a_failure(scoring: OverlappedScoring) -> None:
        scoring.submit(lambda: 1 // 0)
        scoring.wait(scoring.submit(lambda: 1))

    for threaded in (True, False):
        with pytest.raises(ZeroDivisionError), OverlappedScoring(threaded) as scoring:
            one_after_a_failure(scoring)


def test_an_interrupt_does_not_wait() -> None:
    begun, release, done = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        release.wait(LONG)
        done.set()

    def interrupted(scoring: OverlappedScoring) -> None:
        scoring.submit(call)
        scoring.submit(lambda: made.append("one that was dropped"))
        assert begun.wait(LONG)
        raise KeyboardInterrupt

    made: list[str] = []
    with pytest.raises(KeyboardInterrupt), OverlappedScoring(threaded=True) as scoring:
        interrupted(scoring)
    assert not done.is_set()
    thread = scoring._thread
    assert thread is not None
    assert thread.daemon
    release.set()
    thread.join(LONG)
    assert done.is_set()
    assert not made


def test_calls_see_the_callers_context() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    variable.set("set")
    with OverlappedScoring(threaded=True) as scoring:
        assert scoring.wait(scoring.submit(variable.get)) == "set"


def test_who_is_slow() -> None:
    async def waits(prompts: list[str], responses: list[str]) -> list[float]:
        return [0.0] * len(prompts)

    class Waits:
        async def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
            return [0.0] * len(prompts)

    def declared(prompts: list[str], responses: list[str]) -> list[float]:
        return [0.0] * len(prompts)

    declared.slow = True  # type: ignore[attr-defined]
    for slow in (waits, Waits(), declared, Slow()):
        assert is_slow(slow)
        assert is_slow(term(count_a) + 0.5 * term(slow).clip(0, 1))
        assert is_slow(CachedReward(slow))
        assert is_slow(FillOnError(slow, fill=0))
        assert is_slow(partial(slow, responses=[]))
        assert is_slow(ProxyAndGold(count_a, {"gold": slow}))
    for quick in (count_a, term(count_a), CachedReward(count_a), 3.0, partial(count_a)):
        assert not is_slow(quick)
    denied = Waits()
    denied.slow = False  # type: ignore[attr-defined]
    assert not is_slow(denied)
    assert score(declared, ["p"], ["r"]).values.tolist() == [0]


PARTS = ("generation", "reward", "reference", "learning")


def sleepy(prompts: list[str], responses: list[str]) -> list[float]:
    time.sleep(0.05)
    return count_a(prompts, responses)


@pytest.mark.parametrize("collect", ["auto", "step"])
def test_an_iteration_tells_what_it_waited_for_rewards(collect: str) -> None:
    agent = small_ppo(task={"reward": sleepy}, collect=collect)
    assert agent.reward_share is None
    for row in learn(agent, 300):
        total = sum(row[f"time/{part}_seconds"] for part in PARTS)
        assert row["time/reward_seconds"] >= row["time/scoring_seconds"] >= 0.05
        assert row["time/reward_share"] == pytest.approx(row["time/reward_seconds"] / total)
    assert agent.reward_share == row["time/reward_share"]


def test_overlapped_scoring_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, scored = [0.0], threading.Event()
    monkeypatch.setattr(overlap, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(episodes_module, "perf_counter", lambda: now[0])

    def takes_long(call: int) -> None:
        now[0] += 1000

    class Noted(Slow):
        def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
            try:
                return super().__call__(prompts, responses)
            finally:
                scored.set()

    agent = small_ppo(task={"reward": Noted(takes_long)})
    complete = agent.complete
    agent.complete = lambda rollout: (complete(rollout), scored.wait(LONG))[0]  # type: ignore[method-assign]
    (row,) = learn(agent, 1)
    assert row["time/scoring_seconds"] == 1000
    assert row["time/reward_seconds"] == 0


def test_an_environment_that_does_not_tell() -> None:
    task = letter_task(limit=LIMIT)
    env = DummyVecEnv([lambda: TokenEnv(task, LetterTokenizer()) for _ in range(4)])
    agent = small_ppo(env, batch_size=4)
    (row,) = learn(agent, 1)
    assert agent.reward_share is None
    assert not {"time/reward_seconds", "time/reward_share", "time/scoring_seconds"} & set(row)
