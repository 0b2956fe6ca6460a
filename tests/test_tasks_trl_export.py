"""Tasks exported for TRL: the data set, the reward functions as TRL calls them, and one step of its own trainer."""

from __future__ import annotations

import math
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import letter_task

from rlhf_gym.embedded import EMBEDDED_LM
from rlhf_gym.errors import TaskError
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.trl_export import ROW, to_trl


def test_prompts_columns_and_rewards() -> None:
    export = to_trl(letter_task(stop=("!",)))
    assert export.train_dataset[:]["prompt"] == ["abc", "d", "efghij", "bb"]
    assert export.eval_dataset[:]["prompt"] == ["zz"]
    assert export.reward_weights == [1.0]
    (reward,) = export.reward_funcs
    assert reward.__name__ == "letters"
    row = export.train_dataset[:]
    kept = {key: value for key, value in row.items() if key != "prompt"}
    completions = ["aa", "a!aaa", "", "b"]
    assert reward(prompts=row["prompt"], completions=completions, completion_ids=[[0]] * 4, **kept) == [2, 1, 0, 0]


def test_columns_reach_rewards_and_metrics_though_arrow_cannot_hold_them() -> None:
    def right(prompts: list[str], responses: list[str], answer: list[str], check: list[Any]) -> list[float]:
        return [float(good(r) and r == a) for r, a, good in zip(responses, answer, check, strict=True)]

    prompts = [Prompt(f"p{i}", {"answer": f"a{i}", "check": lambda r, i=i: r == f"a{i}"}) for i in range(4)]
    task = Task("t", prompts[:3], prompts[3:], reward=right, metrics={"again": right})
    export = to_trl(task)
    assert set(export.train_dataset.column_names) == {"prompt", ROW, "answer"}
    for data, some in ((export.train_dataset, task.prompts), (export.eval_dataset, task.held_out)):
        answers = [p.columns["answer"] for p in some]
        for reward in export.reward_funcs:
            assert reward(data[:]["prompt"], answers, **{ROW: data[:][ROW]}) == [1.0] * len(some)
            assert reward(data[:]["prompt"], ["x"] * len(some), **{ROW: data[:][ROW]}) == [0.0] * len(some)
    assert [reward.__name__ for reward in export.reward_funcs] == ["t", "again"]
    assert export.reward_weights == [1.0, 0.0]


def test_conversational() -> None:
    history: list[dict[str, str]] = [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "v"},
        {"role": "user", "content": "w"},
    ]
    seen: list[Any] = []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        seen.append((prompts, responses))
        return [0.0] * len(prompts)

    task = Task("t", [Prompt("p"), Prompt("w", {"messages": history})], reward=reward)
    export = to_trl(task, conversational=True)
    assert export.train_dataset[:]["prompt"] == [[{"role": "user", "content": "p"}], history]
    assert export.eval_dataset is None
    said = [[{"role": "assistant", "content": "x"}], []]
    export.reward_funcs[0](export.train_dataset[:]["prompt"], said, **{ROW: [0, 1]})
    assert seen == [(["p", "w"], ["x", ""])]


def test_columns_that_vary_in_kind_stay_out_of_the_data_set() -> None:
    columns = [{"a": 1, "b": "x", "c": ["y"], "d": 2**70}, {"a": "1", "b": "z", "c": [], "d": 1}]
    task = Task("t", [Prompt("p", c) for c in columns], reward=lambda prompts, responses: [0.0])
    assert set(to_trl(task).train_dataset.column_names) == {"prompt", ROW, "b", "c"}


def test_what_cannot_be_exported_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match="has no reward"):
        to_trl(Task("t", [Prompt("p")]))
    export = to_trl(letter_task())
    with pytest.raises(TaskError, match="remove_unused_columns=False"):
        export.reward_funcs[0](["p"], ["a"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskError, match=r"pip install 'rlhf-gym\[hub\]'"):
        to_trl(letter_task())


def test_reward_functions_pickle() -> None:
    export = to_trl(load_task("length"))
    again = pickle.loads(pickle.dumps(export.reward_funcs[0]))
    target = export.train_dataset[0]["target"]
    assert again(["p"], ["w " * target], **{ROW: [0]}) == [1.0]


def test_trls_own_trainer_takes_a_step(tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    task = load_task("length", max_new_tokens=6, num_prompts=8)
    export = to_trl(task)
    trainer = GRPOTrainer(
        model=str(EMBEDDED_LM),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            reward_weights=export.reward_weights,
            max_completion_length=task.max_new_tokens,
            per_device_train_batch_size=4,
            num_generations=2,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=export.train_dataset,
        reward_funcs=export.reward_funcs,
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert 0 <= logged["rewards/length/mean"] <= 1
    assert logged["reward"] == pytest.approx(logged["rewards/length/mean"])
    assert math.isfinite(logged["rewards/perplexity/mean"])
