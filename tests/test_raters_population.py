"""Raters who differ: populations of tastes and rationalities, circular preferences, fatigue; as settings of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback import Judgement, Query
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.loop.rater_catalogue import check_rater, find_rater
from rlhf_gym.raters import Rater, SimulatedRater
from rlhf_gym.raters.pool import RaterPool
from rlhf_gym.raters.population import Taste, population
from rlhf_gym.rewards.base import score

INF = math.inf


def quality(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response.split()[0]) for response in responses]


def style(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response.split()[1]) for response in responses]


def answers(rater: Rater, queries: list[Query]) -> list[Judgement]:
    return rater.collect(rater.submit(queries))


def drawn(count: int, seed: int = 0) -> list[Query]:
    rng = np.random.default_rng(seed)
    return [
        Query(prompt=f"p{i}", responses=tuple(f"{a:.4f} {b:.4f}" for a, b in rng.normal(size=(2, 2))), index=i)
        for i in range(count)
    ]


def test_tastes_divide_a_population_and_leave_its_mean_alone() -> None:
    tastes = {"style": Taste(style, spread=2.0, std=1.0)}
    pool = population("crowd", quality, size=9, overlap=9, tastes=tastes, beta_spread=0.5)
    members = [member for member in pool.members.values() if isinstance(member, SimulatedRater)]
    # What they prefer by: the common reward plus a weight of their own, which is 0 on average.
    scores = np.array([score(member.reward, ["p", "p"], ["1 0", "0 1"], {}).values for member in members])
    assert scores[:, 0] == pytest.approx(1.0)
    assert scores[:, 1].mean() == pytest.approx(0.0, abs=1e-9)
    assert sorted(scores[:, 1])[0] < -2 < 2 < sorted(scores[:, 1])[-1]
    logs = np.log([member.behaviour.beta for member in members])
    assert (logs.mean(), len(set(logs))) == (pytest.approx(0.0, abs=1e-9), 9)
    # Who likes style and who dislikes it contradict one another more than two who only make errors.
    queries = drawn(60)

    def agreement(pool: RaterPool) -> float:
        shares = []
        by_query: dict[str, list[int | None]] = {}
        for judgement in answers(pool, queries):
            by_query.setdefault(judgement.query_id, []).append(judgement.choice)
        assert all(len(said) == 9 for said in by_query.values())
        for said in by_query.values():
            first = sum(choice == 0 for choice in said)
            shares.append((first * (first - 1) + (9 - first) * (8 - first)) / 72)
        return float(np.mean(shares))

    alike = population("crowd", quality, replace(members[0].behaviour, beta=INF), size=9, overlap=9)
    divided = population("crowd", quality, replace(members[0].behaviour, beta=INF), size=9, overlap=9, tastes=tastes)
    assert agreement(alike) == 1.0
    assert 0.5 < agreement(divided) < 0.85


def test_intransitive_raters_prefer_in_circles() -> None:
    # Of three equally good responses at random places on a circle, a quarter of the triples lie around its centre: a cycle.
    texts = [(f"0 {i}a", f"0 {i}b", f"0 {i}c") for i in range(300)]
    pairs = [(0, 1), (1, 2), (2, 0)]
    queries = [Query(prompt="p", responses=(t[a], t[b]), index=i) for i, t in enumerate(texts) for a, b in pairs]
    rater = SimulatedRater(quality, beta=INF, intransitivity=1.0)
    wins = np.array([j.choice == 0 for j in answers(rater, queries)]).reshape(-1, 3)
    cycles = float(np.mean(wins.all(axis=1) | ~wins.any(axis=1)))
    assert cycles == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 300))
    # It is the same from both sides, does not outweigh a larger difference, and moves with the reward's unit.
    turned = [replace(q, responses=q.responses[::-1], id="") for q in queries]
    assert [j.choice for j in answers(rater, turned)] == wins.astype(int).ravel().tolist()
    clear = [Query(prompt="p", responses=(f"1.01 {i}", f"0 {i}"), index=i) for i in range(50)]
    assert {j.choice for j in answers(rater, clear)} == {0}
    assert rater.behaviour.in_unit(3.0).intransitivity == 3.0
    ranked = answers(rater, [Query(prompt="p", responses=texts[0], query_type="ranking")])
    assert sorted(i for group in ranked[0].ranking or () for i in group) == [0, 1, 2]


def test_a_run_reaches_populations_fatigue_and_intransitivity(tmp_path: Any) -> None:
    file = tmp_path / "own.py"
    file.write_text("def style(prompts, responses):\n    return [float(r.split()[1]) for r in responses]\n")
    reference = {"quality": np.array([[0.0, 4.0]]), "style": np.array([[0.0, 1.0]])}

    def scores(reward: Any) -> Any:
        return reference[getattr(reward, "__name__", "style")]

    config = RaterConfig(
        query_type="pair", population=5, overlap=2, tastes={f"{file}:style": 1.0}, beta=2.0, unit="standard_deviation",
        fatigue=0.1, lapse_rate=0.2, intransitivity=0.5,
    )  # fmt: skip
    check_rater(config)
    pool = find_rater(config, quality, scores, 0)
    assert isinstance(pool, RaterPool)
    assert (len(pool.members), pool.overlap) == (5, 2)
    (member, *_) = pool.members.values()
    assert isinstance(member, SimulatedRater)
    found = member.behaviour  # the gold reward's standard deviation is 2
    assert (found.beta, found.intransitivity, found.fatigue, found.lapse_rate) == (1.0, 1.0, 0.1, 0.2)
    # A standard deviation of style (0.5) weighs as much as one of the gold reward (2), times the rater's weight.
    weights = [
        score(one.reward, ["p"], ["0 1"], {}).values[0]
        for one in pool.members.values()
        if isinstance(one, SimulatedRater)
    ]
    assert sorted(np.array(weights) / 4)[3:] == pytest.approx([0.5244, 1.2816], abs=1e-4)
    preset = find_rater(
        RaterConfig(name="hh_like", population=3), quality, lambda _: np.array([[0.0, 4.0], [1.0, 0.0]]), 0
    )
    assert list(preset.members) == ["hh_like/01", "hh_like/02", "hh_like/03"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overlap": 2}, r"rater\.overlap \(2\).* rater\.population is 1"),
        ({"tastes": {"length": 1.0}}, r"rater\.tastes is what the raters of a population differ in"),
        ({"population": 2, "tastes": {"lenght": 1.0}}, "lenght"),
        ({"population": 2, "tastes": {"length": -1.0}}, "spread of length must be"),
        ({"population": 2, "name": "alpacafarm"}, "a population of its own"),
        ({"population": 2, "name": "terminal"}, r"rater\.population is for simulated raters"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rater(RaterConfig(**({"query_type": "pair"} | given)))
