"""The hub's data sets as tasks: each on rows of its own schema, the arguments that `datasets` is given, and what is refused."""

from __future__ import annotations

import doctest
import json
import re
import warnings
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.rewards import load_reward, score
from rlhf_gym.rewards.builtin import diversity as diversity_module
from rlhf_gym.rewards.builtin.diversity import distinct_n, diversity, msttr, self_bleu, unique_n
from rlhf_gym.rewards.builtin.meteor import Meteor
from rlhf_gym.tasks import hub_rows, load_task
from rlhf_gym.tasks.hub import hub_entries, hub_task
from rlhf_gym.tasks.table import as_reward

HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: {ask}\n\nAssistant:"
TOTTO_TABLE = [
    [
        {"value": "Year", "is_header": True, "column_span": 1, "row_span": 1},
        {"value": "Title", "is_header": True, "column_span": 1, "row_span": 1},
    ],
    [
        {"value": "1997", "is_header": False, "column_span": 1, "row_span": 1},
        {"value": "Eek!", "is_header": False, "column_span": 1, "row_span": 1},
    ],
]

# For each data set: a row as the hub has it, the prompt that is made of it, columns, a response and its reward.
CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any], str, float | None]] = {
    "imdb": (
        {"text": "one two three four five six seven eight nine<br />ten eleven twelve thirteen", "label": 1},
        "one two three four five six seven eight nine ten eleven twelve",
        {"label": 1},
        " thirteen",
        None,
    ),
    "tldr": (
        {"prompt": "SUBREDDIT: r/x\nPOST: long\nTL;DR:", "completion": " a short one"},
        "SUBREDDIT: r/x\nPOST: long\nTL;DR:",
        {"reference": " a short one"},
        "a short one",
        1.0,
    ),
    "cnn_dailymail": (
        {"article": "much news", "highlights": "news .\nmuch .", "id": "7"},
        "much news\n\nTL;DR:",
        {"reference": "news .\nmuch ."},
        "news .\nmuch .",
        1.0,
    ),
    "common_gen": (
        {"concept_set_idx": 0, "concepts": ["dog", "ball"], "target": "the dog fetches the red ball"},
        "Write a sentence with the words dog, ball:",
        {"words": ["dog", "ball"], "reference": "the dog fetches the red ball"},
        "the dog fetches the red ball",
        1.0,
    ),
    "totto": (
        {
            "table_page_title": "Al",
            "table_section_title": "Television",
            "table": TOTTO_TABLE,
            "highlighted_cells": [[1, 1], [1, 0]],
            "sentence_annotations": [{"original_sentence": "x", "final_sentence": "Al was in Eek! in 1997."}],
        },
        "Al (Television). Title: Eek!; Year: 1997\nIn a sentence:",
        {"reference": ["Al was in Eek! in 1997."]},
        "Al was in Eek! in 1997.",
        1.0,
    ),
    "iwslt2017": (
        {"translation": {"en": "a house", "de": "ein Haus"}},
        "Translate English to German: a house\nGerman:",
        {"reference": "ein Haus"},
        "ein Haus",
        1.0,
    ),
    "daily_dialog": (
        {"dialog": [" Hello . ", "Hi ! "], "act": [1, 1], "emotion": [0, 0]},
        "A: Hello .\nB:",
        {"reference": "Hi !"},
        "bye",
        0.0,
    ),
    "narrativeqa": (
        {
            "document": {"id": "1", "kind": "movie", "summary": {"text": "A man goes home.", "tokens": []}},
            "question": {"text": "Who?", "tokens": []},
            "answers": [{"text": "a man", "tokens": []}, {"text": "the man", "tokens": []}],
        },
        "A man goes home.\n\nQuestion: Who?\nAnswer:",
        {"reference": ["a man", "the man"]},
        "the man",
        1.0,
    ),
    "hh_helpful": (
        {"chosen": HH.format(ask="how?") + " so.", "rejected": HH.format(ask="how?") + " no."},
        HH.format(ask="how?"),
        {"chosen": " so.", "rejected": " no."},
        " so.",
        None,
    ),
    "hh_harmless": (
        {"chosen": HH.format(ask="hurt?") + " no.", "rejected": HH.format(ask="hurt?") + " yes."},
        HH.format(ask="hurt?"),
        {"chosen": " no.", "rejected": " yes."},
        " no.",
        None,
    ),
    "real_toxicity_prompts": (
        {"prompt": {"text": "he said that", "toxicity": 0.1}, "continuation": {"text": "."}, "challenging": False},
        "he said that",
        {"toxicity": 0.1},
        " it was fine.",
        -0.018,
    ),
    "gsm8k": (
        {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
        "Question: 1+1?\nAnswer:",
        {"reference": "2"},
        "it is 1+1 = 2.",
        1.0,
    ),
    "ultrafeedback": (
        {"prompt": "Write.", "chosen": [{"role": "user", "content": "Write."}], "messages": []},
        "Write.",
        {},
        "ok",
        None,
    ),
}


def test_every_data_set_has_a_case() -> None:
    assert set(CASES) == set(hub_entries())


@pytest.mark.parametrize("module", [hub_rows, diversity_module])
def test_examples_in_the_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("form", ["rows", "jsonl", "parquet", "datasets"])
@pytest.mark.parametrize("name", CASES)
def test_a_row_of_the_hubs_schema_becomes_a_prompt(tmp_path: Path, name: str, form: str) -> None:
    row, prompt, columns, response, wanted = CASES[name]
    data: Any = [row]
    if form == "datasets":
        data = datasets.Dataset.from_list([row])
    elif form == "parquet":
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / "t.parquet")
        data = tmp_path / "t.parquet"
    elif form == "jsonl":
        data = tmp_path / "t.jsonl"
        data.write_text(json.dumps(row) + "\n")
    task = hub_task(name, data=data, held_out=False)
    assert [p.text for p in task.prompts] == [prompt]
    got = task.prompts[0].columns
    assert {key: got[key] for key in columns} == columns
    every = {key: [value] for key, value in got.items()}
    if hub_entries()[name].reward is None:
        assert task.reward is None
    else:
        assert task.reward is not None
        value = score(task.reward, [prompt], [response], every).values[0]
        assert wanted is None or value == pytest.approx(wanted, abs=2e-3)
    for metric in task.metrics.values():
        score(metric, [prompt], [response], every)
    assert task.name == name


def test_mappings_of_lists_are_read_like_lists_of_mappings() -> None:
    row = {
        **CASES["totto"][0],
        "table": [{key: [cell[key] for cell in cells] for key in cells[0]} for cells in TOTTO_TABLE],
        "sentence_annotations": {"original_sentence": ["x"], "final_sentence": ["Al was in Eek! in 1997."]},
    }
    assert hub_task("totto", data=[row], held_out=False).prompts[0].text == CASES["totto"][1]
    row = {**CASES["narrativeqa"][0], "answers": {"text": ["a man", "the man"], "tokens": [[], []]}}
    assert hub_task("narrativeqa", data=[row], held_out=False).prompts[0].columns["reference"] == ["a man", "the man"]


def test_rows_with_nothing_to_ask_are_left_out_and_dialogues_give_a_prompt_a_turn() -> None:
    short = {"text": "too short", "label": 0}
    assert len(hub_task("imdb", data=[short, CASES["imdb"][0]], held_out=False).prompts) == 1
    talk = {"dialog": ["a", "b", "c", " "]}
    task = hub_task("daily_dialog", data=[talk], held_out=False)
    assert {(p.text, p.columns["reference"]) for p in task.prompts} == {("A: a\nB:", "b"), ("A: a\nB: b\nA:", "c")}
    differs = {"chosen": HH.format(ask="x") + " y", "rejected": HH.format(ask="z") + " y"}
    with pytest.raises(TaskError, match="holds no prompts"):
        hub_task("hh_helpful", data=[differs])


class FakeHub:
    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, path: str, **options: Any) -> list[dict[str, Any]]:
        self.calls.append((path, options))
        row = CASES[next(n for n, e in hub_entries().items() if e.path == path)][0]
        if "question" in row and isinstance(row["question"], str):
            return [{**row, "question": f"{options['split']} {i}?"} for i in range(20)]
        return [row]


def test_what_datasets_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    task = hub_task("gsm8k", num_prompts=5, num_held_out=3)
    entry = hub_entries()["gsm8k"]
    same = {"revision": entry.revision, "name": "main"}
    assert hub.calls == [
        ("openai/gsm8k", {"split": "train[:5]", **same}),
        ("openai/gsm8k", {"split": "test[:3]", **same}),
    ]
    assert len(task.prompts) == 5
    assert len(task.held_out) == 3
    hub.calls.clear()
    hub_task("hh_harmless", revision="a" * 40)
    assert [options["split"] for _, options in hub.calls] == ["train", "test[:1000]"]
    assert all(o["data_dir"] == "harmless-base" and o["revision"] == "a" * 40 for _, o in hub.calls)


def test_a_branch_is_warned_of_and_a_commit_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", FakeHub())
    with pytest.warns(UserWarning, match="'real_toxicity_prompts' is read at the branch 'main', which may change"):
        hub_task("real_toxicity_prompts")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hub_task("real_toxicity_prompts", revision="b" * 40)
    unpinned = {name for name, entry in hub_entries().items() if not re.fullmatch("[0-9a-f]{40}", entry.revision)}
    assert unpinned == {"common_gen", "iwslt2017", "real_toxicity_prompts"}


def test_a_folder_of_files_stands_for_the_hub(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = [{"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task("hub", dataset="gsm8k", path=str(tmp_path), num_prompts=3)
    assert sorted(p.text for p in task.prompts) == [f"Question: train {i}?\nAnswer:" for i in range(3)]
    assert len(task.held_out) == 4
    with pytest.raises(TaskError, match="cannot read the data set 'gsm8k' from"):
        hub_task("gsm8k", path=str(tmp_path / "nowhere"))


def test_a_prompt_of_both_splits_is_trained_on() -> None:
    row = CASES["gsm8k"][0]
    task = hub_task("gsm8k", data=[row], held_out=[row, {**row, "question": "3?"}])
    assert [p.text for p in task.held_out] == ["Question: 3?\nAnswer:"]


def test_rewards_and_metrics_can_be_replaced() -> None:
    task = hub_task(
        "hh_helpful", data=[CASES["hh_helpful"][0]], reward="length", metrics={"n": "length"}, held_out=False
    )
    assert task.reward is not None
    assert list(task.metrics) == ["n"]


def test_every_reward_and_metric_of_the_table_can_be_built() -> None:
    for entry in hub_entries().values():
        for reward in (entry.reward, *entry.metrics.values()):
            assert reward is None or callable(as_reward(reward))
        assert entry.max_new_tokens > 0
        assert entry.rows is None or callable(getattr(hub_rows, entry.rows))


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(TaskError, match="did you mean 'gsm8k'"):
        hub_task("gsm8")
    with pytest.raises(TaskError, match=r"row 1: expected the columns that hub\.yaml names, got text"):
        hub_task("gsm8k", data=[{"text": "x"}])
    with pytest.raises(TaskError, match=r"row 2.*got question, answer"):
        hub_task("gsm8k", data=[CASES["gsm8k"][0], {"question": "?", "answer": None}])


@pytest.mark.parametrize(
    ("response", "reference", "wanted"),
    [
        ("#### 12", "12", 1.0),
        ("#### $1,200.00 a year", "1200", 1.0),
        ("7 and #### 8", "7", 0.0),
        ("the answer is -3", "-3", 1.0),
        ("####", "3", 0.0),
        ("3 #### none", "3", 1.0),
        ("", "3", 0.0),
    ],
)
def test_numbers_are_compared_as_numbers(response: str, reference: str, wanted: float) -> None:
    assert hub_rows.same_number(["p"], [response], [reference]) == [wanted]


def test_diversity_by_hand() -> None:
    texts = ["a b a b", "C d, e"]
    assert distinct_n(texts, 1) == 5 / 7
    assert distinct_n(texts, 2) == 4 / 5  # ab ba ab | cd de
    assert (unique_n(texts, 1), unique_n(texts, 2)) == (3, 3)
    assert distinct_n([], 1) == unique_n(["a"], 2) == 0
    assert msttr(["a a b b", "c"], segment=2) == 0.5  # aa, bb; c is no whole segment
    assert msttr(["a b a"], segment=100) == 2 / 3
    assert msttr([]) == 0.0
    assert self_bleu(["the same text here"] * 3) == pytest.approx(1.0)
    assert self_bleu(["the same text here", "nothing alike at all"]) < 0.2
    assert self_bleu(["one"]) == 0.0
    assert set(diversity(texts)) == {
        *(f"{kind}_{n}" for kind in ("distinct", "unique") for n in (1, 2, 3)), "msttr", "self_bleu",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="n must be at least 1"):
        distinct_n(texts, 0)


def test_meteor_against_its_formula() -> None:
    metric = load_reward("meteor")
    assert isinstance(metric, Meteor)
    # "the cat sat" of "the cat sat down": P = 1, R = 3/4, F = 10PR/(R+9P); one chunk: penalty 0.5 (1/3)^3.
    f_mean = 10 * 1 * 0.75 / (0.75 + 9)
    values = metric(["p"] * 3, ["The cat sat.", "", "cats"], reference=["the cat sat down", "x", ["y", "cat"]])
    assert values[0] == pytest.approx(f_mean * (1 - 0.5 / 27))
    assert values[1] == 0.0
    assert values[2] > 0.4  # by its stem
