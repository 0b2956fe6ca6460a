"""The simulated rater: determinism, faults, failures, pools, presets, and asking with a store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.raters import Rater, RaterError, RaterStoppedError, SimulatedRater, Ticket, ask
from rlhf_gym.raters.pool import RaterPool
from rlhf_gym.raters.presets import PRESETS, simulated_rater

INF = math.inf


def as_number(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response) for response in responses]


def words(prompts: list[str], responses: list[str]) -> list[float]:
    return [0.0 for _ in responses]


def unanswered(store: FeedbackStore) -> list[Query]:
    """The stored queries that nobody has judged."""
    queries = store.queries()
    judged = store.raters(query.id for query in queries)
    return [query for query in queries if query.id not in judged]


def pairs(count: int, responses: tuple[str, ...] = ("1", "0"), query_type: Any = "pair") -> list[Query]:
    return [Query(prompt="p", responses=responses, query_type=query_type, index=i) for i in range(count)]


def answers(rater: Rater, queries: Sequence[Query]) -> list[Judgement]:
    return rater.collect(rater.submit(queries))


def said(judgements: Sequence[Judgement]) -> dict[str, tuple[object, ...]]:
    return {j.query_id: (j.choice, j.tie, j.skipped, j.strength, j.order_shown, j.id) for j in judgements}


def test_an_answer_depends_on_seed_name_and_query_only() -> None:
    queries = pairs(100)
    knobs: dict[str, Any] = {"error_rate": 0.3, "skip_rate": 0.1, "davidson_nu": 1.0}
    whole = said(answers(SimulatedRater(as_number, **knobs), queries))
    backwards = SimulatedRater(as_number, batch_size=7, **knobs)
    assert said(answers(backwards, queries[50:][::-1])) | said(answers(backwards, queries[:50])) == whole
    assert said(answers(SimulatedRater(as_number, seed=1, **knobs), queries)) != whole
    by_bob = said(answers(SimulatedRater(as_number, name="bob", **knobs), queries))
    assert {k: v[:-1] for k, v in by_bob.items()} != {k: v[:-1] for k, v in whole.items()}


def test_answers_are_pinned() -> None:
    # A resumed run must get the answers it would have got, also after an upgrade.
    judgements = answers(SimulatedRater(as_number, seed=3), pairs(12, ("0.5", "0")))
    assert "".join(str(j.choice) for j in judgements) == "010000100001"


def test_rational_rater_is_right_and_fair_between_equals() -> None:
    assert {j.choice for j in answers(SimulatedRater(as_number, beta=INF), pairs(50, ("0", "1e-9")))} == {1}
    even = Counter(j.choice for j in answers(SimulatedRater(as_number, beta=INF), pairs(1000, ("1", "1"))))
    assert 400 < even[0] < 600
    best_first = answers(SimulatedRater(as_number, beta=INF), pairs(20, ("0", "2", "-1", "1"), "ranking"))
    assert {j.ranking for j in best_first} == {((1,), (3,), (0,), (2,))}
    rated = answers(SimulatedRater(as_number, beta=INF), pairs(20, ("-9", "-1", "0", "1", "9"), "rating"))
    assert [j.ratings for j in rated] == [{"overall": (1.0, 2.0, 3.0, 4.0, 5.0)}] * 20


def test_thresholds() -> None:
    # Differences below the threshold are ties, at the threshold they are not; errors do not undo a tie.
    knobs: dict[str, Any] = {"beta": INF, "tie_threshold": 0.5}
    assert all(j.tie for j in answers(SimulatedRater(as_number, error_rate=1.0, **knobs), pairs(20, ("0.49", "0"))))
    assert not any(j.tie for j in answers(SimulatedRater(as_number, **knobs), pairs(20, ("0.5", "0"))))
    ranked = answers(SimulatedRater(as_number, **knobs), pairs(5, ("0", "0.3", "2", "1.6"), "ranking"))
    assert {j.ranking for j in ranked} == {((2, 3), (0, 1))}
    # In a ranking they hold as well under noise that puts others between the two, under errors, and by way of a third.
    rewards = (0.0, 1.1, 0.45, 2.0, 0.9, 4.0)  # 0, 2, 4, 1 and nothing else are tied
    noisy = SimulatedRater(as_number, beta=0.3, error_rate=0.3, tie_threshold=0.5)
    ranked = answers(noisy, pairs(60, tuple(map(str, rewards)), "ranking"))
    assert {frozenset(j.ranking or ()) for j in ranked} == {frozenset({(0, 1, 2, 4), (3,), (5,)})}
    assert len({j.ranking for j in ranked}) == 6  # any of them may come first, by noise or in error
    skips = answers(SimulatedRater(as_number, beta=INF, skip_below=-1.0), pairs(5, ("-1.1", "-3")))
    assert all(j.skipped for j in skips)
    assert not any(j.skipped for j in answers(SimulatedRater(as_number, skip_below=-1.0), pairs(5, ("-1", "-3"))))


def test_skip_rate() -> None:
    skipped = sum(j.skipped for j in answers(SimulatedRater(as_number, skip_rate=0.25), pairs(2000)))
    assert abs(skipped - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_position_bias_and_the_order_shown() -> None:
    judgements = answers(SimulatedRater(as_number, position_bias=1.5), pairs(2000, ("0", "0")))
    first = sum(j.choice == j.order_shown[0] for j in judgements)
    expected = 2000 / (1 + math.exp(-1.5))
    assert abs(first - expected) < 5 * math.sqrt(2000 * 0.25)
    assert abs(sum(j.order_shown == (0, 1) for j in judgements) - 1000) < 5 * math.sqrt(500)
    # In a ranking it falls evenly from the first shown to the last.
    ranked = answers(SimulatedRater(as_number, beta=INF, position_bias=1.0), pairs(20, ("0",) * 4, "ranking"))
    assert all(j.ranking == tuple((i,) for i in j.order_shown) for j in ranked)


def test_length_bias_counts_words() -> None:
    queries = pairs(2000, ("three short words", "one"))
    longer = sum(j.choice == 0 for j in answers(SimulatedRater(words, length_bias=0.4), queries))
    assert abs(longer - 2000 / (1 + math.exp(-0.8))) < 5 * math.sqrt(2000 * 0.25)


def test_lapses_answer_without_looking() -> None:
    spammer = SimulatedRater(as_number, beta=INF, lapse_rate=1.0, skip_rate=0.5, tie_threshold=9.0)
    assert all(j.choice == j.order_shown[0] for j in answers(spammer, pairs(20)))
    assert {j.ratings["overall"] for j in answers(spammer, pairs(5, query_type="rating")) if j.ratings} == {(3.0, 3.0)}


def test_fatigue_grows_with_the_place_in_the_round() -> None:
    judgements = answers(SimulatedRater(as_number, beta=INF, fatigue=0.05), pairs(2000))
    wrong = [j.choice == 1 for j in judgements]
    # The error rate rises from 0 to 1 at index 2000; half of the blind answers are wrong.
    assert sum(wrong[:200]) < 20
    assert abs(sum(wrong[1000:]) - 1000 * 0.75 / 2) < 5 * math.sqrt(1000 * 0.25)


def test_turning_one_knob_leaves_other_chances_alone() -> None:
    plain = answers(SimulatedRater(as_number), pairs(300))
    skipping = answers(SimulatedRater(as_number, skip_rate=0.3), pairs(300))
    assert all(b.skipped or a.choice == b.choice for a, b in zip(plain, skipping, strict=True))
    assert [j.order_shown for j in plain] == [j.order_shown for j in skipping]


def test_the_reward_gets_columns() -> None:
    def label(prompts: list[str], responses: list[str], wanted: list[str | None]) -> list[float]:
        return [float(response == want) for response, want in zip(responses, wanted, strict=True)]

    queries = [
        Query(prompt="p", responses=("x", "y"), columns={"wanted": "y", "unused": 1}),
        Query(prompt="q", responses=("x", "y"), columns={"wanted": "x"}),
        Query(prompt="r", responses=("x", "y")),
    ]
    judgements = answers(SimulatedRater(label, beta=INF, tie_threshold=0.5), queries)
    assert [(j.choice, j.tie) for j in judgements] == [(1, False), (0, False), (None, True)]


@pytest.mark.parametrize(
    ("knobs", "problem"),
    [
        ({"betta": 1.0}, "no 'betta'; did you mean 'beta'"),
        ({"beta": -1.0}, "beta must be a number of 0 or more, got -1"),
        ({"beta": math.nan}, "beta must be"),
        ({"error_rate": 1.5}, r"error_rate must lie in 0\.\.1, got 1\.5"),
        ({"rao_kupper_theta": 0.5}, "rao_kupper_theta must be a number of 1 or more"),
        ({"davidson_nu": INF}, "davidson_nu must be a number of 0 or more, got inf"),
        ({"davidson_nu": 1.0, "rao_kupper_theta": 2.0}, "choose one model of ties"),
        ({"length_bias": INF}, "length_bias must be a finite number"),
        ({"rating_cuts": (1.0, 0.0)}, "rating_cuts must be ascending"),
        ({"noise": "pink"}, "noise must be gumbel or normal, got 'pink'"),
        ({"seed": -1}, "a seed of 0 or more"),
    ],
)
def test_settings_that_mean_nothing(knobs: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SimulatedRater(as_number, **knobs)


def test_davidson_does_not_rank() -> None:
    with pytest.raises(FeedbackError, match="Davidson's ties are for pairs"):
        answers(SimulatedRater(as_number, davidson_nu=1.0), pairs(1, query_type="ranking"))


def test_tickets_must_be_open() -> None:
    rater = SimulatedRater(as_number)
    with pytest.raises(FeedbackError, match="submit it first"):
        rater.collect([Ticket("unknown", "simulated")])
    tickets = rater.submit(pairs(1))
    rater.collect(tickets)
    with pytest.raises(FeedbackError, match="collect it once"):
        rater.collect(tickets)


class Breaking:
    """Fails on one response until it is mended."""

    name = "breaking"
    broken = True

    def __call__(self, prompts: list[str], responses: list[str]) -> list[float]:
        if self.broken and "5" in responses:
            raise ValueError("no connection")
        return as_number(prompts, responses)


def test_a_failing_reward_names_the_query_and_loses_nothing(tmp_path: Path) -> None:
    queries = [Query(prompt="p", responses=(str(i), "-1"), index=i) for i in range(8)]
    reward = Breaking()
    rater = SimulatedRater(reward, beta=INF, batch_size=4)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        with pytest.raises(RaterError, match=rf"query {queries[5].id} \(round 1, index 5\).*no connection") as caught:
            ask(rater, queries, store)
        assert [j.query_id for j in caught.value.judgements] == [q.id for q in queries[:5]]
        assert unanswered(store) == queries[5:]
        reward.broken = False
        assert ask(rater, queries, store) == 3  # mended: only what is missing is asked
        assert unanswered(store) == []
        assert store.count().judgements == 8


def test_ask_stores_reports_and_resumes(tmp_path: Path) -> None:
    queries, heard = pairs(10), list[tuple[int, int]]()
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        ask(SimulatedRater(as_number), queries[:4], store)
        assert ask(SimulatedRater(as_number), queries, store, on_progress=lambda *n: heard.append(n)) == 6
        assert (heard[0], heard[-1]) == ((4, 10), (10, 10))
        assert ask(SimulatedRater(as_number), queries, store) == 0
        # Somebody else has not answered yet, and has a say of their own.
        assert ask(SimulatedRater(as_number, name="bob"), queries, store) == 10
        assert store.count().raters == 2


class Slow:
    """Answers one query a call, and now and then none; corrects its first answer; stops when told to."""

    name = "slow"

    def __init__(self, stop_after: int) -> None:
        self.given: list[Judgement] = []
        self.calls = 0
        self.stop_after = stop_after

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        return [Ticket(query.id, self.name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        self.calls += 1
        if self.calls % 3 == 0:
            return []
        if len(self.given) == self.stop_after:
            raise RaterStoppedError("gone home", self.given)
        ticket = tickets[0]
        self.given.append(Judgement(query_id=ticket.query_id, rater=f"{self.name}/ann", choice=0))
        if len(self.given) == 1:
            first = self.given[0]
            self.given.append(Judgement(query_id=first.query_id, rater=first.rater, choice=1, supersedes=first.id))
        return self.given  # all over again, each time


def test_ask_waits_for_raters_who_take_their_time(tmp_path: Path) -> None:
    assert isinstance(Slow(1), Rater)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        with pytest.raises(RaterStoppedError, match="gone home"):
            ask(Slow(stop_after=4), pairs(6), store)
        assert (store.count().judgements, store.count().current, len(unanswered(store))) == (4, 3, 3)
        assert ask(Slow(stop_after=99), pairs(6), store) == 4  # three answers and one correction
        assert (unanswered(store), store.count().current) == ([], 6)


def pool(size: int = 5, **settings: Any) -> RaterPool:
    members = [SimulatedRater(as_number, name=f"crowd/{i}", batch_size=3) for i in range(size)]
    return RaterPool("crowd", members, **settings)


def test_pool_shares_out_and_overlaps(tmp_path: Path) -> None:
    queries = pairs(300)
    once = Counter(name for query in queries for name in pool().assigned(query))
    assert sum(once.values()) == 300
    assert all(abs(count - 60) < 5 * math.sqrt(48) for count in once.values())
    judgements = answers(pool(overlap=2), queries)
    assert Counter(Counter(j.query_id for j in judgements).values()) == {2: 300}
    assert len({(j.query_id, j.rater) for j in judgements}) == 600
    heavy = Counter(name for query in queries for name in pool(2, weights=[9, 1]).assigned(query))
    assert abs(heavy["crowd/0"] - 270) < 5 * math.sqrt(27)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        store.add_queries(queries[:3])
        store.add_judgements(
            j for j in judgements if j.query_id == queries[0].id and j.rater == pool().assigned(queries[0])[0]
        )
        ask(pool(overlap=2), queries[:3], store)
        assert {len([j for j in store.judgements() if j.query_id == q.id]) for q in queries[:3]} == {2}
        assert ask(pool(overlap=2), queries[:3], store) == 0


def test_pool_settings() -> None:
    with pytest.raises(ConfigError, match=r"overlap must lie in 1\.\.5"):
        pool(overlap=6)
    with pytest.raises(ConfigError, match="different names that start with 'x/'"):
        RaterPool("x", [SimulatedRater(as_number, name="y/1")])
    with pytest.raises(ConfigError, match="weights must be 5 numbers"):
        pool(weights=[1.0])


def test_pool_keeps_what_others_answered_when_a_member_fails(tmp_path: Path) -> None:
    members = [SimulatedRater(as_number, name="mix/good"), SimulatedRater(Breaking(), name="mix/bad")]
    queries = pairs(20, ("5", "0"))
    mixed = RaterPool("mix", members)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        with pytest.raises(RaterError, match="'mix/bad' could not judge"):
            ask(mixed, queries, store)
        assert {j.rater for j in store.judgements()} <= {"mix/good"}


def test_presets_do_what_they_say() -> None:
    rng = np.random.default_rng(1)
    rewards = 4.0 + 2.5 * rng.normal(size=(1500, 2))
    queries = [
        Query(prompt="p", responses=(repr(float(a)), repr(float(b))), index=i) for i, (a, b) in enumerate(rewards)
    ]

    def run(preset: str) -> tuple[float, ...]:
        judgements = answers(simulated_rater(preset, as_number, reference_rewards=rewards), queries)
        better = rewards.argmax(axis=1)
        chosen = [(j.choice == better[i]) for i, j in enumerate(judgements) if j.choice is not None]
        return (
            float(np.mean(chosen)),
            float(np.mean([j.tie for j in judgements])),
            float(np.mean([j.skipped for j in judgements])),
        )

    assert run("oracle") == run("bpref_oracle") == (1.0, 0.0, 0.0)
    assert run("bpref_skip") == pytest.approx((1.0, 0.0, 0.1), abs=1e-3)
    assert run("bpref_equal") == pytest.approx((1.0, 0.1, 0.0), abs=1e-3)
    assert run("bpref_mistake") == pytest.approx((0.9, 0.0, 0.0), abs=0.04)
    assert run("alpacafarm") == pytest.approx((0.7, 0.0, 0.0), abs=0.06)  # .9, then a quarter flipped: .25 + .5 * .9
    assert 0.6 < run("bpref_stoc")[0] < 0.8
    ann, bob = (simulated_rater("hh_like", as_number, reference_rewards=rewards, name=name) for name in ("ann", "bob"))
    agree = np.mean([a.choice == b.choice for a, b in zip(answers(ann, queries), answers(bob, queries), strict=True)])
    assert agree == pytest.approx(0.67, abs=5 * math.sqrt(0.67 * 0.33 / 1500))
    members = Counter(j.rater for j in answers(simulated_rater("alpacafarm", as_number), queries))
    assert len(members) == 13


def test_presets_by_name() -> None:
    for preset in PRESETS:
        assert simulated_rater(preset, as_number, name="me").name == "me"
    changed = simulated_rater("bpref_mistake", as_number, error_rate=0.0)
    assert isinstance(changed, SimulatedRater)
    assert (changed.behaviour.error_rate, changed.behaviour.beta) == (0.0, INF)
    with pytest.raises(ConfigError, match="did you mean 'oracle'"):
        simulated_rater("orcale", as_number)
    with pytest.raises(ConfigError, match=r"\[n, k >= 2\]"):
        simulated_rater("hh_like", as_number, reference_rewards=[1.0, 2.0])
    with pytest.raises(ConfigError, match="all the same"):
        simulated_rater("hh_like", as_number, reference_rewards=[[1.0, 1.0]])


def test_the_best_of_several_and_forms_for_people_only() -> None:
    queries = pairs(50, ("0", "2", "1"), "best")
    assert {j.choice for j in answers(SimulatedRater(as_number, beta=INF), queries)} == {1}
    noisy = [j.choice for j in answers(SimulatedRater(as_number, beta=INF, error_rate=1.0), queries)]
    assert set(noisy) == {0, 1, 2}
    lapsed = answers(SimulatedRater(as_number, lapse_rate=1.0), queries)
    assert all(j.choice == j.order_shown[0] for j in lapsed)
    for query_type in ("thumbs", "edit"):
        with pytest.raises(FeedbackError, match=f"got {query_type}"):
            answers(SimulatedRater(as_number), pairs(1, ("0",), query_type))
