"""What people really have: a few rows in each data set's own shape, the format found by itself, and what each row says."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym.errors import FeedbackError
from rlhf_gym.feedback import preferences_from
from rlhf_gym.feedback.exchange.files import import_feedback
from rlhf_gym.feedback.exchange.incoming import AUTO, Imported, Rows, from_records
from rlhf_gym.feedback.exchange.record_files import read_records

Row = Mapping[str, Any]
Edge = tuple[str, str, str, bool]
U, A = "user", "assistant"


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def edges(found: Imported) -> list[Edge]:
    """Prompt, better and worse response, and whether they are equal (then in the order of their texts)."""
    every = [preferences_from(q, j) for q, j in zip(found.queries, found.judgements, strict=True)]
    return [
        (p.prompt, *(sorted((p.chosen, p.rejected)) if p.tie else (p.chosen, p.rejected)), p.tie)  # type: ignore[misc]
        for group in every
        for p in group
    ]


WON = [("P", "good", "bad", False)]
TALK = [{"role": "system", "content": "S"}, *said((U, "P"), (A, "ok"), (U, "Q"))]
TALK_TEXT = "\n\nSystem: S\n\nHuman: P\n\nAssistant: ok\n\nHuman: Q\n\nAssistant:"
TRANSCRIPT = "\n\nHuman: P\n\nAssistant: ok\n\nHuman: Q\n\nAssistant:"
SHAREGPT = [{"from": "human", "value": "P"}, {"from": "gpt", "value": "ok"}, {"from": "human", "value": "Q"}]
NODE = {"role": "prompter", "lang": "en", "deleted": False}
TREE = {
    "message_tree_id": "t", "tree_state": "ready_for_export",
    "prompt": {
        **NODE, "message_id": "t", "text": "P", "replies": [
            {"message_id": "b", "role": "assistant", "text": "bad", "rank": 1, "replies": [], "review_result": True},
            {"message_id": "g", "role": "assistant", "text": "good", "rank": 0, "review_result": True, "replies": [
                {**NODE, "message_id": "q", "text": "Q", "rank": None, "replies": [
                    {"message_id": "y", "role": "assistant", "text": "yes", "rank": 0, "replies": []},
                    {"message_id": "n", "role": "assistant", "text": "no", "rank": 1, "replies": []},
                    {"message_id": "s", "role": "assistant", "text": "spam", "rank": None, "replies": []},
                ]},
            ]},
        ],
    },
}  # fmt: skip
TREE_EDGES = [*WON, ("\n\nHuman: P\n\nAssistant: good\n\nHuman: Q\n\nAssistant:", "yes", "no", False)]


def flat(node: Row, parent: str | None = None) -> list[dict[str, Any]]:
    own = {k: v for k, v in node.items() if k != "replies"} | {"parent_id": parent, "message_tree_id": "t"}
    return [own, *(row for reply in node["replies"] for row in flat(reply, node["message_id"]))]


def ultra(model: str, response: str, helpfulness: str, honesty: str) -> dict[str, Any]:
    rated = {"helpfulness": {"Rating": helpfulness, "Type": ["1"]}, "honesty": {"Rating": honesty, "Rationale": "r"}}
    return {"model": model, "response": response, "overall_score": 8.5, "fine-grained_score": 4.0, "annotations": rated}


ARENA = {
    "question_id": "58",
    "model_a": "m",
    "model_b": "n",
    "judge": "arena_user_9",
    "turn": 1,
    "tstamp": 1682351591.1,
}
SHP = {"post_id": "x", "domain": "askculinary_test", "history": "P", "score_A": 9, "score_B": 4, "score_ratio": 2.25}
KAGGLE = {"id": 5, "model_a": "m", "model_b": "n", "prompt": '["P"]', "response_a": '["good"]', "response_b": '["bad"]'}
AXES = {"info": {"id": "t3", "post": "P", "title": "T"}, "worker": "w", "batch": "b", "split": "valid1"}

# Format, rows, what they say, what is left out.
CASES: list[tuple[str, list[Row], list[Edge], dict[str, int]]] = [
    (  # UltraFeedback binarised: the prompt as text beside sides that repeat it
        "trl-conversational",
        [
            {
                "prompt": "P", "prompt_id": "a1", "chosen": said((U, "P"), (A, "good")), "rejected": said((U, "P"), (A, "bad")),
                "messages": said((U, "P"), (A, "good")), "score_chosen": 8.5, "score_rejected": 7.0,
            },
            {"prompt": "P", "chosen": said((A, "good")), "rejected": said((A, "bad"))},
            {"prompt": TALK, "chosen": [*TALK, *said((A, "good"))], "rejected": [*TALK, *said((A, "bad"))]},
            {"prompt": "P", "chosen": said((A, None)), "rejected": said((A, "bad"))},
            {"prompt": "P", "chosen": [{"role": A, "content": None, "tool_calls": [1]}], "rejected": said((A, "bad"))},
            {"prompt": "P", "chosen": said((A, [{"type": "image"}])), "rejected": said((A, "bad"))},
            {"prompt": "P", "chosen": said((A, [{"type": "text", "text": "good"}])), "rejected": said((A, "bad"))},
        ],
        [*WON * 2, (TALK_TEXT, "good", "bad", False), *WON],
        {
            "rows in which a message's content is no text but null": 1, "messages that call tools and say nothing": 1,
            "messages with parts that are no text (images, audio, tools)": 1,
        },
    ),
    (
        "trl-explicit",
        [{"prompt": "P", "chosen": "good", "rejected": "bad"}, {"prompt": "P", "chosen": "good", "rejected": None},
         {"prompt": TALK, "chosen": "good", "rejected": "bad"}, {"prompt": None, "chosen": "good", "rejected": "bad"}],
        [*WON, (TALK_TEXT, "good", "bad", False)],
        {
            "rows in which 'rejected' is no text but null": 1,
            "rows in which 'prompt' is no text but null, and both responses begin with none": 1,
        },
    ),
    (
        "ultrafeedback",
        [{"source": "s", "instruction": "P", "models": ["m", "n"], "completions": [
            ultra("m", "bad", "2", "N/A"), ultra("n", "good", "5", "4"), ultra("o", "worst", "1", "1")]}],
        [("P", "good", "worst", False)],  # the mean of both aspects; what has no rating in one of them is not compared
        {},
    ),
    ("oasst", [TREE], TREE_EDGES, {}),
    ("oasst", flat(TREE["prompt"]), TREE_EDGES, {}),  # type: ignore[arg-type]
    (
        "pku-saferlhf",
        [{"prompt": "P", "response_0": "bad", "response_1": "good", "is_response_0_safe": True, "better_response_id": 1,
          "safer_response_id": 0}],
        WON, {},
    ),
    (
        "shp",
        [{**SHP, "human_ref_A": "good", "human_ref_B": "bad", "labels": 1},
         {**SHP, "human_ref_A": "bad", "human_ref_B": "good", "labels": 0}],
        WON * 2, {},
    ),
    (
        "chatbot-arena",
        [{**ARENA, "winner": "model_b", "conversation_a": said((U, "P"), (A, "bad")),
          "conversation_b": said((U, "P"), (A, "good"))},
         {**ARENA, "winner": "tie (bothbad)", "conversation_a": said((U, "P"), (A, "x")),
          "conversation_b": said((U, "P"), (A, "y"))},
         {**ARENA, "winner": "model_a", "conversation_a": said((U, "P"), (A, "x"), (U, "Q"), (A, "z")),
          "conversation_b": said((U, "P"), (A, "y"), (U, "Q"), (A, "z"))}],
        [*WON, ("P", "x", "y", True)],
        {"conversations of several turns, whose answers reply to different things": 1},
    ),
    (
        "chatbot-arena",
        [{**KAGGLE, "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
         {**KAGGLE, "winner_model_a": "0", "winner_model_b": "0", "winner_tie": "1"}],
        [*WON, ("P", "bad", "good", True)], {},
    ),
    (
        "helpsteer",
        [{"prompt": "P", "response": r, "helpfulness": h, "correctness": h, "coherence": 4, "complexity": 2, "verbosity": 4}
         for r, h in (("bad", 1), ("good", 3))]
        + [{"prompt": "Q", "response": "x", "helpfulness": 0, "correctness": 1, "coherence": 4}],
        WON, {},
    ),
    (
        "helpsteer-preference",
        [{"split": "train", "prompt": "P", "response_1": "good", "response_2": "bad", "preference_strength": -2},
         {"split": "train", "prompt": "P", "response_1": "x", "response_2": "y", "preference_strength": 0}],
        [*WON, ("P", "x", "y", True)], {},
    ),
    (
        "helpsteer-preference",
        [{"domain": "general", "language": "english", "context": TALK, "response1": "bad", "response2": "good",
          "overall_preference": 3, "individual_preference": [{"score": 3, "reasoning": "..."}]},
         {"context": TALK, "response1": "x", "response2": "y", "overall_preference": -100}],
        [(TALK_TEXT, "good", "bad", False)], {"rows without a preference": 1},
    ),
    (
        "nectar",
        [{"prompt": "\n\nHuman: P\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["x"], "good_natured": True,
          "answers": [{"answer": "bad", "model": "m", "rank": 2.0}, {"answer": "good", "model": "n", "rank": 1.0},
                      {"answer": "poor", "model": "o", "rank": 2.0}]}],
        [("\n\nHuman: P\n\nAssistant:", "good", r, False) for r in ("bad", "poor")]
        + [("\n\nHuman: P\n\nAssistant:", "bad", "poor", True)],
        {},
    ),
    (
        "webgpt",
        [{"question": {"dataset": "eli5", "id": "q", "full_text": "P"}, "quotes_0": {"title": []}, "answer_0": "bad",
          "tokens_0": {}, "score_0": -1.0, "quotes_1": {}, "answer_1": "good", "tokens_1": {}, "score_1": 1.0},
         {"question": {"full_text": "P"}, "answer_0": "x", "score_0": 0.0, "answer_1": "y", "score_1": 0.0}],
        [*WON, ("P", "x", "y", True)], {},
    ),
    (
        "rewardbench-2",
        [{"id": "1", "prompt": "P", "chosen": ["good"], "rejected": ["bad", "worse"], "num_correct": 1, "subset": "Math"},
         {"id": "2", "prompt": "P", "chosen": ["good", "fine"], "rejected": ["bad"], "subset": "Ties"}],
        [*WON, ("P", "good", "worse", False), *WON, ("P", "fine", "bad", False)], {},
    ),
    (
        "trl-explicit",  # RewardBench
        [{"prompt": "P", "chosen": "good", "rejected": "bad", "chosen_model": "m", "rejected_model": "n", "subset": "x"}],
        WON, {},
    ),
    (
        "openai-axes",
        [{**AXES, "summary": {"text": "bad", "policy": "ref", "axes": {"overall": 2, "accuracy": 3, "coherence": None}}},
         {**AXES, "summary": {"text": "good", "policy": "sup", "axes": {"overall": 7, "accuracy": 6, "coherence": None}}}],
        WON, {},
    ),
    (
        "llama-factory",
        [{"instruction": "P", "input": "", "chosen": "good", "rejected": "bad"},
         {"instruction": "Q", "chosen": "good", "rejected": "bad", "system": "S", "history": [["P", "ok"]]},
         {"conversations": SHAREGPT, "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}],
        [*WON, (TALK_TEXT, "good", "bad", False), (TALK_TEXT.removeprefix("\n\nSystem: S"), "good", "bad", False)], {},
    ),
    (
        "openai-preference",
        [{"input": {"messages": TALK, "tools": [], "parallel_tool_calls": True}, "preferred_output": said((A, "good")),
          "non_preferred_output": said((A, "bad"))},
         {"input": {"messages": TALK, "tools": [{"type": "function"}]}, "preferred_output": [], "non_preferred_output": []}],
        [(TALK_TEXT, "good", "bad", False)], {"rows with tools": 1},
    ),
    (
        "prodigy",
        [{"text": "P", "options": [{"id": 0, "text": "bad"}, {"id": 1, "text": "good"}], "accept": [1], "answer": "accept",
          "_input_hash": 1, "_task_hash": 2, "_session_id": "db-ann", "_annotator_id": "ann", "_timestamp": 1700000000},
         {"text": "P", "options": [{"id": "A", "text": "x"}, {"id": "B", "text": "y"}], "accept": [], "answer": "ignore"},
         {"text": "P", "options": [{"id": "A", "text": "x"}, {"id": "B", "text": "y"}], "accept": [], "answer": "accept"}],
        WON, {"records in which no option, or several, were accepted": 1},
    ),
    (
        "argilla",  # version 1
        [{"fields": {"prompt": "P", "response-1": "bad", "response-2": "good"}, "metadata": {}, "responses": [
            {"user_id": "u", "status": "submitted", "values": {
                "preference": {"value": [{"rank": 2, "value": "response-1"}, {"rank": 1, "value": "response-2"}]}}},
            {"user_id": "v", "status": "submitted", "values": {
                "preference": {"value": [{"rank": 1, "value": "response-1"}, {"rank": 1, "value": "response-2"}]}}},
            {"user_id": "w", "status": "draft", "values": {"preference": {"value": []}}}]}],
        [*WON, ("P", "bad", "good", True)], {"drafts": 1},
    ),
    (
        "argilla",  # questions of other names, and one that chooses
        [{"fields": {"question": "P", "completion_a": "bad", "completion_b": "good"}, "responses": {
            "which": [{"value": "completion_b", "user_id": "u", "status": "submitted"}],
            "why": [{"value": "it is kinder by far", "user_id": "u", "status": "submitted"}]}}],
        WON, {},
    ),
    (
        "label-studio",  # other names; one annotation without a choice refuses nothing
        [{"id": 1, "data": {"question": "P", "text1": "good", "text2": "bad"}, "annotations": [
            {"id": 1, "completed_by": 3, "result": [{"type": "pairwise", "value": {"selected": "left"}, "from_name": "pw"}]},
            {"id": 2, "completed_by": 4, "result": [{"type": "pairwise", "value": {"selected": "none"}}]},
            {"id": 3, "completed_by": 5, "result": [{"type": "choices", "value": {"choices": ["Text 2"]}}]}]}],
        [*WON, ("P", "bad", "good", False)], {"comparisons in which nothing was selected": 1},
    ),
    (
        "label-studio",  # JSON-MIN
        [{"id": 1, "prompt": "P", "answer1": "bad", "answer2": "good", "comparison": [{"selected": "right"}], "annotator": 1,
          "annotation_id": 9, "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z", "lead_time": 2.5}],
        WON, {},
    ),
    (
        "label-studio",  # Ranker
        [{"id": 1, "data": {"prompt": "P", "items": [{"id": "a", "body": "bad"}, {"id": "b", "title": "t", "body": "good"}]},
          "annotations": [{"completed_by": 3, "result": [{"type": "ranker", "value": {"ranker": order}}]}]}
         for order in ({"rank": ["b", "a"]}, ["b", "a"], {"_": ["a"], "x": ["b"], "y": []})],
        WON * 2, {"rankings in several buckets, whose order the export does not tell": 1},
    ),
    (
        "pairs",
        [{"Question": "P", "answer_a": "good", "answer_b": "bad", "Winner": w, "annotator": "z"}
         for w in ("A", "answer_a", "Answer A", "tie", "", "who knows")],
        [*WON * 3, ("P", "bad", "good", True)], {"choices that name neither response": 1},
    ),
    (
        "pairs",
        [{"prompt": "P", "response1": "bad", "response2": "good", "preference": w} for w in (2, "2", 0, "response2")],
        [*WON * 2, ("P", "bad", "good", True), *WON], {},
    ),
    (
        "pairs",
        [{"instruction": "P", "input": "Q", "Response A": "bad", "Response B": "good", "Winner": w}
         for w in ("Response B", "both bad", "both good")],
        [("P\n\nQ", "good", "bad", False), *[("P\n\nQ", "bad", "good", True)] * 2], {},
    ),
    (  # DPO files of Orca's questions: the prompt has another name, and a system prompt stands beside it
        "trl-explicit",
        [{"system": "", "question": "P", "chosen": "good", "rejected": "bad"},
         {"system": "S", "input": "Q", "chosen": "It is good", "rejected": "It is bad"}],
        [*WON, ("\n\nSystem: S\n\nHuman: Q\n\nAssistant:", "It is good", "It is bad", False)], {},
    ),
    (
        "hh",
        [{side: f"{TRANSCRIPT} {text}" for side, text in (("chosen", "good"), ("rejected", "bad"))}],
        [(TRANSCRIPT, " good", " bad", False)], {},
    ),
    (
        "nectar",
        [{"prompt": f"{TRANSCRIPT} ", "answers": [{"answer": "good", "rank": 1.0}, {"answer": "bad", "rank": 2.0}]}],
        [(TRANSCRIPT, "good", "bad", False)], {},
    ),
    (
        "helpsteer-preference",
        [{"prompt": "P\n<extra_id_1>Assistant\nok\n<extra_id_1>User\nQ", "response_1": "good", "response_2": "bad",
          "preference_strength": -1}],
        [(TRANSCRIPT, "good", "bad", False)], {},
    ),
    (
        "argilla",  # a chat field
        [{"fields": {"chat": said((U, "P"), (A, "ok"), (U, "Q")), "response_1": "good", "response_2": "bad"},
          "responses": {"which": [{"value": "response_1", "user_id": "u", "status": "submitted"}]}}],
        [(TRANSCRIPT, "good", "bad", False)], {},
    ),
    (
        "helpsteer",  # the file of single people's ratings, as lists
        [{"prompt": "P", "response": "good", "helpfulness": [4, 3], "correctness": [4, 4], "coherence": [4, 4]}],
        [], {"prompts without a rating that is a number": 1},
    ),
    (
        "chatbot-arena",
        [{**KAGGLE, "response_a": spelling, "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
         for spelling in ("[]", "[null]")],
        [], {"conversations without a turn": 1, "rows in which a turn is no text but null": 1},
    ),
    (
        "prodigy",
        [{"html": "P", "options": [{"id": 1, "html": "bad"}, {"id": 2, "html": "good"}], "accept": [2], "answer": "accept"}],
        WON, {},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rows", "wanted", "dropped"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)]
)
def test_a_format_is_found_and_read(name: str, rows: list[Row], wanted: list[Edge], dropped: dict[str, int]) -> None:
    found = from_records(json.loads(json.dumps(rows)), AUTO)
    assert (found.format, edges(found), found.dropped) == (name, wanted, dropped)
    assert from_records(rows, name).queries == found.queries
    assert all(example.startswith("row ") for example in found.examples.values())


def test_what_a_row_says_beside_its_choice_is_kept() -> None:
    def read(case: int) -> Imported:
        return from_records(CASES[case][1], CASES[case][0])

    binarised = read(0)
    assert binarised.judgements[0].strength == 1.5
    assert binarised.queries[0].columns["messages"] == said((U, "P"))
    assert binarised.queries[2].columns["messages"] == TALK
    rated = read(2)
    assert rated.judgements[0].ratings == {"helpfulness": (2, 5, 1), "honesty": (None, 4, 1)}
    assert rated.queries[0].model_versions == ("m", "n", "o")
    arena = read(7)
    assert (arena.judgements[0].rater, arena.queries[0].model_versions) == ("arena_user_9", ("m", "n"))
    assert arena.judgements[1].details == {"both_bad": True}
    talk = read(11).queries[0]
    assert (talk.columns["messages"], talk.columns["domain"]) == (TALK, "general")
    bench = read(15).queries[0]
    assert (bench.responses, bench.model_versions) == (("bad", "good"), ("n", "m"))
    prodigy = read(19).judgements
    assert (prodigy[0].rater, prodigy[0].created_at.year, prodigy[1].skipped) == ("ann", 2023, True)
    for name, row in ((case[0], case[1]) for case in CASES[-9:] if case[2] and case[2][0][0] == TRANSCRIPT):
        assert from_records(row, name).queries[0].columns["messages"] == said((U, "P"), (A, "ok"), (U, "Q"))
    ranked = from_records([TREE], AUTO).queries[1]
    assert ranked.columns["messages"] == said((U, "P"), (A, "good"), (U, "Q"))


@pytest.mark.parametrize(
    "talk", [5, "x", [{"content": "P"}], said((U, None)), said((U, [{"type": "image"}])), said((U, "Q"), (A, "ok"))]
)
def test_a_side_column_of_messages_is_not_taken_for_the_prompt(talk: Any) -> None:
    row = {"prompt": "P", "response_a": "good", "response_b": "bad", "choice": "a", "source": "s"}
    rows = Rows([{**row, "messages": talk}, {**row, "messages": said((U, "P"))}], "pairs")
    (odd, _), (whole, _) = rows
    assert (odd.columns, whole.columns) == ({"source": "s"}, {"source": "s", "messages": said((U, "P"))})
    assert rows.noted.counts == {"side columns 'messages' left out, which are not the prompt's chat messages": 1}


def test_tables_of_trees_and_tasks_are_read_as_their_json_is(tmp_path: Path) -> None:
    """Tables spell flags, ranks and answers as text; Excel separates by semicolons where a comma is the decimal point."""
    rows = [{k: "" if v is None else v for k, v in row.items()} for row in flat(TREE["prompt"])]  # type: ignore[arg-type]
    names = dict.fromkeys(name for row in rows for name in row)
    found = import_feedback(write(tmp_path / "t.csv", [{name: row.get(name, "") for name in names} for row in rows]))
    assert (found.format, edges(found)) == ("oasst", TREE_EDGES)
    task: Row = {
        "prompt": "P",
        "answer1": "good",
        "answer2": "bad",
        "annotator": 1,
        "annotation_id": 9,
        "lead_time": 2.5,
    }
    tasks = [{**task, "comparison": spelling} for spelling in ("left", '[{"selected": "left"}]')]
    found = import_feedback(write(tmp_path / "t.csv", tasks))
    assert (found.format, edges(found), found.judgements[0].seconds) == ("label-studio", WON * 2, 2.5)
    (tmp_path / "t.csv").write_text("prompt;chosen;rejected\nP;good;bad\n")
    assert edges(import_feedback(tmp_path / "t.csv")) == WON


def test_turns_that_do_not_alternate_are_no_messages() -> None:
    for prompt in ("\n\nHuman: P\n\nHuman: Q\n\nAssistant:", "P\n\nAssistant:", "\n\nAssistant: ok\n\nAssistant:"):
        [query] = from_records([{"prompt": prompt, "chosen": "good", "rejected": "bad"}], AUTO).queries
        assert (query.prompt, query.columns) == (prompt, {})


def test_a_prompt_that_is_only_implied_is_said() -> None:
    rows = Rows([{"chosen": "P good", "rejected": "P bad", "trajectory": "T"}])
    assert [query.prompt for query, _ in rows] == ["P"]
    assert rows.noted.counts == {"pairs whose prompt is what both texts begin with": 1}


def test_times_out_of_range_and_circles_of_replies_are_counted() -> None:
    told: Row = {
        "text": "P",
        "options": [{"id": 0, "text": "a"}, {"id": 1, "text": "b"}],
        "accept": [0],
        "answer": "accept",
    }
    for late in (float("inf"), 1e300):
        found = from_records([told, {**told, "_timestamp": late}], "prodigy")
        assert (len(found.queries), found.dropped) == (1, {"rows that are not of the format 'prodigy'": 1})
    circle = {**NODE, "message_id": None, "parent_id": None, "text": "P", "message_tree_id": "c"}
    found = from_records([circle, TREE], "oasst")
    assert (len(found.queries), found.dropped) == (2, {"rows that are not of the format 'oasst'": 1})


def test_kto_files_are_thumbs() -> None:
    rows: list[Row] = [
        {"instruction": "P", "input": "", "output": "good", "kto_tag": True},
        {"conversations": [*SHAREGPT[:1], {"from": "gpt", "value": "bad"}], "kto_tag": False},
        {"messages": said((U, "P"), (A, "good")), "label": "true"},
        {"messages": said((U, "P"), (A, "good")), "label": "maybe"},
    ]
    found = from_records(rows, AUTO)
    assert found.format == "llama-factory"
    assert [(q.prompt, q.responses[0]) for q in found.queries] == [("P", "good"), ("P", "bad"), ("P", "good")]
    assert [j.ratings for j in found.judgements] == [{"overall": (v,)} for v in (1.0, 0.0, 1.0)]
    assert found.dropped == {"labels that are neither true nor false": 1}


def write(path: Path, rows: list[Row]) -> Path:
    """Rows as JSON, or as a table whose cells are what pandas writes of lists and mappings: Python's spelling of them."""
    if path.suffix in (".csv", ".tsv"):
        out = io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        path.write_bytes(out.getvalue().encode())
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet = pytest.importorskip("pyarrow.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_columns_of_any_table_are_named(tmp_path: Path, suffix: str) -> None:
    text = 'good\r\n\x85\u2028, "quoted"\ttab'
    rows: list[Row] = [
        {"q": "P", "up": text, "down": "bad", "who": "ann"},
        {"q": "P", "up": "x", "down": None, "who": "bob"},
    ]
    path = write(tmp_path / f"t{suffix}", rows)
    with pytest.raises(FeedbackError, match=r"not plain from its columns \('q, up, down, who'\).*--columns prompt="):
        import_feedback(path)
    named = {"prompt": "q", "chosen": "up", "rejected": "down", "rater": "who"}
    found = import_feedback(path, columns=named)
    assert (found.judgements[0].rater, found.queries[0].columns) == ("ann", {})
    if suffix in (".csv", ".tsv"):  # tables do not tell a missing text from an empty one
        assert edges(found) == [("P", text, "bad", False), ("P", "x", "", False)]
        return
    assert edges(found) == [("P", text, "bad", False)]
    assert (found.dropped, found.examples) == (
        {"rows without the column 'down'": 1},
        {"rows without the column 'down'": "row 2"},
    )


def choices(given: list[Any], **columns: Any) -> tuple[list[Any], dict[str, int]]:
    """What each of some choices between responses 1 and 2 says (an index, ``tie``, ``skip``), and what was left out."""
    rows = [
        {"prompt": f"P{i}", "response_1": "x", "response_2": "y", **columns, "choice": c} for i, c in enumerate(given)
    ]
    found = from_records(rows, "pairs")
    return ["skip" if j.skipped else "tie" if j.tie else j.choice for j in found.judgements], found.dropped


def test_choices_are_read_as_one_thing_or_left_out() -> None:
    said, dropped = choices([0, "1", 1, 0])
    assert said == []
    assert list(dropped.values()) == [4]
    assert "count from 0" in next(iter(dropped))
    assert choices([0, 1, 2.0]) == (["tie", 0, 1], {})
    assert choices([1, 1]) == ([0, 0], {})
    assert choices([0, 0])[0] == []
    unclear = ["None", "not 1", "unsure 2", "unclear 1", "m"]
    assert choices(unclear, model_2="m", model_1="m") == ([], {"choices that name neither response": 5})
    assert choices(["Model 2", "response-1", "Output_2", "m"], model_1="m")[0] == [1, 0, 1, 0]


def test_transcripts_that_a_table_has_changed(tmp_path: Path) -> None:
    """Line ends of Windows, no empty line in front, a prompt beside whole transcripts that is their first turn."""
    sides = {"chosen": f"{TRANSCRIPT} good", "rejected": f"{TRANSCRIPT} bad"}
    for changed in (
        {name: side.replace("\n", "\r\n") for name, side in sides.items()},
        {name: side.lstrip() for name, side in sides.items()},
        {"prompt": "P", **sides},
        {"prompt": TRANSCRIPT.removesuffix("\n\nAssistant:"), **sides},
    ):
        found = import_feedback(write(tmp_path / "t.csv", [changed]))
        assert edges(found) == [(TRANSCRIPT, " good", " bad", False)]
        assert [m["content"] for m in found.queries[0].columns["messages"]] == ["P", "ok", "Q"]
    other = {"prompt": "R", **sides}
    assert edges(import_feedback(write(tmp_path / "t.csv", [other]))) == [("R", *sides.values(), False)]
    talks = [{"chosen": said((U, "P"), (A, "good")), "rejected": said((U, "Q"), (A, "bad"))}]
    assert from_records(talks, AUTO).dropped == {"pairs whose prompts differ": 1}


def test_empty_fields_of_a_table_are_empty_texts(tmp_path: Path) -> None:
    """An empty winner is a skip and no reason to look for the choice elsewhere."""
    path = tmp_path / "t.csv"
    path.write_text("prompt,response_a,response_b,winner,label,purpose\nP,x,y,,a,\nP,,z,b,a,check\n")
    rows = Rows(read_records(path), place="t")
    found = list(rows)
    assert [(query.responses, judgement.skipped, judgement.choice) for query, judgement in found] == [
        (("x", "y"), True, None), (("", "z"), False, 1)
    ]  # fmt: skip
    assert rows.noted.counts["answers that are not learned from, since their column 'purpose' says check"] == 1
    path.write_text("a,b\n,\n1,\n")
    with pytest.raises(FeedbackError, match=r"\('a, b'\)"):
        import_feedback(path)


def test_messages_in_a_table_and_names_inside_mappings(tmp_path: Path) -> None:
    sides = {"chosen": said((U, "it's P"), (A, "good")), "rejected": said((U, "it's P"), (A, "bad"))}
    assert edges(import_feedback(write(tmp_path / "t.csv", [sides]))) == [("it's P", "good", "bad", False)]
    row = {"ask": {"text": "P"}, "replies": [{"t": "good"}, {"t": "bad"}], "won": 0}
    named = {"prompt": "ask.text", "response_0": "replies.0.t", "response_1": "replies.1.t", "choice": "won"}
    assert edges(from_records([row], AUTO, columns=named)) == WON
    task = {"data": {"q": "P", "l": "good", "r": "bad"}, "annotations": [
        {"result": [{"type": "pairwise", "value": {"selected": "left"}}]}]}  # fmt: skip
    named = {"prompt": "q", "answer1": "l", "answer2": "r"}
    assert edges(from_records([task], "label-studio", columns=named)) == WON
    pku = CASES[5][1]
    assert edges(from_records(pku, AUTO, columns={"better_response_id": "safer_response_id"})) == [
        ("P", "bad", "good", False)
    ]


def test_side_columns_that_are_no_json_refuse_nothing(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5)
    rows: list[Row] = [{"prompt": "P", "chosen": "good", "rejected": "bad", "at": when, "x": float("nan"), "n": [1, 2]}]
    [query] = import_feedback(write(tmp_path / "t.parquet", rows)).queries
    assert query.columns == {"at": "2026-01-02T03:04:05", "x": None, "n": [1, 2]}


def test_mixed_and_strange_rows_are_counted() -> None:
    rows: list[Any] = [
        {"prompt": "P", "chosen": "good", "rejected": "bad"},
        {"prompt": "P", "completion": "good", "label": True},
        {"prompt": ["P"], "chosen": "good", "rejected": "bad"},
        {"prompt": {"a": 1}, "chosen": "good", "rejected": "bad"},
        {"prompt": "P", "chosen": 3, "rejected": "bad"},
        {"prompt": "P", "chosen": said((A, "good")), "rejected": "bad"},
        {"prompt": "P", "chosen": said((A, "good")), "rejected": said((U, "bad"))},
        17,
    ]
    found = from_records(rows, AUTO)
    assert edges(found) == WON
    assert sum(found.dropped.values()) == 7
    assert found.dropped["rows of another format (trl-unpaired)"] == 1
    assert found.dropped["rows in which 'chosen' is no text but int"] == 1
    assert found.dropped["pairs of a text and messages"] == 1
    assert found.dropped["responses that are not the assistant's"] == 1
    assert found.examples["rows in which 'chosen' is no text but int"] == "row 5"


def test_argilla_rows_of_a_data_set(tmp_path):
    row = {
        "id": "1", "status": "completed", "_server_id": "s", "instruction": "Hi", "response1": "a", "response2": "b",
        "best.responses": ["response2", "response1"], "best.responses.users": ["u1", "u2"],
        "best.responses.status": ["submitted", "draft"], "best.suggestion": None,
        "why.responses": None, "why.responses.users": None, "why.responses.status": None,
    }  # fmt: skip
    found = import_feedback(write(tmp_path / "a.jsonl", [row]))
    assert (found.format, found.dropped) == ("argilla", {"drafts": 1})
    assert [
        (q.prompt, q.responses, j.choice, j.rater) for q, j in zip(found.queries, found.judgements, strict=True)
    ] == [("Hi", ("a", "b"), 1, "user-u1")]
