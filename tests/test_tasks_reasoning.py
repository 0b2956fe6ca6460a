"""reasoning-gym's generators as tasks: any of their names, their own verdicts, and no question on both sides."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import gymnasium as gym
import pytest

import rlhf_gym  # noqa: F401
from rlhf_gym.errors import TaskError
from rlhf_gym.rewards import score
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.reasoning import ReasoningScore, reasoning_task

pytest.importorskip("reasoning_gym", reason="needs the extra `reasoning`, of which a dependency wants a C compiler")

from reasoning_gym.factory import DATASETS

# A mixture of other generators.
COMPOSITE = {"composite": {"datasets": [{"name": "chain_sum", "weight": 1, "config": {}}]}}


def verdicts(task: Task, index: int, *responses: str) -> list[float]:
    assert task.reward is not None
    prompt, n = task.prompts[index], len(responses)
    columns = {key: [value] * n for key, value in prompt.columns.items()}
    values: list[float] = score(task.reward, [prompt.text] * n, list(responses), columns).values.tolist()
    return values


@pytest.mark.parametrize("generator", sorted(DATASETS))
def test_any_generator_is_a_task(generator: str) -> None:
    task = reasoning_task(generator, config=COMPOSITE.get(generator), num_prompts=2, num_held_out=1)
    assert task.name == generator
    answer = task.prompts[0].columns["answer"]
    right, wrong = verdicts(task, 0, str(answer), "zzz")
    assert 0 <= wrong <= 1  # one verifier takes whatever is not "true" for "false"
    if answer is not None:  # puzzles with many solutions have none in their entries
        assert right == 1


def test_verdicts_by_hand() -> None:
    task = reasoning_task("chain_sum", config={"min_terms": 2, "max_terms": 2}, num_prompts=5, tag="answer")
    for i, prompt in enumerate(task.prompts):
        expression = prompt.columns["entry"]["metadata"]["expression"]
        assert int(prompt.columns["answer"]) == eval(expression)
        right = prompt.columns["answer"]
        given = (f"<answer>{right}</answer>", f"so <answer>1e</answer>, no: <answer> {right} </answer>!", right, "")
        assert verdicts(task, i, *given) == [1.0, 1.0, 0.0, 0.0]
    entry = {"entry": [task.prompts[0].columns["entry"]]}
    answer = f"<answer>{task.prompts[0].columns['answer']}</answer>"
    assert score(task.metrics["solved"], ["p"], [answer], entry).values.tolist() == [1.0]


def test_an_answer_that_the_verifier_cannot_read_earns_nothing() -> None:
    task = reasoning_task("prime_factorization", num_prompts=1, num_held_out=0)
    assert verdicts(task, 0, "zzz", "\x00", "9" * 5000) == [0.0, 0.0, 0.0]


def test_questions_are_the_same_for_a_seed_and_never_on_both_sides() -> None:
    tasks = [reasoning_task("letter_counting", seed=seed, num_prompts=40, num_held_out=20) for seed in (0, 0, 1)]
    texts = [[p.text for p in task.prompts] for task in tasks]
    assert texts[0] == texts[1]
    assert not set(texts[0]) & set(texts[2])
    held_out = {p.text for p in tasks[0].held_out}
    assert held_out == {p.text for p in tasks[2].held_out}
    assert all(not held_out & set(some) for some in texts)


def test_few_questions_are_all_trained_on() -> None:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    task = reasoning_task("chain_sum", config=config, num_prompts=200, num_held_out=2000)
    texts = [p.text for p in task.prompts]
    assert len(texts) == len(set(texts)) < 200
    assert not {p.text for p in task.held_out} & set(texts)


def test_at_both_levels_through_gymnasium() -> None:
    options = {"generator": "letter_counting", "num_prompts": 4, "num_held_out": 0, "template": "{question}\nAnswer:"}
    turn = gym.make("rlhf_gym/ReasoningTurn-v0", task_options=options)
    prompt, _ = turn.reset(seed=0)
    task = turn.unwrapped.task  # type: ignore[attr-defined]
    answers = {p.text: p.columns["answer"] for p in task.prompts}
    assert prompt.endswith("\nAnswer:")
    assert turn.step(answers[prompt])[1] == 1.0
    token = gym.make("rlhf_gym/Reasoning-v0", task_options=options, tokenizer="embedded")
    token.reset(seed=0)
    assert gym.spec("rlhf_gym/Reasoning-v0").to_json()


def test_the_reward_pickles_after_use() -> None:
    task = reasoning_task("chain_sum", num_prompts=1, num_held_out=0)
    right = task.prompts[0].columns["answer"]
    assert verdicts(task, 0, right) == [1.0]
    assert verdicts(pickle.loads(pickle.dumps(task)), 0, right) == [1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "chain_sums"}, "no generator 'chain_sums'; did you mean 'chain_sum'"),
        ({"config": {"terms": 3}}, r"refuses the options \{'terms': 3\}"),
        ({"config": {"min_terms": 5, "max_terms": 2}}, "refuses the options.*max_terms must be >= min_terms"),
        ({"num_prompts": 0}, "num_prompts must be a whole number"),
        ({"template": "no question"}, "does not hold {question}"),
    ],
)
def test_what_cannot_be_a_task_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task("reasoning", **options)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"pip install 'rlhf-gym\[reasoning\]'"):
        ReasoningScore("chain_sum")(["p"], ["3"], [{}])


def test_difficulties_are_those_of_the_generator_s_own_curriculum() -> None:
    task = reasoning_task(
        "chain_sum", difficulty=3, easiest=1, config={"allow_negation": True}, num_prompts=30, num_held_out=9
    )
    terms = {level: set[int]() for level in (1, 2, 3)}
    for prompt in (*task.prompts, *task.held_out):
        terms[prompt.columns["difficulty"]].add(prompt.columns["entry"]["metadata"]["num_terms"])
    assert terms[1] == {2}  # the curriculum's levels are 2, 3, 4, ... terms, each up to its own
    assert terms[2] <= {2, 3}
    assert 3 in terms[2]
    assert terms[3] <= {2, 3, 4}
    assert 4 in terms[3]
    (alone,) = {"difficulty" in p.columns for p in reasoning_task("chain_sum", difficulty=2, num_prompts=5).prompts}
    assert not alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"easiest": 1}, r"easiest \(1\) needs a difficulty"),
        ({"difficulty": 99}, "difficulty of 'chain_sum'"),
        ({"difficulty": 2, "easiest": 3}, "easiest"),
        ({"generator": "composite", "config": COMPOSITE["composite"], "difficulty": 1}, "has no curriculum"),
        ({"generator": "chain_sun", "difficulty": 1}, "no generator 'chain_sun'"),
    ],
)
def test_difficulties_that_there_are_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        reasoning_task(**options)
