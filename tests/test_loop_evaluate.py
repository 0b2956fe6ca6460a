from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym.errors import TaskError
from rlhf_gym.loop.after_iteration import iteration_line
from rlhf_gym.loop.config import TaskConfig
from rlhf_gym.loop.intervals import wilson_interval
from rlhf_gym.loop.label import queries_of
from rlhf_gym.loop.run_task import split_prompts, task_of
from rlhf_gym.loop.train_reward import ProxyAndGold
from rlhf_gym.tasks.samples import Prompt, Sample
from rlhf_gym.text import distinct_2


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (0, 20), (20, 20), (150, 200), (1.5, 3)])
def test_the_ends_of_wilsons_interval_solve_its_equation(successes: float, n: int) -> None:
    # Wilson 1927: the shares p whose distance from the observed one is z standard errors, taken at p itself.
    for end in wilson_interval(successes, n):
        assert abs(successes / n - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-9)


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_share_and_stays_in_range(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, 2 * n)) / 2
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1


def test_distinct_2() -> None:
    assert distinct_2(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert math.isnan(distinct_2(["a", ""]))


def test_queries_group_the_candidates_of_a_prompt() -> None:
    samples = [Sample(Prompt(p, {"k": p}), f"{p}{i}") for p in "ab" for i in range(4)]
    rankings = queries_of(samples, 4, "ranking", 2)
    assert [q.responses for q in rankings] == [("a0", "a1", "a2", "a3"), ("b0", "b1", "b2", "b3")]
    assert rankings[0].model_versions == ("round-1",) * 4
    assert rankings[1].columns == {"k": "b"}
    pairs = queries_of(samples, 4, "pair", 1)
    assert [q.responses for q in pairs] == [("a0", "a1"), ("a2", "a3"), ("b0", "b1"), ("b2", "b3")]
    assert pairs[0].model_versions == ("reference", "reference")
    assert len({q.id for q in pairs}) == 4


def test_a_file_of_prompts_is_split_by_text_whatever_the_order() -> None:
    prompts = [Prompt(f"prompt {i % 40}") for i in range(100)]
    train, held = split_prompts(prompts, 0.2, "x.txt")
    texts = {p.text for p in held}
    assert len(texts) == 8
    assert not texts & {p.text for p in train}
    assert len(train) + len(held) == 100
    assert {p.text for p in split_prompts(prompts[::-1], 0.2, "x.txt")[1]} == texts
    assert [len(side) for side in split_prompts([Prompt("a"), Prompt("b")], 0.99, "x")] == [1, 1]
    with pytest.raises(TaskError, match=r"x\.txt holds one prompt only"):
        split_prompts([Prompt("a"), Prompt("a")], 0.2, "x.txt")


def test_gold_is_watched_and_never_part_of_the_reward() -> None:
    def gold(prompts: list[str], responses: list[str], *, weight: list[float]) -> list[float]:
        return weight

    def proxy(prompts: list[str], responses: list[str]) -> list[int]:
        return [len(r) for r in responses]

    scored = ProxyAndGold(proxy, {"gold": gold}).score_terms(["p", "p"], ["abc", ""], {"weight": [0.5, 2.0]})
    assert scored.values.tolist() == [3, 0]
    assert {k: v.tolist() for k, v in scored.terms.items()} == {"proxy": [3, 0], "gold": [0.5, 2]}


def test_the_line_of_metrics() -> None:
    row = {"round": "1", "iteration": "3", "objective/scores": "0.5", "objective/kl": "-0.0001", "gold": "",
           "policy/clipfrac_avg": "0.125"}  # fmt: skip
    line = "round 1 PPO  3/40  proxy +0.50  KL 0.00  clipped 12.5%"
    assert iteration_line(row, "PPO", 40) == line
    assert iteration_line(row, "PPO", 40, 0.0712) == line + "  rewards 7.1% of the time"


def test_held_out_prompts_that_are_trained_on_are_counted_and_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "held.txt").write_text("two\nfour\nthree\ntwo\n")
    files = {"prompts": str(tmp_path / "train.txt"), "held_out": str(tmp_path / "held.txt")}
    with pytest.raises(TaskError, match=r"2 of the 3 held-out prompts are among those to train on \(one is .three"):
        task_of(TaskConfig(**files))
    (tmp_path / "held.txt").write_text("four\n")
    assert [p.text for p in task_of(TaskConfig(**files)).held_out] == ["four"]
