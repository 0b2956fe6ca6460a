"""A task of one's own: from files, rows and `datasets` objects, through Gymnasium and back, and what is refused."""

from __future__ import annotations

import csv
import doctest
import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from tiny_models import LetterTokenizer

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import TokenEnv
from rlhf_gym.errors import ConfigError, TaskError
from rlhf_gym.rewards import score
from rlhf_gym.tasks import load_task, table
from rlhf_gym.tasks.table import table_task

ROWS = [{"question": f"q{i}", "reply": "a" * i, "topic": "x"} for i in range(60)]


def count_a(prompts: list[str], responses: list[str], reply: list[str]) -> list[float]:
    return [float(len(a) - r.count("a")) for r, a in zip(responses, reply, strict=True)]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="writing Parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(r) for r in rows))
    return path


def test_example_in_the_docstring() -> None:
    result = doctest.testmod(table)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "rows", "datasets"])
def test_every_kind_of_table_gives_the_same_task(tmp_path: Path, suffix: str) -> None:
    data: Any = ROWS
    if suffix == "datasets":
        datasets = pytest.importorskip("datasets", reason="needs datasets")
        data = datasets.Dataset.from_list(ROWS)
    elif suffix != "rows":
        data = write(tmp_path / f"t.{suffix}", ROWS)
    task = table_task(data, prompt="question", reward=count_a, seed=3)
    wanted = table_task(ROWS, prompt="question", reward=count_a, seed=3)
    assert task.prompts == wanted.prompts
    assert task.held_out == wanted.held_out
    texts = {p.text for p in task.prompts} | {p.text for p in task.held_out}
    assert texts == {r["question"] for r in ROWS}
    assert 0 < len(task.held_out) < 25
    first = task.prompts[0]
    assert score(count_a, [first.text], ["a"], {"reply": [first.columns["reply"]]}).values[0] == int(first.text[1:]) - 1


def test_the_held_out_prompts_do_not_depend_on_the_seed_and_repeated_prompts_stay_on_one_side() -> None:
    tasks = [table_task(ROWS + ROWS, prompt="question", seed=s) for s in (0, 1)]
    assert {p.text for p in tasks[0].held_out} == {p.text for p in tasks[1].held_out}
    assert [p.text for p in tasks[0].prompts] != [p.text for p in tasks[1].prompts]
    for task in tasks:
        assert not {p.text for p in task.prompts} & {p.text for p in task.held_out}
        assert len(task.prompts) + len(task.held_out) == 120


def test_templates_and_renamed_columns() -> None:
    task = table_task(
        ROWS, template="On {topic}: {question} {{}}", columns={"reference": "reply"}, held_out=False, num_prompts=2
    )
    assert {(p.text, p.columns["reference"]) for p in task.prompts} == {("On x: q0 {}", ""), ("On x: q1 {}", "a")}
    assert all(set(p.columns) == {"question", "topic", "reference"} for p in task.prompts)


def test_chat_messages_become_prompts() -> None:
    one = [{"role": "user", "content": "hello"}]
    more = [*one, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "bye"}]
    task = table_task([{"prompt": one}, {"prompt": more}], held_out=False)
    by_text = {p.text: p.columns["messages"] for p in task.prompts}
    assert by_text == {"hello": one, "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: bye\n\nAssistant:": more}
    with pytest.raises(TaskError, match="row 1: expected a text or chat messages that end with the user's"):
        table_task([{"prompt": more[:2]}])


def test_a_reward_may_be_named_and_the_task_registered_and_written_as_json(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": p} for p in ("ab", "ba", "cd")])
    options = {"data": str(path), "reward": {"reward": "length", "unit": "characters"}, "held_out": False}
    gym.register(
        "mine/Letters-v0",
        entry_point="rlhf_gym.envs.token_env:TokenEnv",
        vector_entry_point="rlhf_gym.envs.token_vector_env:TokenVectorEnv",
        kwargs={"task": "table", "task_options": {**options, "max_new_tokens": 3}},
    )
    spec = EnvSpec.from_json(gym.spec("mine/Letters-v0").to_json())
    env = gym.make(spec, tokenizer=LetterTokenizer())
    env.reset(seed=0)
    rewards = [env.step(2)[1] for _ in range(3)]
    assert rewards == [0.0, 0.0, 3.0]
    assert gym.make_vec("mine/Letters-v0", 2, tokenizer=LetterTokenizer()).reset(seed=0)[0]["ids"].shape == (2, 5)


def test_metrics_are_rewards_or_their_names() -> None:
    task = table_task(ROWS, prompt="question", metrics={"words": "length", "a": count_a})
    assert score(task.metrics["words"], ["p"], ["two words"]).values.tolist() == [2.0]
    assert task.metrics["a"] is count_a
    assert task.reward is None


def test_a_table_by_name() -> None:
    task = load_task("table", data=ROWS, prompt="question", held_out=[{"question": "other"}], name="mine")
    assert (task.name, len(task.prompts), [p.text for p in task.held_out]) == ("mine", 60, ["other"])


def test_the_cookie_cutter_of_the_docs_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "tasks.md").read_text()
    (code,) = [block.split("```")[0] for block in text.split("```python\n")[1:] if block.startswith('"""my_task.py')]
    (tmp_path / "my_task.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    task = load_task("./my_task.py:my_task", num_prompts=4)
    assert [p.text for p in task.prompts] == ["count to 1:", "count to 3:"]
    assert task.reward is not None
    assert score(task.reward, ["p"] * 2, ["1 2 3", "1 3"], {"wanted": [3, 2]}).values.tolist() == [1.0, 0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an environment made by hand has no spec
        check_env(TokenEnv(task))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": []}, "holds no prompts"),
        ({"data": ROWS}, "row 1: expected a text in column 'prompt'.*question, reply, topic"),
        ({"data": ROWS, "template": "{answer}"}, "row 1: there is no column 'answer'"),
        ({"data": ROWS, "template": "no column"}, "names no column"),
        ({"data": ROWS, "template": "{open"}, "cannot be filled in"),
        ({"data": ROWS, "columns": {"reference": "answer"}}, "there is no column 'answer'"),
        ({"data": ROWS, "prompt": "question", "held_out": ROWS[:1]}, "1 prompts are both trained on and held out"),
        ({"data": ROWS, "prompt": "question", "num_prompts": 0}, "num_prompts must be at least 1"),
        ({"data": {"train": ROWS}}, "give one split"),
        ({"data": 3}, "got int"),
        ({"data": ["a"]}, "row 1: expected a mapping of columns, got str"),
        ({"data": "nowhere.csv"}, "there is no file 'nowhere.csv'"),
        ({"data": ROWS, "prompt": "question", "metrics": {"m": None}}, "must be a reward or its name"),
    ],
)
def test_what_cannot_be_a_task_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        table_task(**options)


def test_an_unknown_reward_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'length'"):
        table_task(ROWS, prompt="question", reward="lenght")
