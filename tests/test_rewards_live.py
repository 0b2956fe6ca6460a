"""Live scores: each response is asked about once, waited for, kept, and averaged; what is not rated is told or replaced."""

from __future__ import annotations

import doctest
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task
from waiting import LONG

import rlhf_gym.raters.as_reward
from rlhf_gym.agents import REINFORCE
from rlhf_gym.envs import make_sb3_env
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.feedback import FeedbackStore
from rlhf_gym.feedback.queries import Judgement, Query
from rlhf_gym.raters import SimulatedRater
from rlhf_gym.raters.as_reward import RaterReward
from rlhf_gym.raters.base import RaterStoppedError, Ticket
from rlhf_gym.raters.keyboard import Keyboard
from rlhf_gym.raters.terminal import TerminalRater
from rlhf_gym.rewards import score


class Person:
    """Rates by a table, some looks after being asked; counts what it is asked."""

    name = "person"

    def __init__(self, ratings: dict[str, float | None], looks: int = 1) -> None:
        self.ratings, self.looks = ratings, looks
        self.asked: list[Query] = []

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        self.asked += queries
        return [Ticket(query.id, self.name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        self.looks -= 1
        if self.looks >= 0:
            return []
        by_id = {query.id: query for query in self.asked}
        return [self._judge(by_id[t.query_id]) for t in tickets if by_id[t.query_id].responses[0] in self.ratings]

    def _judge(self, query: Query) -> Judgement:
        value = self.ratings[query.responses[0]]
        answer = {"skipped": True} if value is None else {"ratings": {"overall": (value,), "kind": (1.0,)}}
        return Judgement(query_id=query.id, rater=self.name, **answer)  # type: ignore[arg-type]


class Script(Keyboard):
    """Keys pressed one after the other."""

    def __init__(self, keys: str) -> None:
        self.keys = list(keys)

    def read(self) -> str:
        return self.keys.pop(0)

    def discard(self) -> None:
        pass


def test_its_example() -> None:
    assert doctest.testmod(rlhf_gym.raters.as_reward).failed == 0


def test_waits_for_everybody_and_asks_about_each_response_once() -> None:
    person = Person({"a": 3.0, "b": 7.0}, looks=3)
    reward = RaterReward(person)
    assert score(reward, ["p", "p", "p"], ["a", "b", "a"], {"topic": ["x", "y", "x"]}).values.tolist() == [3, 7, 3]
    assert score(reward, ["p"], ["b"]).values.tolist() == [7]
    assert [(q.query_type, q.responses) for q in person.asked] == [("rating", ("a",)), ("rating", ("b",))]
    assert person.asked[1].columns == {"topic": "y"}
    assert score(RaterReward(person, attribute="kind"), ["p"], ["a"]).values.tolist() == [1]


def test_a_resumed_run_asks_nothing_twice(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        assert RaterReward(Person({"a": 3.0}), store)(["p"], ["a"]) == [3.0]
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        again = Person({"b": 1.0})
        assert RaterReward(again, store)(["p", "p"], ["a", "b"]) == [3.0, 1.0]
        assert [q.responses for q in again.asked] == [("b",)]


def test_several_judgements_are_averaged_and_a_correction_replaces(tmp_path: Path) -> None:
    query = Query(prompt="p", responses=("a",), query_type="rating", round=0)
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        store.add_queries([query])
        first = Judgement(query_id=query.id, rater="x/1", ratings={"overall": (9.0,)})
        second = Judgement(query_id=query.id, rater="x/2", ratings={"overall": (4.0,)})
        better = Judgement(query_id=query.id, rater="x/1", ratings={"overall": (2.0,)}, supersedes=first.id)
        store.add_judgements([first, second, better])
        assert RaterReward(Person({}), store)(["p"], ["a"]) == [3.0]


def test_what_is_not_rated_is_told_or_replaced() -> None:
    person = Person({"a": 3.0, "s": None}, looks=0)
    with pytest.raises(RewardError, match=r"sample 1 was not rated within 0\.05 seconds by rater 'person'"):
        score(RaterReward(person, timeout=0.05), ["p", "p"], ["a", "late"])
    with pytest.raises(RewardError, match="sample 0 was skipped"):
        score(RaterReward(person), ["p"], ["s"])
    patient = RaterReward(person, timeout=0.05, otherwise=-1.0)
    assert score(patient, ["p"] * 3, ["a", "late", "s"]).values.tolist() == [3, -1, -1]
    with pytest.raises(RewardError, match=r"wants ratings of 'humour'; rater 'person' gave 'overall', 'kind'"):
        score(RaterReward(person, attribute="humour"), ["p"], ["a"])
    with pytest.raises(ConfigError, match="timeout"):
        RaterReward(person, timeout=0)
    with pytest.raises(ConfigError, match="otherwise"):
        RaterReward(person, otherwise=float("nan"))


def test_people_on_the_rating_page_are_a_reward(tmp_path: Path) -> None:
    """The page serves the store, the reward waits in another thread, and whoever is asked gives stars by a plain form."""
    pytest.importorskip("fastapi")
    from web_study import answer, joined, study

    from rlhf_gym.web.page_rater import WebRater

    texts = ["response of two", "response of three", "response of four"]
    with study(tmp_path, []) as found:
        reward = RaterReward(WebRater(found.store), found.store, timeout=LONG)
        with ThreadPoolExecutor(1) as pool:
            scores = pool.submit(score, reward, ["p"] * 3, texts)
            somebody = joined(found)
            for _ in texts:
                while "rate-0-overall" not in (page := somebody.get("/rate").text):
                    assert not scores.done()
                    time.sleep(0.05)
                (shown,) = [
                    text for text in texts if text in page.partition("</article>")[0]
                ]  # the next ones stand behind it
                assert answer(somebody, "rating", **{"rate-0-overall": str(2 + texts.index(shown))}).status_code in (
                    200,
                    303,
                )
            assert scores.result(LONG).values.tolist() == [2, 3, 4]
        # Asked once ever; what nobody rates in time is an error, or a score that was stated.
        hurried = RaterReward(WebRater(found.store), found.store, timeout=0.2)
        assert score(hurried, ["p"] * 2, [texts[1], texts[0]]).values.tolist() == [3, 2]
        with pytest.raises(RewardError, match=r"sample 1 was not rated within 0\.2 seconds by rater 'web'"):
            score(hurried, ["p"] * 2, [texts[1], "new"])
        stated = RaterReward(WebRater(found.store), found.store, timeout=0.2, otherwise=2.5)
        assert score(stated, ["p"] * 2, [texts[1], "new"]).values.tolist() == [3, 2.5]


def test_a_person_at_the_terminal_who_stops_loses_nothing(tmp_path: Path) -> None:
    with FeedbackStore(tmp_path / "f.sqlite") as store:
        rater = TerminalRater(console=Console(quiet=True), keyboard=Script("7q"))
        with pytest.raises(RaterStoppedError):
            RaterReward(rater, store)(["p", "p"], ["a", "b"])
        rest = TerminalRater(console=Console(quiet=True), keyboard=Script("3\n"))
        assert RaterReward(rest, store)(["p", "p"], ["a", "b"]) == [7.0, 3.0]


def test_an_agent_trains_on_ratings() -> None:
    rater = SimulatedRater(lambda prompts, responses: [r.count("a") for r in responses], beta=float("inf"))
    env = make_sb3_env(4, task=letter_task(), tokenizer=LetterTokenizer(), reward=RaterReward(rater), seed=0)
    agent = REINFORCE("LMPolicy", env, language_model=tiny_language_model(), seed=0, device="cpu")
    agent.learn(16)
    assert agent.rollout is not None
    assert {"rating"} == set(agent.rollout.episodes[0].info["reward_terms"])
