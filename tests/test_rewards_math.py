"""Mathematical equivalence: what counts as equal, what is never evaluated, and what takes too long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import LONG

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.builtin import math_answer
from rlhf_gym.rewards.builtin.math_answer import MathAnswer
from rlhf_gym.rewards.check import check_reward

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def reward() -> Iterator[MathAnswer]:
    made = load_reward("math", seconds=LONG)
    assert isinstance(made, MathAnswer)
    yield made
    assert made._worker is not None
    made._worker.end()


@pytest.mark.parametrize(
    ("reference", "response", "expected"),
    [
        ("42", "The answer is 42.", 1),
        (42, "42", 1),
        ("1/2", "0.5", 1),
        (r"\frac{1}{2}", r"so we get $\frac{2}{4}$", 1),
        ("x^2+2x+1", r"\boxed{(x+1)^2}", 1),
        (r"\sqrt{8}", r"2\sqrt{2}", 1),
        (72, "She sold 48 + 24 = 72 clips.\n#### 72", 1),
        ("1,000", "1000", 1),
        ("50%", "about 50% of them", 1),
        ("3", r"\boxed{4}, no, \boxed{3}", 1),
        ("3", r"\boxed{3}, no, \boxed{4}", 0),
        ("-7", "it is -7", 1),
        ("7", "it is -7", 0),
        (["3", "4"], "$4$", 1),
        ("0.333333", "1/3", 1),
        ("0.3", "1/3", 0),
        ("[1,2)", "$[1,2)$", 1),
        (r"\{1, 2\}", r"$\{2, 1\}$", 1),
        ("12", "12 apples and 3 pears", 0),
        ("5", "I do not know", 0),
        ("5", "", 0),
        ("1", "(" * 3000, 0),
    ],
)
def test_what_is_equal(reward: MathAnswer, reference: Any, response: str, expected: int) -> None:
    assert score(reward, ["p"], [response], {"reference": [reference]}).values.tolist() == [expected]


ATTACKS = (
    "__import__('pathlib').Path('{}').touch()",
    "$__import__('pathlib').Path('{}').touch()$",
    "\\boxed{{__import__('pathlib').Path('{}').touch()}}",
    "1 + __import__('pathlib').Path('{}').touch()",
    "$\\text{{__import__('pathlib').Path('{}').touch()}}$",
)


def test_nothing_is_evaluated_as_python(reward: MathAnswer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    texts = [attack.format(made) for attack in ATTACKS]
    assert reward(["p"] * len(texts), texts, reference=["1"] * len(texts)) == [0] * len(texts)
    assert reward(["p"] * len(texts), ["1"] * len(texts), reference=texts) == [0] * len(texts)
    assert not made.exists()

    # The same in this process: sympy's way from text to Python is never taken.
    import sympy.parsing.sympy_parser as parser

    from rlhf_gym.rewards.builtin.math_worker import equal

    def evaluated(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("evaluated as Python")

    monkeypatch.setattr(parser, "eval_expr", evaluated)
    assert not any(equal(["1"], text) for text in texts)
    assert equal(["1/2"], "$0.5$")
    assert not made.exists()


def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_ones_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever = "$9^{9^{9^{9}}}$"
    ask = math_answer._Worker.ask

    def patiently(worker: Any, references: list[str], response: str, seconds: float) -> bool | None:
        """Only the answer that takes for ever is given up after the second."""
        return ask(worker, references, response, seconds if response == for_ever else LONG)

    monkeypatch.setattr(math_answer._Worker, "ask", patiently)
    reward = MathAnswer(seconds=1)
    assert reward(["p"] * 3, ["2", for_ever, "2"], reference=["2"] * 3) == [1, 0, 1]
    assert reward.timed_out == 1
    assert reward._worker is not None
    reward._worker.end()


def test_it_can_be_tried_out(reward: MathAnswer) -> None:
    report = check_reward(reward, ["1+1=", "2+2="] * 3, ["2", "5"] * 3, {"reference": ["2", "4"] * 3})
    assert report.deterministic
    assert report.order_free
    assert not any(probe.error for probe in report.probes)


def test_what_is_refused(reward: MathAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewardError, match="'math' needs the column 'reference'"):
        reward(["p"], ["1"])
    for wrong in (None, [], True, {"a": 1}):
        with pytest.raises(RewardError, match="as the reference of sample 0"):
            reward(["p"], ["1"], reference=[wrong])
    with pytest.raises(ConfigError, match="above 0"):
        MathAnswer(seconds=0)
    monkeypatch.setattr("rlhf_gym.rewards.builtin.math_answer.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'math' needs math-verify: pip install 'rlhf-gym\[math\]'"):
        load_reward("math")
