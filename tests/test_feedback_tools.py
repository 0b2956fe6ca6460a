"""Annotation tools: their exports are read, ours are in their form."""

from __future__ import annotations

from typing import Any

from test_feedback_formats import everything, pair, ranking

from rlhf_gym.feedback.exchange.formats import to_records
from rlhf_gym.feedback.exchange.incoming import from_records
from rlhf_gym.feedback.queries import Judgement, Query

# As Label Studio exports a project: two people on one task, one of whom gave it back.
TASK: dict[str, Any] = {
    "id": 7,
    "data": {"prompt": "Why?", "answer1": "Because.", "answer2": "No.", "source": "forum"},
    "annotations": [
        {
            "id": 31, "completed_by": {"id": 4, "email": "someone@example.org"}, "was_cancelled": False, "lead_time": 12.5,
            "created_at": "2026-01-02T03:04:05.123456Z",
            "result": [
                {"value": {"selected": "right"}, "id": "aB3", "from_name": "comparison", "to_name": "comparison",
                 "type": "pairwise", "origin": "manual"},
                {"value": {"text": ["shorter", "kinder"]}, "from_name": "why", "to_name": "prompt", "type": "textarea"},
                {"value": {"text": ["sure"]}, "from_name": "how", "to_name": "prompt", "type": "textarea"},
            ],
        },
        {"id": 32, "completed_by": 5, "was_cancelled": True, "lead_time": None, "result": []},
        {"id": 33, "completed_by": 5, "result": []},
    ],
    "predictions": [],
}  # fmt: skip


def test_label_studio_exports_are_read() -> None:
    found = from_records([TASK, {"data": TASK["data"], "annotations": []}], "label-studio", round=2)
    assert found.dropped == {"annotations without a comparison": 1, "tasks without an annotation": 1}
    first, second = found.judgements
    assert found.queries[0] == found.queries[1]
    query = found.queries[0]
    assert (query.prompt, query.responses, query.round) == ("Why?", ("Because.", "No."), 2)
    assert query.columns == {"source": "forum"}
    assert (first.choice, first.rater, first.seconds, first.reason) == (1, "user-4", 12.5, "shorter\nkinder\nsure")
    assert first.created_at.isoformat() == "2026-01-02T03:04:05.123456+00:00"
    assert (second.skipped, second.rater) == (True, "user-5")
    assert "example.org" not in repr(found)


def test_label_studio_tasks_have_the_form_it_reads() -> None:
    records, dropped = to_records([*pair(0, choice=1, reason="kinder"), *ranking(((2,), (0, 1)))], "label-studio")
    assert dropped == {"ties": 1}
    assert records[0]["data"] == {"prompt": "Why?", "answer1": "Because.", "answer2": "No.", "rater": "ann"}
    [annotation] = records[0]["annotations"]
    assert len({region.pop("id") for region in annotation["result"]}) == 2
    assert annotation["result"] == [
        {"from_name": "comparison", "to_name": "comparison", "type": "pairwise", "value": {"selected": "right"}},
        {"from_name": "reason", "to_name": "prompt", "type": "textarea", "value": {"text": ["kinder"]}},
    ]
    assert (annotation["lead_time"], annotation["was_cancelled"]) == (2.0, False)
    # c over a and c over b: the better one stands right, as it stood in the query
    assert [r["annotations"][0]["result"][0]["value"]["selected"] for r in records[1:]] == ["right", "right"]


def test_label_studio_signs_ours_only() -> None:
    """A task of ours that others have annotated there too, as it comes back."""
    [task], _ = to_records(pair(0, choice=1), "label-studio")
    [mine] = task["annotations"]
    assert [j.rater for j in from_records([task], "label-studio").judgements] == ["ann"]
    theirs = {**mine, "id": 8, "completed_by": 4}
    both = {**task, "id": 3, "annotations": [{**mine, "id": 7, "completed_by": 1}, theirs]}
    assert [j.rater for j in from_records([both], "label-studio").judgements] == ["user-1", "user-4"]
    both = {**task, "id": 3, "annotations": [mine, theirs]}
    assert [j.rater for j in from_records([both], "label-studio").judgements] == ["ann", "user-4"]


def test_label_studio_and_back() -> None:
    records, dropped = to_records(everything(), "label-studio")
    assert dropped == {"ties": 2}
    found = from_records(records, "label-studio")
    assert [j.skipped for j in found.judgements].count(True) == 1
    said = [(q.responses, j.choice, j.rater, j.seconds) for q, j in zip(found.queries, found.judgements, strict=True)]
    assert said[0] == (("Because.", "No."), 0, "ann", 2.0)
    assert said[1] == (("Because.", "No."), 1, "ann", 2.0)


def rated(*results: Any, data: dict[str, Any] | None = None) -> list[Any]:
    """What Label Studio's annotations of a response (or two) become: ratings by control, skips, reasons of what is dropped."""
    task = {"data": data or {"prompt": "P", "response": "r"}, "annotations": [
        {"completed_by": 3, "result": result, "was_cancelled": result == []} for result in results]}  # fmt: skip
    found = from_records([task], "auto")
    assert {(q.prompt, q.query_type) for q in found.queries} <= {("P", "rating")}
    return [*("skip" if j.skipped else dict(j.ratings or {}) for j in found.judgements), *found.dropped]


def control(kind: str, value: Any, name: str = "quality", to: str = "response") -> dict[str, Any]:
    return {"type": kind, "value": {kind: value}, "from_name": name, "to_name": to}


def test_label_studio_ratings_of_one_response() -> None:
    two = [control("rating", 4, "helpful"), control("number", 0.5, "length")]
    assert rated([control("rating", 3)], two, []) == [{"quality": (3,)}, {"helpful": (4,), "length": (0.5,)}, "skip"]
    words = ("Good", "Thumbs-down", "yes", "4", "2 - poor", "3.5 stars")
    assert rated(*([control("choices", [word])] for word in words)) == [
        {"quality": (value,)} for value in (1, 0, 1, 4, 2, 3.5)
    ]
    nothing = "annotations without a rating or a choice of good or bad"
    assert rated([control("choices", ["poetry"])], [control("choices", [])]) == [nothing]
    of_each = [control("rating", 5, "stars_answer1", "answer1"), control("rating", 1, "stars_answer2", "answer2")]
    assert rated(of_each, of_each[1:], data={"prompt": "P", "answer1": "a", "answer2": "b"}) == [
        {"stars": (5, 1)}, {"stars": (None, 1)}
    ]  # fmt: skip


def test_label_studio_ratings_in_json_min() -> None:
    row = {"id": 1, "prompt": "P", "answer": "r", "annotator": 2, "annotation_id": 9, "lead_time": 2.5}
    rows = [{**row, "stars": [{"rating": 4}]}, {**row, "quality": "bad"}, {**row, "topic": "good"}]
    found = from_records(rows, "auto")
    assert [(q.responses, j.ratings, j.rater) for q, j in zip(found.queries, found.judgements, strict=True)] == [
        (("r",), {"stars": (4,)}, "user-2"), (("r",), {"quality": (0,)}, "user-2")
    ]  # fmt: skip
    assert found.dropped == {"annotations without a rating or a choice of good or bad": 1}


# As `dataset.records.to_json` of Argilla 2 writes a record that three people have opened.
RECORD: dict[str, Any] = {
    "id": "r1",
    "fields": {"instruction": "Rank.", "response1": "a", "response2": "b", "response10": "c"},
    "metadata": {"source": "forum"},
    "suggestions": {},
    "responses": {
        "ranking": [
            {"value": ["response10", "response1", "response2"], "user_id": "u1", "status": "submitted"},
            {"value": [{"value": "response2"}, {"value": "response1"}, {"value": "response10"}], "user_id": "u2",
             "status": "submitted"},
            {"value": None, "user_id": "u3", "status": "discarded"},
            {"value": ["response1"], "user_id": "u4", "status": "draft"},
        ]
    },
    "vectors": {}, "status": "completed", "_server_id": "x",
}  # fmt: skip


def test_argilla_exports_are_read() -> None:
    found = from_records([RECORD, {"fields": {"instruction": "?", "response1": "x", "response2": "y"}}], "argilla")
    assert found.dropped == {"drafts": 1, "records without a ranking, a rating or a choice of one response": 1}
    assert {q.responses for q in found.queries} == {("a", "b", "c")}
    assert [(j.rater, j.ranking, j.skipped) for j in found.judgements] == [
        ("user-u1", ((2,), (0,), (1,)), False),
        ("user-u2", ((1,), (0,), (2,)), False),
        ("user-u3", None, True),
    ]


def test_argilla_records_have_the_form_it_reads() -> None:
    query = Query(prompt="Rank.", responses=("a", "b", "c"), query_type="ranking")
    ranked = (query, Judgement(query_id=query.id, rater="bob", ranking=((2,), (0,), (1,))))
    records, dropped = to_records([ranked, *pair(0, choice=1), *pair(1, tie=True), *pair(2, skipped=True)], "argilla")
    assert dropped == {"ties": 1}
    assert records[0]["fields"] == {"instruction": "Rank.", "response1": "a", "response2": "b", "response3": "c"}
    [said] = records[0]["responses"]["ranking"]
    assert (said["value"], said["status"]) == (["response3", "response1", "response2"], "submitted")
    assert set(said) == {"value", "user_id", "status"}
    assert records[1]["responses"]["ranking"][0]["value"] == ["response2", "response1"]
    assert records[2]["responses"]["ranking"][0] | {"user_id": ""} == {
        "value": None,
        "user_id": "",
        "status": "discarded",
    }
    found = from_records(records, "argilla")
    assert [(j.rater, j.ranking, j.choice, j.skipped) for j in found.judgements] == [
        ("bob", ((2,), (0,), (1,)), None, False),
        ("ann", None, 1, False),
        ("ann", None, None, True),
    ]


def test_argilla_keeps_ratings() -> None:
    query = Query(prompt="?", responses=("a", "b"), query_type="rating")
    said = {"helpful": (4.0, None), "not_rude": (0, 10)}
    rated = (query, Judgement(query_id=query.id, rater="ann", ratings=said))
    single = Query(prompt="?", responses=("a",), query_type="rating", index=1)
    alone = (single, Judgement(query_id=single.id, rater="ann", skipped=True))
    thumb = Query(prompt="?", responses=("a",), query_type="thumbs", index=2)
    down = (thumb, Judgement(query_id=thumb.id, rater="ann", ratings={"overall": (0,)}))
    records, dropped = to_records([rated, alone, down], "argilla")
    assert dropped == {}
    values = {name: [one["value"] for one in responses] for name, responses in records[0]["responses"].items()}
    assert values == {"helpful_1": [4], "not_rude_1": [0], "not_rude_2": [10]}
    found = from_records(records, "argilla")
    assert [(q.query_type, len(q.responses)) for q in found.queries] == [("rating", 2), ("rating", 1), ("rating", 1)]
    assert [(j.rater, j.ratings, j.skipped) for j in found.judgements] == [
        ("ann", said, False),
        ("ann", None, True),
        ("ann", {"overall": (0,)}, False),
    ]
    # What is not on Argilla's scale: pairs where there are any, counted where there are none.
    halves = (query, Judgement(query_id=query.id, rater="ann", ratings={"helpful": (4.5, 2.0)}))
    half = (single, Judgement(query_id=single.id, rater="ann", ratings={"helpful": (11,)}))
    records, dropped = to_records([halves, half], "argilla")
    assert dropped == {"ratings that are not whole numbers from 0 to 10": 1}
    assert [record["responses"]["ranking"][0]["value"] for record in records] == [["response1", "response2"]]


def test_argilla_ratings_of_several_people_are_read() -> None:
    """Fields and questions named as in Argilla's own examples; its exports do not tell who discarded."""
    people = ("u1", "u2")
    rated = {
        "fields": {"prompt": "?", "response_1": "a", "response_2": "b"}, "metadata": {}, "suggestions": {}, "vectors": {},
        "responses": {
            "rating_1": [{"value": v, "user_id": u} for u, v in zip(people, (5, 2), strict=True)],
            "rating_2": [{"value": 3, "user_id": "u1"}],
            "rationale_1": [{"value": "clear", "user_id": "u1"}],
        },
    }  # fmt: skip
    found = from_records([rated], "argilla")
    assert [(q.prompt, q.responses) for q in found.queries] == [("?", ("a", "b"))] * 2
    assert [(j.rater, j.ratings) for j in found.judgements] == [
        ("user-u1", {"rating": (5, 3)}),
        ("user-u2", {"rating": (2, None)}),
    ]
    one = {
        "fields": {"input": "?", "response": "a"},
        "responses": {"quality": [{"value": 4, "user_id": "u"}], "label": [{"value": "good", "user_id": "u"}]},
    }
    found = from_records([one], "argilla")
    assert [(j.rater, j.ratings) for j in found.judgements] == [("user-u", {"quality": (4,)})]


def test_argilla_signs_ours_only() -> None:
    [record], _ = to_records(pair(0, choice=1), "argilla")
    record["responses"]["ranking"].append(
        {"value": ["response1", "response2"], "user_id": "someone", "status": "submitted"}
    )
    assert [(j.rater, j.choice) for j in from_records([record], "argilla").judgements] == [
        ("ann", 1),
        ("user-someone", 0),
    ]
