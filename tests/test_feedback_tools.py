"""Annotation tools: their exports are read, ours are in their form."""

from __future__ import annotations

from typing import Any

from test_feedback_formats import everything, pair, ranking

from rlhf_gym.feedback.formats import from_records, to_records
from rlhf_gym.feedback.query import Judgement, Query

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
    assert (first.choice, first.rater, first.seconds, first.reason) == (1, "user-4", 12.5, "shorter\nkinder")
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


def test_label_studio_and_back() -> None:
    records, dropped = to_records(everything(), "label-studio")
    assert dropped == {"ties": 2}
    found = from_records(records, "label-studio")
    assert [j.skipped for j in found.judgements].count(True) == 1
    said = [(q.responses, j.choice, j.rater, j.seconds) for q, j in zip(found.queries, found.judgements, strict=True)]
    assert said[0] == (("Because.", "No."), 0, "ann", 2.0)
    assert said[1] == (("Because.", "No."), 1, "ann", 2.0)


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
    assert found.dropped == {"drafts": 1, "records without a response to 'ranking'": 1}
    assert {q.responses for q in found.queries} == {("a", "b", "c")}
    assert [(j.rater, j.ranking, j.skipped) for j in found.judgements] == [
        ("user-u1", ((2,), (0,), (1,)), False),
        ("user-u2", ((1,), (0,), (2,)), False),
        ("user-u3", None, True),
    ]


def test_argilla_records_have_the_form_it_reads() -> None:
    query = Query(prompt="Rank.", responses=("a", "b", "c"), form="ranking")
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
