"""`score`: every form a reward may be written in, and every way one may go wrong."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_gym.errors import RewardError
from rlhf_gym.rewards import reward_name, score

PROMPTS, RESPONSES = ["p0", "p1", "p2"], ["a", "bb", "ccc"]
COLUMNS = {"label": [10, 20, 30], "source": ["x", "y", "z"]}
LENGTHS = [1.0, 2.0, 3.0]


def batch(prompts, responses):
    assert isinstance(prompts, list)
    assert isinstance(responses, list)
    return [len(r) for r in responses]


def completions(prompts, completions):
    return [len(r) for r in completions]


def swapped(completions, prompts):
    assert prompts == PROMPTS
    return [len(r) for r in completions]


def only_completions(completions, **kwargs):
    assert kwargs["prompts"] == PROMPTS
    return [len(r) for r in completions]


def only_responses(responses):
    return [len(r) for r in responses]


def other_names(questions, answers):
    assert questions == PROMPTS
    return [len(r) for r in answers]


def positional_only(prompts, responses, /, **columns):
    assert prompts == PROMPTS
    return [len(r) for r in responses]


def single(prompt, response):
    assert isinstance(response, str)
    return len(response)


def single_completion(prompt, completion, label=None):
    assert label in COLUMNS["label"]
    return len(completion)


async def asynchronous(prompts, responses):
    await asyncio.sleep(0)
    return [len(r) for r in responses]


async def asynchronous_single(prompt, response):
    await asyncio.sleep(0)
    return len(response)


class Object:
    name = "an object"

    def __call__(self, prompts, responses, **columns):
        assert columns == {k: list(v) for k, v in COLUMNS.items()}
        return [len(r) for r in responses]

    def method(self, prompts, responses):
        return [len(r) for r in responses]


class Module(torch.nn.Module):
    def forward(self, prompts, responses):
        return torch.tensor([float(len(r)) for r in responses])


FORMS: list[Callable[..., Any]] = [
    batch, completions, swapped, only_completions, only_responses, other_names, positional_only, single,
    single_completion, asynchronous, asynchronous_single, Object(), Object().method, lambda p, r: list(map(len, r)),
    partial(batch), Module(), lambda *texts: list(map(len, texts[1])),
    lambda p, r: tuple(map(len, r)), lambda p, r: np.array(LENGTHS, dtype=np.float32),
    lambda p, r: torch.tensor(LENGTHS, requires_grad=True), lambda p, r: torch.tensor(LENGTHS, dtype=torch.bfloat16),
    lambda p, r: torch.tensor([1, 2, 3]), lambda p, r: [torch.tensor(x) for x in LENGTHS],
]  # fmt: skip


@pytest.mark.parametrize("reward", FORMS)
def test_forms(reward):
    scored = score(reward, PROMPTS, RESPONSES, COLUMNS)
    assert scored.values.dtype == np.float64
    assert scored.values.tolist() == LENGTHS
    assert scored.terms[reward_name(reward)].tolist() == LENGTHS


def test_columns_by_name():
    seen = {}

    def one(prompts, responses, label):
        seen["one"] = label
        return LENGTHS

    def keyword_only(prompts, responses, *, source="none"):
        seen["keyword"] = source
        return LENGTHS

    def absent(prompts, responses, rating=None):
        seen["absent"] = rating
        return LENGTHS

    for reward in (one, keyword_only, absent):
        score(reward, PROMPTS, RESPONSES, COLUMNS)
    assert seen == {"one": [10, 20, 30], "keyword": ["x", "y", "z"], "absent": None}
    assert score(lambda prompt, response, label: label, PROMPTS, RESPONSES, COLUMNS).values.tolist() == [10, 20, 30]


def test_a_column_named_as_the_responses_are_is_not_passed_to_them():
    def other_names(prompt, answer, **columns):
        assert list(columns) == ["label"]
        return list(map(len, answer))

    columns = {"answer": ["A", "B", "C"], "label": COLUMNS["label"]}
    assert score(other_names, PROMPTS, RESPONSES, columns).values.tolist() == LENGTHS


def test_a_column_that_is_not_there():
    def needs(prompts, responses, reference):
        return LENGTHS

    with pytest.raises(RewardError, match=r"'needs' needs the column 'reference'.*'label', 'source'"):
        score(needs, PROMPTS, RESPONSES, COLUMNS)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "returned None"),
        ("0.5", "returned str"),
        (0.5, "returned float"),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "returned dict"),
        ({1.0, 2.0, 3.0}, "returned set"),
        ((x for x in LENGTHS), "returned generator"),
        ([1.0, 2.0], "returned 2 scores for 3 samples"),
        ([], "returned 0 scores for 3 samples"),
        (np.ones((3, 1)), r"shape \(3, 1\), expected \(3,\)"),
        (np.array(1.0), r"shape \(\)"),
        ([1.0, None, 3.0], r"gave None \(None\) for sample 1"),
        ([1.0, 2.0, float("nan")], r"gave nan \(float\) for sample 2"),
        ([1.0, float("-inf"), 3.0], r"gave -inf \(float\) for sample 1"),
        ([1.0, "2.0", 3.0], r"gave '2.0' \(str\) for sample 1"),
        ([1.0, [2.0], 3.0], r"gave \[2.0\] \(list\) for sample 1"),
        ([1.0, 10**400, 3.0], r"\(int\) for sample 1"),
        ([1.0, 1j, 3.0], r"gave 1j \(complex\) for sample 1"),
        (torch.tensor([1.0, torch.nan, 3.0]), r"gave nan \(float\) for sample 1"),
    ],
)  # fmt: skip
def test_wrong_results(result, message):
    with pytest.raises(RewardError, match=f"'broken' .*{message}") as caught:
        score(lambda prompts, responses: result, PROMPTS, RESPONSES, name="broken")
    if "sample 1" in message:
        assert "Prompt: 'p1'; response: 'bb'" in str(caught.value)


def test_texts_in_messages_are_escaped_and_short():
    with pytest.raises(RewardError) as caught:
        score(lambda p, r: [None], ["x" * 500], ["line\nline\x1b[31m"])
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert "…" in message
    assert len(message) < 300


@pytest.mark.parametrize("is_async", [False, True])
def test_exceptions_are_chained_and_named(is_async):
    def batched(prompts, responses):
        raise KeyError("oops")

    def one(prompt, response):
        if response == "bb":
            raise ValueError("not bb")
        return 1.0

    async def batched_async(prompts, responses):
        return batched(prompts, responses)

    async def one_async(prompt, response):
        await asyncio.sleep(0)
        return one(prompt, response)

    with pytest.raises(
        RewardError,
        match=r"'broken' raised KeyError: 'oops' \[test_rewards_base.py, line \d+\] \(on a batch of 3 samples",
    ) as caught:
        score(batched_async if is_async else batched, PROMPTS, RESPONSES, name="broken")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(
        RewardError,
        match=r"raised ValueError: not bb \[test_rewards_base.py, line \d+\] \(on sample 1, prompt 'p1', resp.*'bb'",
    ) as caught:
        score(one_async if is_async else one, PROMPTS, RESPONSES, name="broken")
    assert isinstance(caught.value.__cause__, ValueError)


def test_interrupts_pass():
    def interrupted(prompts, responses):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted, PROMPTS, RESPONSES)


def test_async_inside_a_running_loop_and_nested():
    async def outer(prompts, responses):
        return score(asynchronous, prompts, responses).values

    async def notebook():
        return score(outer, PROMPTS, RESPONSES).values.tolist()

    assert asyncio.run(notebook()) == LENGTHS


def test_async_rewards_keep_one_loop():
    loops = []

    async def remember(prompts, responses):
        loops.append(asyncio.get_running_loop())
        return LENGTHS

    score(remember, PROMPTS, RESPONSES)
    score(remember, PROMPTS, RESPONSES)
    assert loops[0] is loops[1]


def test_async_pairs_wait_together():
    waiting = 0
    most = 0

    async def slow(prompt, response):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.01)
        waiting -= 1
        return 1.0

    score(slow, PROMPTS, RESPONSES)
    assert most == 3


def test_counts_must_agree():
    with pytest.raises(RewardError, match="3 prompts and 2 responses"):
        score(batch, PROMPTS, RESPONSES[:2])
    with pytest.raises(RewardError, match="3 prompts and 1 values of 'label'"):
        score(batch, PROMPTS, RESPONSES, {"label": [1]})


def test_no_samples_no_call():
    def never(prompts, responses):
        raise AssertionError

    assert score(never, [], []).values.shape == (0,)


@pytest.mark.parametrize("reward", [lambda texts: [1.0], lambda: [1.0]])
def test_parameters_that_fit_no_form(reward):
    with pytest.raises(RewardError, match=r"expected \(prompts, responses, \*\*columns\)"):
        score(reward, ["p"], ["r"])


def test_not_callable():
    with pytest.raises(RewardError, match="is a int"):
        score(3, ["p"], ["r"])  # type: ignore[arg-type]


def test_names():
    assert reward_name(batch) == "batch"
    assert reward_name(Object()) == "an object"
    assert reward_name(partial(batch)) == "batch"


def test_a_remembered_signature_keeps_nothing_alive():
    reward = Object()
    score(reward, PROMPTS, RESPONSES, COLUMNS)
    gone = weakref.ref(reward)
    del reward
    gc.collect()
    assert gone() is None


def test_a_reward_that_exits_is_a_failure_and_the_next_one_goes_on():
    def leaves(prompts, responses):
        raise SystemExit(3)

    async def leaves_later(prompt, response):
        raise SystemExit(3)

    async def leaves_in_a_batch(prompts, responses):
        raise SystemExit(3)

    async def stays(prompts, responses):
        return LENGTHS

    with pytest.raises(RewardError, match="'leaves' raised SystemExit: 3"):
        score(leaves, PROMPTS, RESPONSES)
    for reward in (leaves_later, leaves_in_a_batch):
        with pytest.raises(RewardError, match="SystemExit: 3"):
            score(reward, PROMPTS, RESPONSES)
        assert score(stays, PROMPTS, RESPONSES).values.tolist() == LENGTHS  # they share a loop


def test_an_error_says_where_in_the_users_code():
    def deep(prompts, responses):
        return np.linalg.inv(np.zeros((2, 3)))  # raises inside NumPy

    line = deep.__code__.co_firstlineno + 1
    with pytest.raises(RewardError, match=rf"LinAlgError: .* \[test_rewards_base.py, line {line}\] \(on a batch"):
        score(deep, PROMPTS, RESPONSES)


def test_a_decorator_that_hides_the_signature_is_named():
    def decorated(*args, **kwargs):
        return batch(*args, **kwargs)

    with pytest.raises(RewardError, match=r"unexpected keyword argument 'label'.*functools.wraps"):
        score(decorated, PROMPTS, RESPONSES, COLUMNS)


def test_a_class_instead_of_an_object():
    class Mine:
        def __call__(self, prompts, responses):
            return LENGTHS

    with pytest.raises(RewardError, match=r"reward 'Mine' is a class; expected an object of it, such as Mine\(...\)"):
        score(Mine, PROMPTS, RESPONSES)
