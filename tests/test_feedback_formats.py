"""Exchange formats: what a format can hold comes back; what it cannot is counted and named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.feedback import FeedbackStore, Judgement, Query, preferences_from
from rlhf_gym.feedback.exchange.files import export_feedback, import_feedback
from rlhf_gym.feedback.exchange.formats import to_records
from rlhf_gym.feedback.exchange.incoming import Imported, from_records

NASTY = 'quote " newline \n tab \t separator \u2028 é 💡 lone \ud800'
Answers = list[tuple[Query, Judgement]]


def pair(i: int, prompt: str = "Why?", responses: tuple[str, str] = ("Because.", "No."), **answer: Any) -> Answers:
    query = Query(prompt=prompt, responses=responses, index=i, model_versions=("m", "n"))
    return [(query, Judgement(query_id=query.id, rater="ann", order_shown=(1, 0), seconds=2.0, **answer))]


def ranking(groups: tuple[tuple[int, ...], ...]) -> Answers:
    query = Query(prompt="Rank.", responses=("a", "b", "c"), query_type="ranking", index=50)
    return [(query, Judgement(query_id=query.id, rater="bob", ranking=groups))]


def everything() -> Answers:
    return [
        *pair(0, choice=0),
        *pair(1, choice=1, strength=2.0),
        *pair(2, tie=True),
        *pair(3, skipped=True),
        *pair(4, NASTY, (NASTY, NASTY + "!"), choice=1, reason=NASTY),
        *ranking(((2,), (0, 1))),
    ]


def edges(found: Imported) -> list[tuple[str, str, str, bool]]:
    every = [preferences_from(q, j) for q, j in zip(found.queries, found.judgements, strict=True)]
    return [(p.prompt, p.chosen, p.rejected, p.tie) for group in every for p in group]


def test_native_loses_nothing(tmp_path: Path) -> None:
    answers = everything()
    rated = Query(prompt="p", responses=("a", "b"), query_type="rating", columns={"x": [1, {"y": None}]}, round=4)
    answers.append((rated, Judgement(query_id=rated.id, rater="z", ratings={"h": (1.0, None)}, details={"k": 1})))
    first = answers[0]
    answers.append((first[0], Judgement(query_id=first[0].id, rater="ann", tie=True, supersedes=first[1].id)))
    done = export_feedback(answers, tmp_path / "all.jsonl", "native")
    assert (done.written, done.dropped) == (8, {})
    found = import_feedback(tmp_path / "all.jsonl", "native")
    assert list(zip(found.queries, found.judgements, strict=True)) == answers
    with FeedbackStore(tmp_path / "feedback.sqlite") as store:
        assert (store.add_queries(found.queries), store.add_judgements(found.judgements)) == (7, 8)


@pytest.mark.parametrize("form", ["trl-explicit", "trl-conversational"])
def test_trl_keeps_prompts_choices_and_margins(form: str) -> None:
    records, dropped = to_records(everything(), form)
    assert dropped == {"ties": 2, "skips": 1}
    found = from_records(records, form, rater="carol")
    assert edges(found) == [
        ("Why?", "Because.", "No.", False),
        ("Why?", "No.", "Because.", False),
        (NASTY, NASTY + "!", NASTY, False),
        ("Rank.", "c", "a", False),
        ("Rank.", "c", "b", False),
    ]
    assert [j.strength for j in found.judgements] == [None, 2.0, None, None, None]
    assert {j.rater for j in found.judgements} == {"carol"}
    # The first two rows compare the same two responses, the one otherwise than the other: two answers to one query.
    assert len({q.id for q in found.queries}) == 4
    assert len({j.id for j in found.judgements}) == 5
    assert to_records(list(zip(found.queries, found.judgements, strict=True)), form)[0] == records


def test_trl_shapes_are_those_of_its_documentation() -> None:
    answers = pair(0, "The sky is", (" blue.", " green."), choice=0)
    assert to_records(answers, "trl-explicit")[0] == [
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    ]
    assert to_records(answers, "trl-implicit")[0] == [{"chosen": "The sky is blue.", "rejected": "The sky is green."}]
    assert to_records(answers, "trl-conversational")[0] == [
        {
            "prompt": [{"role": "user", "content": "The sky is"}],
            "chosen": [{"role": "assistant", "content": " blue."}],
            "rejected": [{"role": "assistant", "content": " green."}],
        }
    ]
    assert to_records(answers, "trl-unpaired")[0] == [
        {"prompt": "The sky is", "completion": " blue.", "label": True},
        {"prompt": "The sky is", "completion": " green.", "label": False},
    ]


def test_trl_implicit_prompts_are_the_common_beginning() -> None:
    texts = {"chosen": "The sky is blue.", "rejected": "The sky is green.", "margin": -1.0, "source": "test"}
    found = from_records([texts], "trl-implicit")
    assert edges(found) == [("The sky is", " blue.", " green.", False)]
    assert (found.queries[0].columns, found.judgements[0].details) == ({"source": "test"}, {"margin": -1.0})
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sky?"}]
    sides = {side: [*talk, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    found = from_records([sides], "trl-implicit")
    assert edges(found) == [("\n\nSystem: Be brief.\n\nHuman: Sky?\n\nAssistant:", "chosen", "rejected", False)]
    answers = list(zip(found.queries, found.judgements, strict=True))
    # The messages themselves are kept, and written as they came.
    assert to_records(answers, "trl-conversational")[0] == [
        {"prompt": talk, **{side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}}
    ]
    long = {"prompt": talk, "chosen": talk, "rejected": talk}
    assert from_records([long], "trl-explicit").dropped == {"responses of several messages": 1}


def test_trl_unpaired_is_a_thumb() -> None:
    thumbs: list[dict[str, Any]] = [
        {"prompt": "p", "completion": "good", "label": True},
        {"prompt": "p", "completion": "bad", "label": False},
    ]
    found = from_records(thumbs, "trl-unpaired")
    assert [j.ratings for j in found.judgements] == [{"overall": (1.0,)}, {"overall": (0.0,)}]
    answers = list(zip(found.queries, found.judgements, strict=True))
    assert to_records(answers, "trl-unpaired") == (thumbs, {})
    query = Query(prompt="p", responses=("a",), query_type="rating")
    graded = [(query, Judgement(query_id=query.id, rater="ann", ratings={"overall": (4.0,)}))]
    assert to_records(graded, "trl-unpaired") == ([], {"ratings other than 0 (thumb down) and 1 (thumb up)": 1})


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sky?\n\nAssistant:"


def test_hh_splits_at_the_last_turn_and_comes_back_verbatim(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"chosen": f"{HH} Blue.", "rejected": f"{HH}  Green "},
        {"chosen": f"{HH} Blue.", "rejected": f"\n\nHuman: Other\n\nAssistant: {HH}"},
        {"chosen": f"{HH} ", "rejected": f"{HH} x"},
        {"chosen": "no turn", "rejected": f"{HH} x"},
    ]
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    found = import_feedback(path, "hh")
    assert edges(found) == [(HH, " Blue.", "  Green ", False)]
    assert found.dropped == {
        "pairs whose prompts differ": 1,
        "pairs with an empty response": 1,
        "transcripts without an assistant's turn": 1,
    }
    answers = list(zip(found.queries, found.judgements, strict=True))
    assert to_records(answers, "hh") == (rows[:1], {})


def test_hh_writes_plain_prompts_as_transcripts() -> None:
    answers = pair(0, choice=1) + pair(1, responses=("ok", "x\n\nAssistant: me again"), choice=0)
    assert to_records(answers, "hh") == (
        [{"chosen": "\n\nHuman: Why?\n\nAssistant: No.", "rejected": "\n\nHuman: Why?\n\nAssistant: Because."}],
        {"responses that hold a turn of their own": 1},
    )


def test_alpacafarm_keeps_ties_skips_raters_and_the_order() -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Add.", "input": "1 2", "output_1": "3", "output_2": "4", "preference": 1, "annotator": "a"},
        {"instruction": "Add.", "input": "", "output_1": "3", "output_2": "4", "preference": 2, "annotator": "b"},
        {"instruction": "Add.", "input": "", "output_1": "3", "output_2": "4", "preference": 1.5, "annotator": "b"},
        {"instruction": "Add.", "input": "", "output_1": "3", "output_2": "4", "preference": None, "annotator": "b"},
        {"instruction": "Add.", "input": "", "output_1": "3", "output_2": "4", "preference": 1.03, "annotator": "b"},
    ]
    found = from_records(rows, "alpacafarm")
    assert found.queries[0].prompt == "Add.\n\n1 2"
    assert [(j.choice, j.tie, j.skipped) for j in found.judgements] == [
        (0, False, False),
        (1, False, False),
        (None, True, False),
        (None, False, True),
        (0, False, False),
    ]
    assert to_records(list(zip(found.queries, found.judgements, strict=True)), "alpacafarm") == (rows, {})
    [tie] = from_records([{**rows[0], "preference": 0}], "alpacafarm").judgements
    assert tie.tie
    reason = "preferences that are neither 0 nor within 1..2"
    assert from_records([{**rows[0], "preference": 3}], "alpacafarm").dropped == {reason: 1}
    # Pairs of a ranking are written in the query's order: the better one is not always first.
    records, _ = to_records(ranking(((2,), (0, 1))), "alpacafarm")
    assert [(r["output_1"], r["output_2"], r["preference"]) for r in records] == [
        ("a", "c", 2),
        ("b", "c", 2),
        ("a", "b", 1.5),
    ]


def test_openai_summarize() -> None:
    row = {
        "info": {"id": "t3", "post": "A long story.", "title": "T", "subreddit": "r"},
        "summaries": [{"text": "s0", "policy": "sup4"}, {"text": "s1", "policy": "ref"}],
        "choice": 1,
        "worker": "w17",
        "batch": "b3",
        "split": "train",
        "extra": {"confidence": 7},
    }
    found = from_records([row, {**row, "choice": None}], "openai-summarize")
    assert found.dropped == {"records that do not compare two summaries": 1}
    query, judgement = found.queries[0], found.judgements[0]
    assert (query.prompt, query.responses, query.model_versions) == ("A long story.", ("s0", "s1"), ("sup4", "ref"))
    assert (judgement.choice, judgement.rater) == (1, "w17")
    assert to_records([(query, judgement)], "openai-summarize") == ([row], {})
    records, dropped = to_records(everything(), "openai-summarize")
    assert (len(records), dropped) == (5, {"ties": 2, "skips": 1})
