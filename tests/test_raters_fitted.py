"""Fitting a simulated rater to answers: known parameters are recovered, the file is a rater, and scales do not matter."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.loop.rater_catalogue import check_rater, find_rater
from rlhf_gym.raters import Behaviour, SimulatedRater
from rlhf_gym.raters.answer_likelihood import FITTED, Answers, maximise, probabilities
from rlhf_gym.raters.fitted import FittedRater
from rlhf_gym.raters.presets import PRESETS, simulated_rater
from rlhf_gym.raters.rater_fit import fit_rater
from rlhf_gym.rewards.spec import load_reward

Answered = tuple[list[tuple[Query, Judgement]], list[Any], int]


def number(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response.split()[0]) for response in responses]


def answered(count: int, query_type: Any = "pair", k: int = 2, **knobs: Any) -> Answered:
    """Answers of a known rater to responses of random rewards and lengths."""
    rng = np.random.default_rng(0)
    queries = [
        Query(
            prompt=f"p{i // 2}", query_type=query_type, index=i,
            responses=tuple(f"{rng.normal():.6f}" + " w" * int(rng.integers(0, 10)) for _ in range(k)),
        )
        for i in range(count)
    ]  # fmt: skip
    rater = SimulatedRater(number, Behaviour(**knobs))
    given = rater.collect(rater.submit(queries))
    answers = [(query, said) for query, said in zip(queries, given, strict=True) if not said.skipped]
    rewards = [np.array(number([], list(query.responses))) for query, _ in answers]
    return answers, rewards, count - len(answers)


TRUE = {
    "beta": 2.0, "position_bias": 0.3, "length_bias": -0.1, "error_rate": 0.15, "lapse_rate": 0.1,
    "rao_kupper_theta": 1.5, "skip_rate": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> FittedRater:
    answers, rewards, skips = answered(2000, **TRUE)
    return fit_rater(answers, rewards, reward_name="number", skips=skips, resamples=30)


def test_known_parameters_are_recovered(fitted: FittedRater) -> None:
    for name, (low, high) in fitted.intervals.items():
        half = (high - low) / 2  # for seven intervals at once and few resamples: twice as wide
        assert low - half <= TRUE[name] <= high + half, name
        assert high - low < {"beta": 1.2, "position_bias": 0.4, "length_bias": 0.05}.get(name, 0.5), name
    found = fitted.log_likelihood
    assert found["fitted"] > found["default"]
    assert found["fitted"] - found["coin"] > 10 * fitted.gain_standard_error
    assert found["coin"] == pytest.approx(math.log(0.5))
    assert fitted.ece < 3 * fitted.ece_floor
    text = fitted.as_text()
    assert "predicts better than a coin" in text
    assert all(name in text for name in TRUE)


def test_a_fit_that_starts_from_no_errors_finds_them() -> None:
    # As the resamples for the intervals do, where the estimate is 0: started from the bound itself, none of them left it.
    answers, rewards, _ = answered(300, beta=3.0, error_rate=0.4)
    found = maximise(Answers.of(answers, rewards), start=np.array([3.0, 0.0, 0.0, 1e-5, 1e-5, 1.0]))
    assert found[FITTED.index("error_rate")] == pytest.approx(0.4, abs=0.2)


def test_an_interval_holds_its_estimate_where_that_is_at_a_bound() -> None:
    answers, rewards, skips = answered(60, beta=6.0)  # nobody errs
    fitted = fit_rater(answers, rewards, skips=skips, resamples=6)
    assert all(low <= fitted.knobs[name] <= high for name, (low, high) in fitted.intervals.items())


def test_probabilities_are_those_of_the_model_by_hand() -> None:
    pair = Query(prompt="p", responses=("1", "0"))
    three = Query(prompt="p", responses=("1", "0", "0"), query_type="ranking")
    best = Query(prompt="p", responses=("1", "0", "0"), query_type="best")
    answers = [
        (pair, Judgement(query_id=pair.id, rater="a", choice=0, order_shown=(0, 1))),
        (pair, Judgement(query_id=pair.id, rater="a", tie=True)),
        (three, Judgement(query_id=three.id, rater="a", ranking=((0,), (1,), (2,)))),
        (three, Judgement(query_id=three.id, rater="a", ranking=((0,), (1, 2)))),
        (best, Judgement(query_id=best.id, rater="a", choice=0)),
    ]
    rewards = [np.array(number([], list(query.responses))) for query, _ in answers]
    data, plain = Answers.of(answers, rewards), dict.fromkeys(FITTED, 0.0) | {"beta": 1.0, "rao_kupper_theta": 1.0}

    def found(**values: float) -> list[float]:
        return probabilities(data, torch.tensor(list((plain | values).values()), dtype=torch.float64))[0].tolist()

    e = math.e
    first = e / (e + 2)  # Luce's choice of rewards 1, 0, 0
    assert found() == pytest.approx([e / (e + 1), 0, first / 2, first, first])
    # Blind: a half, no tie, one of 3! orders, two of them, a third.
    assert found(error_rate=1.0) == pytest.approx([1 / 2, 0, 1 / 6, 1 / 3, 1 / 3])
    # A lapse takes the response shown first; where the order is not known, any.
    assert found(lapse_rate=1.0) == pytest.approx([1, 0, 1 / 6, 1 / 6, 1 / 3])
    assert found(rao_kupper_theta=3.0)[:2] == pytest.approx([e / (e + 3), 1 - e / (e + 3) - 1 / (1 + 3 * e)])
    assert found(position_bias=1.0)[0] == pytest.approx(1 / (1 + math.exp(-2)))


def test_from_a_store_to_a_rater_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, _, _ = answered(60, beta=3.0, skip_rate=0.1)
    by_ann = [
        Judgement(query_id=q.id, rater="web/ann", choice=j.choice, order_shown=j.order_shown) for q, j in answers[:40]
    ]
    (tmp_path / "store").mkdir()
    with FeedbackStore(tmp_path / "store" / "feedback.sqlite") as store:
        store.add_queries(query for query, _ in answers)
        store.add_judgements([*by_ann, *(said for _, said in answers)])
    reward = tmp_path / "mine.py"
    reward.write_text("def number(prompts, responses):\n    return [float(r.split()[0]) for r in responses]\n")
    scaled = tmp_path / "scaled.py"
    scaled.write_text("def other(prompts, responses):\n    return [5 + 100 * float(r.split()[0]) for r in responses]\n")
    file, data = tmp_path / "rater.json", str(tmp_path / "store")
    given = ["fit-rater", data, "--resamples", "2", "--quiet"]
    assert main(given) == 2
    assert "does not say what raters prefer by: give --reward" in capsys.readouterr().err
    assert main([*given, "--reward", f"{reward}:number", "--only", "bob"]) == 2
    assert "there are answers of simulated, web/ann" in capsys.readouterr().err
    assert main([*given, "--reward", f"{reward}:number", "--only", "web", "--out", str(file)]) == 0
    assert "fitted to 40 answers of 1 rater about" in (said := capsys.readouterr().out)
    assert f"--rater fitted:{file}" in said
    fitted = FittedRater.load(file)
    config = RaterConfig(name=f"fitted:{file}", query_type="pair")
    check_rater(config)
    same, other = load_reward(f"{reward}:number"), load_reward(f"{scaled}:other")
    rewards = np.random.default_rng(0).normal(size=(50, 2))

    def made(config: RaterConfig, gold: Any, rewards: Any) -> Behaviour:
        rater = find_rater(config, gold, lambda _: rewards, 0)
        assert isinstance(rater, SimulatedRater)
        return rater.behaviour

    assert made(config, same, None) == fitted.behaviour  # the reward it was fitted with: as it is
    # Another reward: alike in units of the standard deviation; a knob of one's own is in the unit that rater.unit says.
    spread = 100 * rewards.std() / fitted.reward_std
    assert made(config, other, 100 * rewards).beta == pytest.approx(fitted.knobs["beta"] / spread)
    own = replace(config, beta=2.0, unit="standard_deviation")
    assert made(own, other, 100 * rewards).beta == pytest.approx(2 / (100 * rewards.std()))
    plain = RaterConfig(query_type="pair", beta=2.0, tie_threshold=0.5, unit="standard_deviation")
    found = made(plain, other, 100 * rewards)
    assert (found.beta, found.tie_threshold) == pytest.approx((0.02 / rewards.std(), 50 * rewards.std()))
    with pytest.raises(ConfigError, match="cannot be read"):
        check_rater(RaterConfig(name=f"fitted:{tmp_path / 'none.json'}"))
    with pytest.raises(ConfigError, match=r"rater\.unit is for simulated raters, not for 'terminal'"):
        check_rater(RaterConfig(name="terminal", unit="standard_deviation"))


def test_rankings_give_more_than_pairs() -> None:
    answers, rewards, _ = answered(250, "ranking", 4, beta=1.5)
    found = dict(zip(FITTED, maximise(Answers.of(answers, rewards)), strict=True))
    assert found["beta"] == pytest.approx(1.5, rel=0.25)
    assert found["rao_kupper_theta"] == 1.0  # no ties: not estimated
    assert abs(found["position_bias"]) < 0.3


def test_raters_who_are_no_better_than_a_coin_and_too_few_answers() -> None:
    answers, rewards, _ = answered(40, beta=0.0)
    found = fit_rater(answers, rewards, resamples=3)
    assert "does not predict better than a coin" in found.as_text()
    assert math.isfinite(found.behaviour.position_bias)
    with pytest.raises(
        FeedbackError, match="at least 20 answers to pair, best or ranking queries about at least 2 prompts; got 7"
    ):
        fit_rater(answers[:7], rewards[:7])
    with pytest.raises(FeedbackError, match="scores all responses of a query alike"):
        fit_rater(answers, [np.zeros(2)] * len(answers))


def test_the_file_is_the_rater(fitted: FittedRater, tmp_path: Path) -> None:
    file = tmp_path / "rater.json"
    fitted.save(file)
    assert FittedRater.load(file) == fitted
    scaled = fitted.behaviour_for(10 * fitted.reward_std)
    assert scaled.beta == pytest.approx(fitted.knobs["beta"] / 10)
    assert scaled.position_bias == pytest.approx(10 * fitted.knobs["position_bias"])
    values = json.loads(file.read_text())
    for broken, why in (
        ("{", "cannot be read"),
        ("{}", "holds no fitted rater"),
        (json.dumps(values | {"knobs": {"beta": -1}}), "not whole: a simulated rater's beta must be"),
        (json.dumps({k: v for k, v in values.items() if k != "reward_std"}), "not whole: 'reward_std'"),
    ):
        file.write_text(broken)
        with pytest.raises(ConfigError, match=why):
            FittedRater.load(file)


@pytest.mark.parametrize("preset", [*PRESETS])
def test_a_presets_agreement_does_not_change_with_the_rewards_scale(preset: str) -> None:
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(60, 2))
    queries = [
        Query(prompt=f"p{i}", responses=tuple(f"{r:.6f}" for r in row), index=i) for i, row in enumerate(reference)
    ]

    def said(unit: float, origin: float) -> list[Any]:
        def reward(prompts: list[str], responses: list[str]) -> list[float]:
            return [origin + unit * value for value in number(prompts, responses)]

        rater = simulated_rater(preset, reward, reference_rewards=origin + unit * reference)
        return [(j.choice, j.tie, j.skipped) for j in rater.collect(rater.submit(queries))]

    same = [a == b for a, b in zip(said(1.0, 0.0), said(1000.0, -50.0), strict=True)]
    assert sum(same) >= 59  # rounding may turn one
