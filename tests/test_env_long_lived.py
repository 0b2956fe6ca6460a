"""Environments that run for long, are copied, limited and misused: time limits, pickles, memory, clear errors."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import pickle
import tracemalloc
import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_models import LetterTokenizer
from toy_tasks import letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import TokenEnv, TokenVectorEnv, make_sb3_env
from rlhf_gym.envs.token_rules import WAIT
from rlhf_gym.errors import ConfigError, RewardError, TaskError
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

EOS, PAD, A, B = range(4)
MODES = ("next_step", "same_step", "disabled")


def batched(n: int, mode: str = "next_step", **options: Any) -> TokenVectorEnv:
    return TokenVectorEnv(n, letter_task(), LetterTokenizer(), autoreset_mode=mode, **options)


def play(env: TokenVectorEnv, steps: int, seed: int) -> list[Any]:
    """Random actions, resets where the mode asks for them; everything that came back, as text."""
    rng = np.random.default_rng(seed)
    out: list[Any] = []
    for _ in range(steps):
        observations, rewards, terminations, truncations, infos = env.step(rng.integers(0, 5, env.num_envs))
        out.append((observations["ids"].tolist(), rewards.tolist(), terminations.tolist(), str(infos)))
        ended = terminations | truncations
        if env.metadata["autoreset_mode"].name == "DISABLED" and ended.any():
            out.append(env.reset(options={"reset_mask": ended})[0]["ids"].tolist())
    return out


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_environment_is_copied_in_the_middle_and_goes_on_alike(mode: str) -> None:
    env = batched(4, mode, max_episode_steps=4, mask={"pattern": "[a-e]*"})
    env.reset(seed=3)
    play(env, 5, seed=0)
    twins = [env, pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    outcomes = [play(twin, 20, seed=1) for twin in twins]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_the_time_limit_of_the_spec_holds_in_every_form() -> None:
    gym.register(
        "test/Limited-v0",
        entry_point="rlhf_gym.envs.token_env:TokenEnv",
        vector_entry_point="rlhf_gym.envs.token_vector_env:TokenVectorEnv",
        kwargs={"task": "copy", "task_options": {"difficulty": 4}},
        max_episode_steps=3,
    )
    single = gym.make("test/Limited-v0")
    single.reset(seed=0)
    assert [single.step(2)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    for mode in MODES:
        vector = gym.make_vec("test/Limited-v0", num_envs=2, autoreset_mode=mode)
        vector.reset(seed=0)
        ends = [vector.step(np.array([2, 2]))[2:5] for _ in range(3)]
        assert [truncations.tolist() for _, truncations, _ in ends] == [[False] * 2, [False] * 2, [True] * 2]
        assert not any(terminations.any() for terminations, _, _ in ends)
        assert "reward_terms" not in ends[-1][2].get("final_info", ends[-1][2])  # cut off, not scored
    longer = gym.make_vec("test/Limited-v0", num_envs=2, max_episode_steps=4)
    longer.reset(seed=0)
    assert [bool(longer.step(np.array([2, 2]))[3].any()) for _ in range(4)] == [False, False, False, True]


def test_a_vector_environments_spec_survives_json() -> None:
    env = gym.make_vec("rlhf_gym/Sort-v0", num_envs=3, autoreset_mode="same_step", mask={"pattern": "[0-9]{2}"})
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json())
    options = {k: v for k, v in spec.kwargs.items() if k not in ("num_envs", "vectorization_mode")}
    again = gym.make_vec("rlhf_gym/Sort-v0", num_envs=3, **options)
    assert np.array_equal(env.reset(seed=2)[0]["ids"], again.reset(seed=2)[0]["ids"])
    assert json.loads(env.spec.to_json())["kwargs"]["autoreset_mode"] == "same_step"


@given(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_reset_mask_touches_what_it_names_and_not_the_callers_options(chosen: list[bool], seed: int) -> None:
    env = batched(3, "disabled")
    env.reset(seed=seed)
    before, *_ = env.step(np.array([A, B, A]))
    mask = np.array(chosen)
    options = {"reset_mask": mask, "other": 1}
    after, _ = env.reset(options=options)
    assert set(options) == {"reset_mask", "other"}
    assert options["reset_mask"] is mask
    assert mask.tolist() == chosen
    for i, was_reset in enumerate(chosen):
        assert (after["length"][i] == after["prompt_length"][i]).all() == was_reset
        if not was_reset:
            assert np.array_equal(after["ids"][i], before["ids"][i])


def test_some_environments_may_be_seeded_anew_and_others_not() -> None:
    env, other = batched(2, "disabled"), batched(2, "disabled")
    env.reset(seed=[1, 2])
    other.reset(seed=[1, 9])
    other.reset(seed=[None, 2], options={"reset_mask": np.array([False, True])})
    assert play(env, 6, seed=0) == play(other, 6, seed=0)


def test_hundreds_of_thousands_of_steps_leak_nothing() -> None:
    """All modes and forms together; what was allocated on the way is given back."""
    envs = [batched(500, mode, max_episode_steps=5, mask={"pattern": "[a-e]*", "in_info": True}) for mode in MODES]
    vec_env = make_sb3_env(500, task=letter_task(), tokenizer=LetterTokenizer(), seed=0)
    single = TokenEnv(letter_task(), LetterTokenizer())
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 5, (64, 500))
    for env in (*envs, vec_env):
        env.reset()

    def run(rounds: int) -> None:
        for k in range(rounds):
            for env in envs:
                _, _, terminations, truncations, _ = env.step(actions[k % 64])
                ended = terminations | truncations
                if env is envs[2] and ended.any():
                    env.reset(options={"reset_mask": ended})
            vec_env.step(actions[k % 64])
            single.reset()
            while not single.step(int(actions[k % 64, 0]))[2]:
                pass

    run(10)
    tracemalloc.start()
    run(10)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    run(150)  # 2,000 environment steps a round; a leak of one byte a step would be 300 kB
    gc.collect()
    left = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert left < 100_000  # each of the 2,000 slots goes through an order of prompts of its own by then


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (28, r"action 28 in slot 0 is not a token id; expected 0\.\.27"),
        (-1, "action -1"),
        (2.5, r"a token id is a whole number, got float64 \[2\.5\]"),
        (True, "a token id is a whole number, got bool"),
        ([2], r"expected one token id, got an array of shape \(1,\)"),
        ("a", "a token id is a whole number"),
        (None, "a token id is a whole number"),
    ],
)
def test_bad_actions_are_named(action: Any, message: str) -> None:
    env = TokenEnv(letter_task(), LetterTokenizer())
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=message):
        env.step(action)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([A, A], r"expected 3 token ids, got an array of shape \(2,\)"),
        ([[A, A, A]], r"shape \(1, 3\)"),
        ([A, 77, A], "action 77 in slot 1"),
        ([0.0, 1.0, 2.0], "whole number"),
    ],
)
def test_bad_batches_of_actions_are_named_and_change_nothing(actions: Any, message: str) -> None:
    env = batched(3)
    before, _ = env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=message):
        env.step(np.array(actions))
    assert np.array_equal(env.episodes.ids, before["ids"])


def test_vectors_stepped_too_early_or_too_late_say_in_which_slot() -> None:
    env = batched(2, "disabled")
    with pytest.raises(gym.error.ResetNeeded, match="slot 0, where no episode was started"):
        env.step(np.array([A, A]))
    env.reset(seed=0)
    env.step(np.array([A, EOS]))
    with pytest.raises(gym.error.ResetNeeded, match="slot 1, where the episode has ended"):
        env.step(np.array([A, A]))


class Odd(LetterTokenizer):
    """A tokenizer with something wrong with it."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.empty = wrong.pop("empty", False)
        for name, value in wrong.items():
            setattr(self, name, value)

    def encode_prompt(self, text: str) -> list[int]:
        return [] if self.empty else super().encode_prompt(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eos_id": None}, r"'letters' has no id for EOS \(got None\)"),
        ({"pad_id": None}, "no id for padding"),
        ({"eos_id": 28}, r"no id for EOS \(got 28\); expected one of 0\.\.27"),
        ({"pad_id": 0}, "both for EOS and for padding"),
        ({"empty": True}, "gives no ids for prompt 0 of task 'letters'"),
        ({"vocab_size": 4}, "gives the id 4 in a prompt"),
    ],
)
def test_unfit_tokenizers_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        TokenEnv(letter_task(), Odd(**wrong))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"max_prompt_tokens": 3},
            TaskError,
            "prompt 2 of task 'letters' has 6 tokens, more than max_prompt_tokens=3",
        ),
        ({"task": "no such task"}, TaskError, "there is no task 'no such task'"),
        ({"task_options": {"limit": 3}}, TaskError, "task_options .* are for a task given by name"),
        ({"task": Task("silent", [Prompt("a")])}, TaskError, "'silent' has no reward of its own"),
        ({"mask": {"suppress_tokens": [PAD], "word": ["a"]}}, ConfigError, "no option 'word'"),
    ],
)
def test_unfit_tasks_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    for build in (TokenEnv, TokenVectorEnv):
        with pytest.raises(error, match=message):
            build(**{"task": letter_task(), "tokenizer": LetterTokenizer(), **options})


def test_an_empty_data_set_and_a_missing_column_are_named() -> None:
    with pytest.raises(TaskError, match="has no prompts"):
        replace(letter_task(), prompts=[])

    def by_label(prompts: list[str], responses: list[str], label: list[str]) -> list[float]:
        return [0.0] * len(prompts)

    env = TokenEnv(letter_task(reward=by_label), LetterTokenizer())
    env.reset(seed=0)
    with pytest.raises(RewardError, match="needs the column 'label', which the data do not have; they have 'number'"):
        env.step(EOS)


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True])
def test_a_vector_of_no_environments_is_refused(num_envs: Any) -> None:
    with pytest.raises(ValueError, match="num_envs must be a whole number of at least 1"):
        TokenVectorEnv(num_envs, letter_task(), LetterTokenizer())


@pytest.mark.parametrize("mode", MODES)
def test_views_show_what_copies_show_and_cannot_be_written(mode: str) -> None:
    copies, views = batched(5, mode), batched(5, mode, copy_observations=False)
    first, seen = copies.reset(seed=1)[0], views.reset(seed=1)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert all(np.array_equal(first[k], seen[k]) for k in first)
        actions = rng.integers(0, 5, 5)
        first, _, terminations, _, infos = copies.step(actions)
        seen, *_, other = views.step(actions)
        for i in np.flatnonzero(infos.get("_final_obs", [])):
            assert np.array_equal(infos["final_obs"][i]["ids"], other["final_obs"][i]["ids"])
        if mode == "disabled" and terminations.any():
            first, _ = copies.reset(options={"reset_mask": terminations})
            seen, _ = views.reset(options={"reset_mask": terminations})
    with pytest.raises(ValueError, match="read-only"):
        seen["ids"][0, 0] = A


def test_stop_sequences_are_found_however_long_the_response_is() -> None:
    task = letter_task(limit=200, stop=("bab",))
    env = TokenEnv(task, LetterTokenizer())
    env.reset(seed=0)
    for _ in range(150):
        assert not env.step(B)[2]
    env.step(A)
    _, reward, terminated, _, info = env.step(B)
    assert (terminated, reward, info["response"]) == (True, 0.0, "b" * 149)


@pytest.mark.parametrize("strict", [False, True])
def test_the_action_of_an_environment_that_starts_over_is_ignored_whatever_it_is(strict: bool) -> None:
    env = batched(3, mask={"strict": strict})
    env.reset(seed=0)
    env.step(np.array([A, EOS, B]))
    with pytest.raises(gym.error.InvalidAction, match="action 99 in slot 2"):
        env.step(np.array([A, -5, 99]))
    observations, rewards, terminations, _, infos = env.step(np.array([A, -5, B]))
    assert (rewards.tolist(), terminations.tolist(), infos) == ([0.0] * 3, [False] * 3, {})
    written = (observations["length"] - observations["prompt_length"])[:, 0]
    assert written.tolist() == [2, 0, 2]
    fresh = observations["ids"][1]
    assert set(fresh[observations["length"][1, 0] :].tolist()) == {PAD}


@pytest.mark.parametrize("limit", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_stop_sequences_and_short_limits_agree_with_single_environments(mode: str, limit: int) -> None:
    task = letter_task(limit=limit, stop=("ba",))
    vector = TokenVectorEnv(4, task, LetterTokenizer(), autoreset_mode=mode)
    singles = [TokenEnv(task, LetterTokenizer()) for _ in range(4)]
    vector.reset(seed=[1, 2, 3, 4])
    for env, seed in zip(singles, [1, 2, 3, 4], strict=True):
        env.reset(seed=seed)
    ended = [False] * 4
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(40):
        if mode == "disabled" and any(ended):
            vector.reset(options={"reset_mask": np.array(ended)})
            for env in itertools.compress(singles, ended):
                env.reset()
            ended = [False] * 4
        actions = rng.choice([A, B], 4)
        observations, rewards, terminations, _, infos = vector.step(actions)
        for i, env in enumerate(singles):
            if mode == "next_step" and ended[i]:
                expected, ended[i] = env.reset()[0], False
            else:
                expected, reward, ended[i], _, info = env.step(int(actions[i]))
                assert (rewards[i], terminations[i]) == (reward, ended[i])
                if ended[i]:
                    source = infos["final_info"] if mode == "same_step" else infos
                    assert (source["response"][i], source["ended"][i]) == (info["response"], info["ended"])
                    stopped += bool(info["ended"])
                    if mode == "same_step":
                        expected = env.reset()[0]
            assert all(np.array_equal(observations[k][i], expected[k]) for k in expected)
    assert stopped > 0 or limit == 1


def test_no_environment_can_wait_in_next_step_mode() -> None:
    env = batched(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="waiting is for same-step and disabled mode"):
        env.step(np.array([WAIT, A]))


@pytest.mark.parametrize("mode", ["ansi", "rgb_array", None])
@pytest.mark.parametrize("name", ["Copy", "Brackets"])
def test_checkers_are_content_with_masks_in_infos_and_every_render_mode(name: str, mode: str | None) -> None:
    options = {"mask": {"in_info": True}, "render_mode": mode}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(f"rlhf_gym/{name}-v0", **options).unwrapped)
        sb3_check_env(TokenEnv(name.lower(), **options))  # type: ignore[arg-type]
