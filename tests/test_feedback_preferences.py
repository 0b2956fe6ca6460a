"""Queries, judgements and what they amount to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import Judgement, Preference, Query, check_judgement, preferences_from, preferences_of
from rlhf_gym.feedback.preferences import Demonstration, demonstration_from


def ask(query_type: Any, *responses: str) -> Query:
    return Query(prompt="p", responses=responses, query_type=query_type)


def said(query: Query, **answer: Any) -> Judgement:
    return Judgement(query_id=query.id, rater="ann", **answer)


def edges(query: Query, **answer: Any) -> list[tuple[str, str, float | None, bool]]:
    return [(p.chosen, p.rejected, p.margin, p.tie) for p in preferences_from(query, said(query, **answer))]


def test_query_ids_are_pinned() -> None:
    # Stored runs depend on these: an id that changes makes every resumed run ask everything again.
    assert Query(prompt="p", responses=("a", "b")).id == "a62c2b41e832a7a8754b4882b110105b"


def test_query_ids_depend_on_what_is_asked_and_nothing_else() -> None:
    base: dict[str, Any] = {"prompt": "p", "responses": ("a", "b"), "query_type": "pair", "round": 1, "index": 0}
    query = Query(**base)
    other: dict[str, Any] = {"prompt": "q", "responses": ("b", "a"), "query_type": "ranking", "round": 2, "index": 1}
    ids = {query.id} | {Query(**{**base, name: value}).id for name, value in other.items()}
    assert len(ids) == 6
    assert Query(**base, columns={"x": 1}, model_versions=("m", "n")).id == query.id
    assert Query(prompt="ab", responses=("c", "d")).id != Query(prompt="a", responses=("bc", "d")).id
    assert Query(prompt="\ud800", responses=("\0", "")).id
    assert Query(**base, id="mine").id == "mine"


def test_queries_that_cannot_be_asked() -> None:
    wrong: list[tuple[str, tuple[str, ...]]] = [
        ("pair", ("a",)), ("pair", ("a", "b", "c")), ("ranking", ("a",)), ("rating", ()), ("best", ("a",)),
        ("thumbs", ("a", "b")), ("edit", ()), ("edit", ("a", "b")),
    ]  # fmt: skip
    for query_type, responses in wrong:
        with pytest.raises(FeedbackError, match=f"a {query_type} query needs"):
            ask(query_type, *responses)
    with pytest.raises(FeedbackError, match="must be one of pair, ranking, rating, best, thumbs, edit; got 'duel'"):
        ask("duel", "a", "b")
    with pytest.raises(FeedbackError, match="model_versions must name 2"):
        Query(prompt="p", responses=("a", "b"), model_versions=("m",))


def test_pairs() -> None:
    query = ask("pair", "a", "b")
    assert edges(query, choice=1) == [("b", "a", None, False)]
    assert edges(query, choice=0, strength=3.0) == [("a", "b", 3.0, False)]
    assert edges(query, tie=True) == [("a", "b", None, True)]
    assert edges(query, skipped=True) == []
    assert preferences_from(query, said(query, choice=0)) == [Preference("p", "a", "b", None, False, query.id, "ann")]


def test_rankings() -> None:
    query = ask("ranking", "a", "b", "c", "d")
    assert edges(query, ranking=((2,), (0,), (3,), (1,))) == [
        (better, worse, None, False) for better, worse in ("ca", "cd", "cb", "ad", "ab", "db")
    ]
    # Ties share a group; whom the rater did not place ("c") is in no pair.
    assert edges(query, ranking=((3, 0), (1,))) == [
        ("d", "a", None, True),
        ("d", "b", None, False),
        ("a", "b", None, False),
    ]
    assert edges(query, ranking=((1,),)) == edges(query, skipped=True) == []


def test_ratings() -> None:
    query = ask("rating", "a", "b", "c")
    ratings = {"helpful": (1.0, 5.0, 1.0), "honest": (3.0, 1.0, None)}
    assert edges(query, ratings={"overall": (2.0, 4.5, 2.0)}) == [
        ("b", "a", 2.5, False),
        ("b", "c", 2.5, False),
        ("a", "c", None, True),
    ]
    judgement = said(query, ratings=ratings)
    assert [p.chosen for p in preferences_from(query, judgement, attribute="honest")] == ["a"]
    # The mean needs every attribute: (1 + 3) / 2 against (5 + 1) / 2; "c" was not rated for honesty.
    assert [(p.chosen, p.rejected, p.margin) for p in preferences_from(query, judgement)] == [("b", "a", 1.0)]
    assert preferences_from(query, judgement, attribute="unheard of") == []
    assert edges(ask("rating", "a"), ratings={"overall": (1.0,)}) == []


@given(st.permutations(range(5)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_a_ranking_gives_every_pair_once_and_never_against_its_order(order: list[int], joined: list[bool]) -> None:
    groups = [[order[0]]]
    for item, join in zip(order[1:], joined, strict=True):
        if join:
            groups[-1].append(item)
        else:
            groups.append([item])
    query = ask("ranking", *"01234")
    found = preferences_from(query, said(query, ranking=tuple(map(tuple, groups))))
    place = {str(item): rank for rank, group in enumerate(groups) for item in group}
    assert len({frozenset((p.chosen, p.rejected)) for p in found}) == len(found) == 10
    assert all(p.tie == (place[p.chosen] == place[p.rejected]) for p in found)
    assert all(place[p.chosen] <= place[p.rejected] for p in found)


def test_a_judgement_is_exactly_one_answer() -> None:
    query = ask("pair", "a", "b")
    with pytest.raises(FeedbackError, match=r"exactly one of .* got none"):
        said(query)
    with pytest.raises(FeedbackError, match="got choice and tie"):
        said(query, choice=0, tie=True)
    with pytest.raises(FeedbackError, match="printable"):
        Judgement(query_id="q", rater="a\nb", choice=0)
    with pytest.raises(FeedbackError, match="seconds must be a finite number"):
        said(query, choice=0, seconds=-1.0)
    with pytest.raises(FeedbackError, match="strength must be a finite number"):
        said(query, choice=0, strength=float("nan"))
    with pytest.raises(FeedbackError, match="time zone"):
        said(query, choice=0, created_at=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("query_type", "answer", "problem"),
    [
        ("pair", {"choice": 2}, r"choice must lie in 0\.\.1, got 2"),
        ("pair", {"choice": -1}, r"choice must lie in 0\.\.1, got -1"),
        ("pair", {"ranking": ((0,), (1,))}, "expected a pair answer, got a ranking answer"),
        ("ranking", {"tie": True}, "expected a ranking answer, got a tie answer"),
        ("ranking", {"ranking": ((0,), (0,))}, "each at most once"),
        ("ranking", {"ranking": ((0,), (2,))}, "out of 0..1"),
        ("ranking", {"ranking": ()}, "each at most once"),
        ("rating", {"ratings": {"overall": (1.0,)}}, "must be 2 finite numbers"),
        ("rating", {"ratings": {"overall": (1.0, float("inf"))}}, "must be 2 finite numbers"),
        ("rating", {"ratings": {}}, "at least one attribute"),
        ("pair", {"choice": 0, "order_shown": (0, 0)}, "order_shown must hold each of"),
    ],
)
def test_judgements_that_do_not_fit_their_query(query_type: Any, answer: dict[str, Any], problem: str) -> None:
    query = ask(query_type, "a", "b")
    with pytest.raises(FeedbackError, match=problem):
        check_judgement(query, said(query, **answer))
    with pytest.raises(FeedbackError, match="it answers query"):
        check_judgement(query, Judgement(query_id="another", rater="ann", skipped=True))


def test_the_best_of_several() -> None:
    query = ask("best", "a", "b", "c")
    assert edges(query, choice=1) == [("b", "a", None, False), ("b", "c", None, False)]
    assert edges(query, skipped=True) == []


def test_thumbs() -> None:
    query = ask("thumbs", "a")
    for value in (1, 0):
        check_judgement(query, said(query, ratings={"overall": (value,)}))
    assert edges(query, ratings={"overall": (1,)}) == []


def test_thumbs_of_one_prompt_and_round_amount_to_preferences() -> None:
    def thumb(
        response: str, up: int, *, rater: str = "ann", prompt: str = "p", number: int = 1
    ) -> tuple[Query, Judgement]:
        query = Query(prompt=prompt, responses=(response,), query_type="thumbs", round=number)
        return query, Judgement(query_id=query.id, rater=rater, ratings={"overall": (up,)})

    pair = ask("pair", "x", "y")
    skipped = Query(prompt="p", responses=("d",), query_type="thumbs")
    answers = [
        thumb("a", 1), thumb("b", 0), (pair, said(pair, choice=1)), thumb("c", 1), thumb("c", 0, rater="bob"),
        (skipped, said(skipped, skipped=True)), thumb("e", 0, prompt="another"), thumb("f", 1, number=2),
    ]  # fmt: skip
    first = answers[0][0].id
    assert preferences_of(answers) == [
        Preference("p", "y", "x", None, False, pair.id, "ann"),
        Preference("p", "a", "b", None, False, first, "ann"),
        Preference("p", "a", "c", None, False, first, "ann, bob"),  # all of its thumbs are up, and half of those of c
        Preference("p", "c", "b", None, False, first, "ann, bob"),
    ]


def test_edits_are_demonstrations_and_preferred_to_what_they_correct() -> None:
    query = ask("edit", "a")
    accepted, corrected = said(query, choice=0), said(query, choice=0, details={"edited": "better"})
    assert demonstration_from(query, accepted) == Demonstration("p", "a", False, query.id, "ann")
    assert demonstration_from(query, corrected) == Demonstration("p", "better", True, query.id, "ann")
    assert preferences_from(query, accepted) == []
    assert preferences_from(query, corrected) == [Preference("p", "better", "a", None, False, query.id, "ann")]
    unchanged = said(query, choice=0, details={"edited": "a"})
    assert demonstration_from(query, unchanged) == Demonstration("p", "a", False, query.id, "ann")
    assert demonstration_from(query, said(query, skipped=True)) is None
    forgotten = said(query, choice=0, details={"edited": True})  # the text was removed with its writer
    assert (demonstration_from(query, forgotten), preferences_from(query, forgotten)) == (None, [])
    pair = ask("pair", "a", "b")
    assert demonstration_from(pair, said(pair, choice=0)) is None


@pytest.mark.parametrize(
    ("query", "answer", "problem"),
    [
        (ask("best", "a", "b", "c"), {"tie": True}, "expected a best answer, got a tie answer"),
        (ask("best", "a", "b", "c"), {"choice": 3}, r"choice must lie in 0\.\.2"),
        (ask("thumbs", "a"), {"choice": 0}, "expected a thumbs answer, got a choice answer"),
        (ask("thumbs", "a"), {"ratings": {"overall": (5.0,)}}, "thumbs are"),
        (ask("thumbs", "a"), {"ratings": {"other": (1.0,)}}, "thumbs are"),
        (ask("edit", "a"), {"ratings": {"overall": (1.0,)}}, "expected an edit answer, got a rating answer"),
        (ask("edit", "a"), {"choice": 0, "details": {"edited": 5}}, "is the corrected text"),
        (ask("edit", "a"), {"skipped": True, "details": {"edited": "x"}}, "is the corrected text"),
        (ask("pair", "a", "b"), {"choice": 0, "details": {"edited": "x"}}, "is the corrected text"),
    ],
)
def test_answers_that_do_not_fit_the_newer_forms(query: Query, answer: dict[str, Any], problem: str) -> None:
    with pytest.raises(FeedbackError, match=problem):
        check_judgement(query, said(query, **answer))
