"""Tasks and prompt files: what is read, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards.builtin.sentiment_scorer import SentimentScorer
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.prompt_files import prompts_from_file
from rlhf_gym.tasks.samples import Prompt, is_held_out
from rlhf_gym.tasks.sentiment import prompt_prefixes


def test_prompt_prefixes_are_many_distinct_and_neutral() -> None:
    texts = prompt_prefixes()
    assert len(texts) == len(set(texts)) > 1000
    assert texts == prompt_prefixes()
    scores = SentimentScorer.embedded().score(texts)
    assert abs(float(scores.mean())) < 0.75


def test_no_prompt_is_on_both_sides_whatever_the_seed() -> None:
    for seed in (0, 1):
        task = load_task("sentiment", seed=seed)
        train, held_out = {p.text for p in task.prompts}, {p.text for p in task.held_out}
        assert not train & held_out
        assert train | held_out == set(prompt_prefixes())
        assert 0.1 < len(held_out) / len(train | held_out) < 0.25
        assert all(is_held_out(p) for p in held_out)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean 'sentiment'"):
        load_task("sentimant")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TaskError, match="max_respons_tokens"):
        load_task("sentiment", max_respons_tokens=3)


def test_too_many_prompts_are_refused_with_their_number() -> None:
    with pytest.raises(TaskError, match="asked for 100000"):
        load_task("sentiment", num_prompts=100000)


def test_a_task_of_ones_own_by_place() -> None:
    task = load_task("toy_tasks:letter_task", limit=3)
    assert (task.name, task.max_new_tokens) == ("letters", 3)
    with pytest.raises(TaskError, match="there is no 'nothing' in toy_tasks"):
        load_task("toy_tasks:nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "has no prompts"),
        ({"max_new_tokens": 0}, "at least 1, got 0"),
        ({"min_new_tokens": 33}, "0..max_new_tokens"),
    ],
)
def test_impossible_tasks_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Task(**{"name": "t", "prompts": [Prompt("a")], **options})  # type: ignore[arg-type]


ROWS = [{"prompt": "one, two", "label": "x"}, {"prompt": "drei\nvier", "label": "y"}]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_tables_keep_their_other_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"prompts.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in ROWS) + "\n\n")
    elif suffix == "json":
        path.write_text(json.dumps(ROWS))
    elif suffix == "csv":
        path.write_text('prompt,label\n"one, two",x\n"drei\nvier",y\n')
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert prompts_from_file(path) == [Prompt(r["prompt"], {"label": r["label"]}) for r in ROWS]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), min_size=1))
def test_a_text_file_is_a_prompt_a_line(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    wanted = [line for line in lines if line.strip()]
    if wanted:
        assert [p.text for p in prompts_from_file(path)] == [w.removeprefix("\ufeff") for w in wanted]
    else:
        with pytest.raises(TaskError, match="holds no prompts"):
            prompts_from_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"\n \n", "holds no prompts"),
        ("missing.csv", b"text,label\na,b\n", "row 1: expected a text in column 'prompt'.*text, label"),
        ("blank.jsonl", b'{"prompt": "a"}\n{"prompt": ""}\n', "row 2"),
        ("broken.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "line 2: not JSON"),
        ("list.jsonl", b"[1]\n", "expected an object, got int"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "not UTF-8"),
        ("prompts.xlsx", b"", "ending in .txt, .jsonl"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message):
        prompts_from_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"there is no file .*nowhere\.txt"):
        prompts_from_file(tmp_path / "nowhere.txt")
