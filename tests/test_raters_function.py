"""Plain functions as raters: each shape of them, by itself, in pools and in runs; and what they must not return."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import save_tiny_model, tiny_settings

from rlhf_gym.cli.main import main
from rlhf_gym.errors import ConfigError, FeedbackError
from rlhf_gym.feedback import FeedbackStore, Judgement, Query
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.loop.rater_catalogue import check_rater, find_rater
from rlhf_gym.raters import FunctionRater, Rater, RaterError, SimulatedRater, Ticket, as_rater, ask
from rlhf_gym.raters.as_reward import RaterReward
from rlhf_gym.raters.function import is_factory
from rlhf_gym.raters.pool import RaterPool


def longer(prompt: str, a: str, b: str) -> int | None:
    return None if len(a) == len(b) else int(len(b) > len(a))


async def longer_async(prompt: str, a: str, b: str) -> int | None:
    await asyncio.sleep(0)
    return longer(prompt, a, b)


def longer_batched(prompts: list[str], a: list[str], b: list[str]) -> list[int | None]:
    return [longer(*row) for row in zip(prompts, a, b, strict=True)]


async def longer_batched_async(prompts: list[str], a: list[str], b: list[str]) -> list[int | None]:
    return longer_batched(prompts, a, b)


def by_length(prompt: str, responses: list[str]) -> list[list[int]]:
    lengths = [len(response) for response in responses]
    return [[i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths), reverse=True)]


async def by_length_async(prompt: str, responses: list[str]) -> list[list[int]]:
    return by_length(prompt, responses)


def by_length_batched(prompts: list[str], responses: list[list[str]]) -> list[list[list[int]]]:
    return [by_length(*row) for row in zip(prompts, responses, strict=True)]


class Longer:
    """An object that is called."""

    def __call__(self, prompt: str, a: str, b: str) -> int | None:
        return longer(prompt, a, b)


SHAPES: list[Callable[..., Any]] = [
    longer, longer_async, longer_batched, longer_batched_async, by_length, by_length_async, by_length_batched, Longer(),
]  # fmt: skip


def judged(function: Callable[..., Any], *queries: Query) -> list[Judgement]:
    rater = FunctionRater(function, name="mine")
    return rater.collect(rater.submit(queries))


@pytest.mark.parametrize("function", SHAPES)
def test_every_shape_answers_pairs_rankings_and_the_best_alike(function: Callable[..., Any]) -> None:
    texts = ("aaa", "a", "aaaaa", "b")
    pair, tie, ranking, best, equal = judged(
        function,
        Query(prompt="p", responses=("a", "aa")),
        Query(prompt="p", responses=("a", "b")),
        Query(prompt="p", responses=texts, query_type="ranking"),
        Query(prompt="p", responses=texts, query_type="best"),
        Query(prompt="p", responses=("a", "b", "c"), query_type="best"),
    )
    assert (pair.choice, pair.rater) == (1, "mine")
    assert tie.tie
    assert ranking.ranking == ((2,), (0,), (1, 3))
    assert best.choice == 2
    assert equal.skipped  # the best of k knows no tie


def test_answers_of_a_function_that_sees_all_candidates() -> None:
    ranking = Query(prompt="p", responses=("a", "b", "c"), query_type="ranking")
    best, pair = (
        Query(prompt="p", responses=("a", "b", "c"), query_type="best"),
        Query(prompt="p", responses=("a", "b")),
    )

    def said(answer: Any, query: Query) -> Judgement:
        [judgement] = judged(lambda prompt, responses: answer, query)
        return judgement

    assert said(None, ranking).ranking == ((0, 1, 2),)
    assert said([2, 0], ranking).ranking == ((2,), (0,))  # of the other one nothing was said
    assert said((1, (0, 2)), ranking).ranking == ((1,), (0, 2))
    assert said(np.int64(2), best).choice == 2
    assert said([1, 2, 0], best).choice == 1
    assert (said(None, best).skipped, said(None, pair).tie) == (True, True)
    assert (said(1, pair).choice, said([1, 0], pair).choice) == (1, 1)
    with pytest.raises(RaterError, match=r"returned 2, the index of the best; a ranking query needs all in order"):
        said(2, ranking)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (0.7, r"returned '?0\.7'?; expected 0 \(a is better\), 1 \(b is better\) or None"),
        (2, "returned '?2"),
        (True, r"returned '?True.*give int\(\.\.\.\)"),
        ("a", "returned"),
        (np.float32(1), "returned"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_function_and_the_query(answer: Any, message: str) -> None:
    query = Query(prompt="Which?", responses=("a", "b"), round=3, index=7)
    where = rf"rater 'mine' could not judge query {query.id} \(round 3, index 7, prompt 'Which\?'\): the function "
    with pytest.raises(RaterError, match=where + message):
        judged(lambda prompt, a, b: answer, query)


@pytest.mark.parametrize("answer", [3, -1, [0, 0], [], [[0], []], [0, 5], "ab", 0.0, {0: 1}])
def test_what_is_no_order_is_refused(answer: Any) -> None:
    with pytest.raises(RaterError, match=r"expected the index of the best \(0 to 2\), a ranking"):
        judged(lambda prompt, responses: answer, Query(prompt="p", responses=("a", "b", "c"), query_type="ranking"))


def test_a_batch_of_the_wrong_length_is_refused() -> None:
    query = Query(prompt="p", responses=("a", "b"))
    with pytest.raises(RaterError, match="the function returned 2 answers; expected a list of 1 answers, one for each"):
        judged(lambda prompts, a, b: [0, 1], query)
    with pytest.raises(RaterError, match="the function returned an object of type int; expected a list of 1"):
        judged(lambda prompts, responses: 1, query)


@pytest.mark.parametrize("shape", ["plain", "async", "all candidates"])
def test_an_error_names_the_query_and_loses_no_answer(shape: str, tmp_path: Path) -> None:
    queries = [Query(prompt=f"p{i}", responses=("a", "aa"), index=i) for i in range(6)]
    broken, calls = {"p4"}, list[str]()

    def plain(prompt: str, a: str, b: str) -> int | None:
        calls.append(prompt)
        if prompt in broken:
            raise ValueError("no idea")
        return longer(prompt, a, b)

    async def slow(prompt: str, a: str, b: str) -> int | None:
        return plain(prompt, a, b)

    functions = {"plain": plain, "async": slow, "all candidates": lambda prompt, responses: plain(prompt, *responses)}
    rater = FunctionRater(functions[shape], name="mine", batch_size=3)
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        with pytest.raises(
            RaterError,
            match=rf"'mine' .*query {queries[4].id} .*'p4'\): .* raised ValueError: no idea \[test_raters_function",
        ):
            ask(rater, queries, store)
        assert store.count().judgements == (5 if shape == "async" else 4)  # all of a batch were under way
        broken.clear()
        calls.clear()
        ask(rater, queries, store)
        assert store.count().judgements == 6
        assert calls == (["p4"] if shape == "async" else ["p4", "p5"])


def test_a_slow_function_s_answers_are_returned_one_by_one() -> None:
    queries = [Query(prompt="p", responses=("a", "aa", "aaa"), query_type="ranking", index=i) for i in range(3)]
    rater = FunctionRater(longer)
    tickets = rater.submit(queries)
    for left in (3, 2, 1):  # no time at all: one query is answered, whole
        [judgement] = rater.collect(tickets[3 - left :], timeout=0)
        assert (judgement.query_id, judgement.ranking) == (queries[3 - left].id, ((2,), (1,), (0,)))


@pytest.mark.parametrize("shape", ["plain", "batched"])
def test_a_function_that_exits_is_an_error_too(shape: str) -> None:
    functions: dict[str, Callable[..., Any]] = {
        "plain": lambda prompt, a, b: sys.exit("enough"), "batched": lambda prompts, a, b: sys.exit("enough"),
    }  # fmt: skip
    with pytest.raises(RaterError, match="the function raised SystemExit: enough"):
        judged(functions[shape], Query(prompt="p", responses=("a", "b")))


class Stubborn:
    """A rater of the user's own that answers some queries and then raises."""

    name = "pool/stubborn"

    def __init__(self, failing: str) -> None:
        self.failing = failing

    def submit(self, queries: Sequence[Query]) -> list[Ticket]:
        if self.failing == "submit":
            raise OSError("no line")
        return [Ticket(query.id, self.name) for query in queries]

    def collect(self, tickets: Sequence[Ticket], timeout: float | None = None) -> list[Judgement]:
        raise OSError("no line")


@pytest.mark.parametrize("failing", ["submit", "collect"])
def test_a_rater_of_one_s_own_that_raises_is_named(tmp_path: Path, failing: str) -> None:
    queries = [Query(prompt="p", responses=("a", "aa"), index=i) for i in range(12)]
    message = r"rater 'pool/stubborn' raised OSError: no line \[test_raters_function\.py, line \d+\]"
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        with pytest.raises(RaterError, match=message):
            ask(Stubborn(failing), queries, store)
        pool = RaterPool("pool", [longer, Stubborn(failing)])
        queries.sort(key=lambda query: pool.assigned(query) != ["pool/longer"])  # who has the first is asked first
        with pytest.raises(RaterError, match=message):
            ask(pool, queries, store)
        if failing == "collect":  # what other members of a pool have answered is stored
            asked_first = [query.id for query in queries if pool.assigned(query) == ["pool/longer"]]
            assert 0 < len(asked_first) < 12
            assert {judgement.query_id for judgement in store.judgements()} == set(asked_first)


def test_async_functions_answer_a_batch_at_once() -> None:
    together, most = 0, 0

    async def slow(prompt: str, a: str, b: str) -> int:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.01)
        together -= 1
        return 0

    judged(slow, *(Query(prompt="p", responses=("a", "b"), index=i) for i in range(20)))
    assert most == 20


@pytest.mark.parametrize("wrong", [lambda: 0, lambda a: 0, lambda a, b, c, d: 0, lambda p, a, b, *, needed: 0, len])
def test_functions_of_other_shapes_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"is a function whose parameters .*; expected \(prompt, a, b\)"):
        as_rater(wrong)


def test_what_is_a_rater_and_what_makes_one() -> None:
    rater = SimulatedRater(lambda prompts, responses: [0.0] * len(prompts))
    assert as_rater(rater) is rater
    assert isinstance(as_rater(longer), Rater)
    assert as_rater(longer).name == "longer"
    assert as_rater(Longer()).name == "Longer"
    with pytest.raises(ConfigError, match="got the class Longer; give an object of it"):
        as_rater(Longer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got str"):
        as_rater("longer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        FunctionRater(longer, batch_size=0)
    assert [is_factory(thing) for thing in (Longer, lambda reward, seed: 0, lambda **options: 0)] == [True] * 3
    assert not any(is_factory(thing) for thing in (*SHAPES, rater, 3))


def test_other_query_types_are_refused() -> None:
    with pytest.raises(
        FeedbackError, match="'longer' is a function and answers pair, ranking, best queries; got rating"
    ):
        as_rater(longer).submit([Query(prompt="p", responses=("a", "b"), query_type="rating")])
    rater = as_rater(longer)
    tickets = rater.submit([Query(prompt="p", responses=("a", "b"))])
    rater.collect(tickets)
    with pytest.raises(FeedbackError, match="is not open at rater 'longer'"):
        rater.collect(tickets)
    with pytest.raises(ConfigError, match="the function 'longer' compares responses; a function that scores"):
        RaterReward(longer)


def test_functions_in_pools_and_in_ask(tmp_path: Path) -> None:
    queries = [Query(prompt="p", responses=("a", "aa"), index=i) for i in range(12)]
    like = SimulatedRater(lambda prompts, responses: [len(r) for r in responses], name="pool/simulated")
    pool = RaterPool("pool", [longer, by_length, like])
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        assert ask(pool, queries, store) == 12
        assert {j.rater for j in store.judgements()} == {"pool/longer", "pool/by_length", "pool/simulated"}
        assert ask(longer, queries, store) == 12
        assert {j.choice for j in store.judgements(rater="longer")} == {1}


MINE = """
def longer(prompt, a, b):
    return None if len(a) == len(b) else int(len(b) > len(a))

async def by_length(prompt, responses):
    return sorted(range(len(responses)), key=lambda i: -len(responses[i]))

def make(reward, seed):
    return longer

def broken(prompt, a, b):
    return 0.5
"""


def test_functions_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line, by relative path, from a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "mine.py").write_text(MINE)
    settings = tiny_settings(
        model, sampling={"candidates": 3, "prompts": 12}, agent={"iterations": 1, "checkpoint_every": 1}
    )
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    for name in ("by_length", "make"):
        code = main(["run", "--config", "run.yaml", "--rater", f"mine.py:{name}", "--out", name])
        assert code == 0, capsys.readouterr().err
        with FeedbackStore(tmp_path / name / "feedback.sqlite", read_only=True) as store:
            assert {j.rater for j in store.judgements()} == {"longer" if name == "make" else name}
            assert all(len(p.chosen) >= len(p.rejected) for p in store.preferences())
            assert store.count().judgements == 12
    assert main(["run", "--config", "run.yaml", "--rater", "mine.py:broken", "--out", "broken"]) != 0
    assert "rater 'broken' could not judge query" in capsys.readouterr().err
    refused = ("--rater", "mine.py:longer", "--set", "rater.query_type=thumbs", "--out", "thumbs")
    assert main(["run", "--config", "run.yaml", *refused]) != 0
    assert "the function 'mine.py:longer' does not answer thumbs queries" in capsys.readouterr().err
    assert not (tmp_path / "thumbs" / "round-1").exists()


FAILING = """
from pathlib import Path

calls = 0

def make(reward, seed):
    raise KeyError("no key for the service")

def flaky(prompt, a, b):
    global calls
    calls += 1
    if calls > 5 and not Path("mended").exists():
        raise TimeoutError("no answer")
    return int(len(b) > len(a))
"""


class Service:
    """A rater's class that cannot be made."""

    def __init__(self, reward: Any, seed: int) -> None:
        raise SystemExit("no key")


def test_a_class_that_raises_is_named() -> None:
    config = RaterConfig(name=f"{__file__}:Service")
    message = (
        r"^rater '.*:Service': the class, called with reward and seed, raised SystemExit: no key \[test_raters_function"
    )
    with pytest.raises(ConfigError, match=message):
        find_rater(config, lambda prompts, responses: [0.0] * len(prompts), None, 0)


def test_a_rater_that_raises_ends_a_run_with_one_message_and_loses_no_judgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FAILING)
    settings = tiny_settings(
        save_tiny_model(tmp_path / "model"), rater={"query_type": "pair"},
        agent={"iterations": 1, "checkpoint_every": 1},
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    for name, message in (
        ("make", "rater 'mine.py:make': the factory, called with reward and seed, raised KeyError: "),
        ("flaky", "rater 'flaky' could not judge query"),
    ):
        assert main(["run", "--config", "run.yaml", "--rater", f"mine.py:{name}", "--out", name]) == 2
        [said] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlhf-gym: ")]
        assert message in said
        assert "[mine.py, line " in said
    (tmp_path / "mended").touch()
    with FeedbackStore(tmp_path / "flaky" / "feedback.sqlite", read_only=True) as store:
        kept = store.judgements()
    assert len(kept) == 5
    assert main(["run", "--out", "flaky", "--resume"]) == 0, capsys.readouterr().err
    with FeedbackStore(tmp_path / "flaky" / "feedback.sqlite", read_only=True) as store:
        assert store.count().judgements == store.count().queries == 12
        assert store.judgements()[:5] == kept


@pytest.mark.parametrize(
    ("name", "query_type", "message"),
    [
        ("simulated", "thumbs", "a simulated rater does not answer thumbs queries"),
        ("oracle", "edit", r"expected pair, ranking, best, rating, or people on the rating page \(--rater web\)"),
        ("terminal", "thumbs", "the terminal does not answer thumbs queries"),
        ("judge:http://localhost:1/v1", "edit", "a judge does not answer edit queries"),
    ],
)
def test_query_types_that_a_runs_rater_does_not_answer_are_refused_before_any_work(
    name: str, query_type: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rater(RaterConfig(name=name, query_type=query_type))


@pytest.mark.parametrize("query_type", ["thumbs", "edit", "rating"])
def test_people_answer_every_query_type(query_type: Any) -> None:
    check_rater(RaterConfig(name="web", query_type=query_type))
