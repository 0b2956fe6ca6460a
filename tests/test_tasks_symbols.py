"""Tasks over a few symbols: their answers, rewards and difficulties, and that they need neither a language model nor torch."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import TokenEnv, TokenVectorEnv
from rlhf_gym.errors import TaskError
from rlhf_gym.rewards import score
from rlhf_gym.tasks import Task, load_task, symbol_tokenizer, symbols
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

NAMES = ("copy", "reverse", "sort", "brackets", "arithmetic")


def value(task: Task, prompt: str, response: str, **columns: str) -> float:
    assert task.reward is not None
    return float(score(task.reward, [prompt], [response], {k: [v] for k, v in columns.items()}).values[0])


def test_examples_in_the_docstrings() -> None:
    for module in (symbols, symbol_tokenizer):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


@pytest.mark.parametrize("difficulty", [1, 2, 5, 30])
@pytest.mark.parametrize("name", NAMES)
def test_the_answer_earns_exactly_one_and_fits_the_limit(name: str, difficulty: int) -> None:
    task = load_task(name, difficulty=difficulty, num_prompts=200)
    assert task.tokenizer is not None
    metric = next(iter(task.metrics.values()))
    for prompt in task.prompts:
        answer = prompt.columns["answer"]
        columns = {"answer": [answer]}
        assert value(task, prompt.text, answer, answer=answer) == 1.0
        assert score(metric, [prompt.text], [answer], columns).values.tolist() == [1.0]
        assert len(task.tokenizer.encode(answer)) + 1 <= task.max_new_tokens
        assert task.tokenizer.decode(task.tokenizer.encode_prompt(prompt.text)) == prompt.text
        wrong = answer + answer[-1]
        assert value(task, prompt.text, wrong, answer=answer) < 1.0
        assert value(task, prompt.text, "", answer=answer) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_several_difficulties_share_one_vocabulary(name: str) -> None:
    task, alone = (
        load_task(name, easiest=2, difficulty=4, num_prompts=90),
        load_task(name, difficulty=2, num_prompts=30),
    )
    assert task.tokenizer is not None
    prompts = [*task.prompts, *task.held_out]
    counts = {level: sum(p.columns["difficulty"] == level for p in prompts) for level in (2, 3, 4)}
    assert sum(counts.values()) == len(prompts) <= 90
    assert min(counts.values()) >= 10
    easy = {p.text: p.columns["answer"] for p in prompts if p.columns["difficulty"] == 2}
    assert easy == {p.text: p.columns["answer"] for p in (*alone.prompts, *alone.held_out)}
    for prompt in prompts:
        answer = prompt.columns["answer"]
        assert value(task, prompt.text, answer, answer=answer) == 1.0
        assert len(task.tokenizer.encode(answer)) + 1 <= task.max_new_tokens
        task.tokenizer.encode_prompt(prompt.text)
    size = next(iter(symbols.SYMBOL_TASKS[name].sizes))
    with pytest.raises(TaskError, match=f"leave {size} out, or easiest"):
        load_task(name, easiest=1, difficulty=2, **{size: symbols.SYMBOL_TASKS[name].sizes[size].default(2)})
    with pytest.raises(TaskError, match="easiest"):
        load_task(name, easiest=3, difficulty=2)


def check_copy(prompt: str, answer: str) -> bool:
    return prompt == answer + ">"


def check_reverse(prompt: str, answer: str) -> bool:
    return prompt == answer[::-1] + ">"


def check_sort(prompt: str, answer: str) -> bool:
    return [int(c) for c in answer] == sorted(int(c) for c in prompt[:-1])


def check_brackets(prompt: str, answer: str) -> bool:
    text = prompt + answer
    for _ in text:
        for pair in ("()", "[]", "{}", "<>"):
            text = text.replace(pair, "")
    return not text


def check_arithmetic(prompt: str, answer: str) -> bool:
    return prompt.endswith("=") and eval(prompt[:-1]) == int(answer) >= 0


@pytest.mark.parametrize("difficulty", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right_by_an_independent_check(name: str, difficulty: int) -> None:
    check = globals()[f"check_{name}"]
    task = load_task(name, difficulty=difficulty)
    assert all(check(p.text, p.columns["answer"]) for p in [*task.prompts, *task.held_out])


@pytest.mark.parametrize(
    ("name", "options", "sizes"),
    [  # longest prompt, vocabulary, length limit: by hand
        ("copy", {"difficulty": 1}, (3, 2 + 4 + 1, 3)),
        ("copy", {"difficulty": 20}, (22, 2 + 26 + 1, 22)),
        ("reverse", {"length": 5, "num_symbols": 3}, (6, 2 + 3 + 1, 6)),
        ("sort", {"difficulty": 2}, (4, 2 + 5 + 1, 4)),
        ("sort", {"length": 7, "num_digits": 10}, (8, 2 + 10 + 1, 8)),
        ("brackets", {"depth": 3, "kinds": 2}, (9, 2 + 4, 4)),
        ("arithmetic", {"difficulty": 1}, (4, 2 + 10 + 2, 3)),
        ("arithmetic", {"difficulty": 2}, (4, 2 + 10 + 4, 3)),
        ("arithmetic", {"digits": 2, "operators": "*"}, (6, 2 + 10 + 2, 5)),
        ("arithmetic", {"digits": 2, "operators": "-"}, (6, 2 + 10 + 2, 3)),
    ],
)
def test_difficulty_and_sizes(name: str, options: dict[str, Any], sizes: tuple[int, int, int]) -> None:
    task = load_task(name, **options)
    assert task.tokenizer is not None
    longest = max(len(p.text) for p in task.prompts)
    assert (longest, task.tokenizer.vocab_size, task.max_new_tokens) == sizes


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_distinct_seeded_and_split_for_good(name: str) -> None:
    first, again, other = (load_task(name, difficulty=3, seed=s) for s in (0, 0, 1))
    assert first.prompts == again.prompts
    assert first.prompts != other.prompts
    texts = [p.text for p in [*first.prompts, *first.held_out]]
    assert len(set(texts)) == len(texts) == 512
    assert not {p.text for p in first.prompts} & {p.text for p in other.held_out}
    assert 0.1 < len(first.held_out) / len(texts) < 0.25


def test_a_small_space_gives_all_it_has_and_a_tiny_one_holds_nothing_out() -> None:
    task = load_task("copy", length=1, num_symbols=3)
    assert sorted(p.text for p in task.prompts) == ["a>", "b>", "c>"]
    assert task.held_out == []
    sums = load_task("arithmetic", digits=1, operators="+")
    assert len(sums.prompts) + len(sums.held_out) == 100


def test_partial_rewards_are_shares_and_whole_ones_are_not() -> None:
    copy = load_task("copy")
    assert value(copy, "abca>", "abba", answer="abca") == 0.75
    assert value(load_task("copy", partial=False), "abca>", "abba", answer="abca") == 0.0
    assert value(load_task("brackets"), "([", "]", answer="])") == 0.5
    assert value(load_task("brackets", partial=False), "([", "]", answer="])") == 0.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("copy", {"difficulty": 0}, "difficulty must be a whole number of at least 1, got 0"),
        ("copy", {"difficulty": 1.5}, "got 1.5"),
        ("reverse", {"num_symbols": 27}, r"num_symbols .* in 2\.\.26, got 27"),
        ("sort", {"num_digits": 1}, r"2\.\.10"),
        ("brackets", {"kinds": 5}, r"1\.\.4"),
        ("arithmetic", {"operators": "/"}, r"some of '\+-\*', got '/'"),
        ("arithmetic", {"num_prompts": 0}, "num_prompts"),
        ("arithmetic", {"digit": 1}, "digit"),
    ],
)
def test_bad_options_are_refused_with_what_was_expected(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(name, **options)


def test_the_tokenizer_refuses_what_it_has_no_id_for() -> None:
    with pytest.raises(TaskError, match="'x' in the text 'axb'"):
        SymbolTokenizer("ab").encode("axb")
    with pytest.raises(TaskError, match="all different"):
        SymbolTokenizer("aba")


@pytest.mark.parametrize("name", NAMES)
def test_registered_by_name_with_specs_that_json_carries(name: str) -> None:
    full = f"rlhf_gym/{name.capitalize()}-v0"
    env = gym.make(full, task_options={"difficulty": 2})
    check_env(env.unwrapped)
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"] == {"task": name, "task_options": {"difficulty": 2}}
    again = gym.make(EnvSpec.from_json(text))
    assert np.array_equal(again.reset(seed=4)[0]["ids"], env.reset(seed=4)[0]["ids"])
    assert isinstance(gym.make(f"rlhf_gym:{full}").unwrapped, TokenEnv)
    vector = gym.make_vec(full, num_envs=4, task_options={"difficulty": 2})
    assert isinstance(vector, TokenVectorEnv)
    assert np.array_equal(vector.reset(seed=[4] * 4)[0]["ids"][0], env.reset(seed=4)[0]["ids"])


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_whole_episodes_without_importing_us_and_without_torch() -> None:
    code = """
import sys, gymnasium as gym, numpy as np
for name in ("Copy", "Reverse", "Sort", "Brackets", "Arithmetic"):
    env = gym.make(f"rlhf_gym:rlhf_gym/{name}-v0")
    env.reset(seed=0); env.action_space.seed(0)
    while not env.step(env.action_space.sample())[2]: pass
    vector = gym.make_vec(f"rlhf_gym:rlhf_gym/{name}-v0", num_envs=8)
    vector.reset(seed=0)
    for _ in range(10): vector.step(np.zeros(8, dtype=np.int64))
print([m for m in ("torch", "transformers", "stable_baselines3", "pandas") if m in sys.modules])
"""
    assert run(code) == "[]"


def test_importing_takes_well_under_a_second_of_the_processor() -> None:
    code = "import time; t = time.process_time(); import rlhf_gym; print(time.process_time() - t)"
    assert min(float(run(code)) for _ in range(3)) < 1.0
