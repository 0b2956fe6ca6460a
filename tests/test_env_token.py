"""The token environments: Gymnasium's and stable-baselines3's contracts, and one trajectory however it is stepped."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tiny_models import LetterTokenizer
from toy_tasks import count_a, letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import TokenEnv, TokenVecEnv, TokenVectorEnv, make_sb3_env
from rlhf_gym.envs.token_rules import ROUND
from rlhf_gym.errors import TaskError

EOS, PAD, A, B = 0, 1, 2, 3


def single(render_mode: str | None = None, **options: Any) -> TokenEnv:
    return TokenEnv(letter_task(**options), LetterTokenizer(), render_mode=render_mode)


def batched(n: int, mode: str = "next_step", limit: int | None = None, **options: Any) -> TokenVectorEnv:
    return TokenVectorEnv(n, letter_task(**options), LetterTokenizer(), autoreset_mode=mode, max_episode_steps=limit)


def test_passes_both_checkers_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gym.register("test/Letters-v0", entry_point=single)
        check_env(gym.make("test/Letters-v0").unwrapped)
        sb3_check_env(single())


def test_an_episode_by_hand() -> None:
    env = single()
    observation, info = env.reset(seed=3)
    n = int(observation["prompt_length"][0])
    assert info == {}
    assert observation["length"][0] == n
    assert set(observation["ids"][n:].tolist()) == {PAD}
    for token in (A, B, A):
        observation, reward, terminated, truncated, info = env.step(token)
        assert (reward, terminated, truncated, info) == (0.0, False, False, {})
    observation, reward, terminated, truncated, info = env.step(EOS)
    assert (reward, terminated, truncated) == (2.0, True, False)
    assert observation["ids"][n : n + 4].tolist() == [A, B, A, EOS]
    assert info["response"] == "aba"
    assert info["ended"] is True
    assert info["response_length"] == 4
    assert info["reward_terms"] == {"count_a": 2.0}


def test_the_length_limit_terminates_and_is_scored() -> None:
    env = single(limit=3)
    env.reset(seed=0)
    outcomes = [env.step(A)[1:4] for _ in range(3)]
    assert outcomes == [(0.0, False, False), (0.0, False, False), (3.0, True, False)]


def test_a_stop_sequence_ends_and_is_cut() -> None:
    env = single(stop=("ba",))
    env.reset(seed=0)
    assert [env.step(t)[2] for t in (A, B)] == [False, False]
    _, reward, terminated, _, info = env.step(A)
    assert (reward, terminated, info["response"], info["ended"]) == (1.0, True, "a", True)


def test_masks_ban_padding_and_hold_back_eos() -> None:
    env = single(minimum=1)
    env.reset(seed=0)
    assert np.flatnonzero(~env.action_masks()).tolist() == [EOS, PAD]
    env.step(A)
    assert np.flatnonzero(~env.action_masks()).tolist() == [PAD]


def test_columns_reach_the_reward_and_all_endings_share_one_call() -> None:
    calls = []

    def reward(prompts: list[str], responses: list[str], number: list[int]) -> list[float]:
        calls.append(list(number))
        assert [("abc", "d", "efghij", "bb")[n] for n in number] == prompts
        return [float(n) for n in number]

    env = batched(8, reward=reward, limit=None)
    env.reset(seed=0)
    env.step(np.full(8, EOS))
    assert [len(c) for c in calls] == [8]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_vector_and_single_environments_agree_step_for_step(data: st.DataObject) -> None:
    seeds = data.draw(st.lists(st.integers(0, 2**31), min_size=1, max_size=4))
    mode = data.draw(st.sampled_from(["next_step", "same_step", "disabled"]))
    vector = batched(len(seeds), mode, limit=4)
    singles = [gym.wrappers.TimeLimit(single(), 4) for _ in seeds]
    observations, _ = vector.reset(seed=list(seeds))
    expected = [e.reset(seed=s)[0] for e, s in zip(singles, seeds, strict=True)]
    ended = [False] * len(seeds)
    token = st.sampled_from([EOS, A, A, B])
    for _ in range(data.draw(st.integers(1, 14))):
        for i, obs in enumerate(expected):
            assert all(np.array_equal(observations[k][i], obs[k]) for k in obs)
        actions = np.array([data.draw(token) for _ in seeds])
        if mode == "disabled" and any(ended):
            options = {"reset_mask": np.array(ended)}
            observations, _ = vector.reset(options=options)
            assert set(options) == {"reset_mask"}
            expected = [e.reset()[0] if x else o for e, x, o in zip(singles, ended, expected, strict=True)]
            ended = [False] * len(seeds)
            continue
        observations, rewards, terminations, truncations, infos = vector.step(actions)
        for i, env in enumerate(singles):
            if mode == "next_step" and ended[i]:
                expected[i], outcome, ended[i] = env.reset()[0], (0.0, False, False), False
            else:
                expected[i], *outcome, info = env.step(int(actions[i]))
                ended[i] = outcome[1] or outcome[2]
                source = infos.get("final_info", {}) if mode == "same_step" else infos
                if outcome[1]:
                    assert source["response"][i] == info["response"]
                    assert source["reward_terms"]["count_a"][i] == info["reward_terms"]["count_a"]
                if mode == "same_step" and ended[i]:
                    assert np.array_equal(infos["final_obs"][i]["ids"], expected[i]["ids"])
                    expected[i] = env.reset()[0]
            assert (rewards[i], terminations[i], truncations[i]) == tuple(outcome)


def test_an_int_seed_gives_every_slot_its_own_stream() -> None:
    a, b = batched(64), batched(64)
    first, again = a.reset(seed=1)[0]["ids"], b.reset(seed=1)[0]["ids"]
    assert np.array_equal(first, again)
    assert len({tuple(row) for row in first.tolist()}) == 4
    assert not np.array_equal(first[1:], batched(64).reset(seed=2)[0]["ids"][:-1])


def test_observations_are_copies() -> None:
    env = batched(2)
    first, _ = env.reset(seed=0)
    before = copy.deepcopy(first)
    env.step(np.array([A, B]))
    assert all(np.array_equal(first[k], before[k]) for k in first)


@pytest.mark.parametrize("action", [-1, 28])
def test_an_action_outside_the_vocabulary_is_named(action: int) -> None:
    env = single()
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=f"action {action} .*expected 0..27"):
        env.step(action)


def test_stepping_before_reset_or_after_the_end_is_refused() -> None:
    env = single()
    with pytest.raises(gym.error.ResetNeeded, match="no episode was started"):
        env.step(A)
    env.reset(seed=0)
    env.step(EOS)
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(A)


def test_a_tokenizer_whose_pad_is_eos_is_refused() -> None:
    tokenizer = LetterTokenizer()
    tokenizer.pad_id = tokenizer.eos_id
    with pytest.raises(TaskError, match="both for EOS and for padding"):
        TokenEnv(letter_task(), tokenizer)


@pytest.mark.parametrize("mask", [np.zeros(2, dtype=bool), np.ones(3, dtype=bool), [True, True]])
def test_bad_reset_masks_are_refused(mask: Any) -> None:
    env = batched(2, "disabled")
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


def test_pickles_and_copies_go_on_alike() -> None:
    env = single()
    env.reset(seed=5)
    env.step(A)
    twins = [env, pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    outcomes = [[str(t.step(B)), str(t.step(EOS)), str(t.reset())] for t in twins]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_registered_environments_make_by_name_and_survive_json() -> None:
    for env in (gym.make("rlhf_gym/Sentiment-v0"), gym.make("rlhf_gym:rlhf_gym/Sentiment-v0")):
        assert isinstance(env.unwrapped, TokenEnv)
        assert env.spec is not None
        again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
        assert np.array_equal(again.reset(seed=1)[0]["ids"], env.reset(seed=1)[0]["ids"])
    vector = gym.make_vec("rlhf_gym/Sentiment-v0", num_envs=3, task_options={"max_new_tokens": 5})
    assert isinstance(vector, TokenVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert vector.reset(seed=0)[0]["ids"].shape[0] == 3


def rollout_by_steps(env: TokenVecEnv, actions: np.ndarray) -> list[tuple[float, str]]:
    out = []
    for row in actions:
        _, rewards, dones, infos = env.step(row)
        out += [(float(rewards[i]), infos[i]["response"]) for i in np.flatnonzero(dones)]
    return out


def test_the_fast_path_gives_the_episodes_that_stepping_gives() -> None:
    responses = [[A, A, EOS], [B, A, EOS]]
    options: dict[str, Any] = {"task": letter_task(), "tokenizer": LetterTokenizer(), "seed": 7}
    stepped, fast = make_sb3_env(2, **options), make_sb3_env(2, **options)
    first = stepped.reset()
    for _ in range(3):
        for _ in range(2):  # an episode without a token is kept
            fast.set_options(dict(ROUND))
            begun = fast.reset()
        assert all(np.array_equal(begun[key], first[key]) for key in first)  # type: ignore[call-overload,index]
        expected = rollout_by_steps(stepped, np.array(responses).T)
        rewards, infos = fast.score_ended(fast.end_episodes([0, 1], responses))
        assert [(float(r), i["response"]) for r, i in zip(rewards, infos, strict=True)] == expected
        first = dict(stepped.env.episodes.observe())


def test_the_sb3_adapter_reports_what_sb3_reads() -> None:
    env = make_sb3_env(3, task=letter_task(limit=2), tokenizer=LetterTokenizer(), seed=0)
    env.reset()
    env.step(np.array([A, EOS, B]))
    observation, rewards, dones, infos = env.step(np.array([A, A, B]))
    assert dones.tolist() == [True, False, True]
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [2.0, 0.0, 0.0]
    assert infos[0]["episode"] == {"r": 2.0, "l": 2, "t": 0.0}
    assert infos[0]["TimeLimit.truncated"] is False
    n = infos[0]["terminal_observation"]["prompt_length"][0]
    assert infos[0]["terminal_observation"]["ids"][n : n + 2].tolist() == [A, A]
    assert infos[1] == {}
    assert len({id(i) for i in infos}) == 3
    masks = np.stack(env.env_method("action_masks"))
    assert masks.shape == (3, 28)
    with pytest.raises(AttributeError):
        env.get_attr("no_such_attribute")
    assert observation["length"].shape == (3, 1)  # type: ignore[call-overload,index]


def test_many_episodes_need_no_more_memory() -> None:
    env = batched(64, "same_step", reward=count_a)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    held = {k: v.nbytes for k, v in vars(env.episodes).items() if isinstance(v, np.ndarray)}
    for _ in range(300):
        env.step(rng.integers(0, 28, 64))
    assert held == {k: v.nbytes for k, v in vars(env.episodes).items() if isinstance(v, np.ndarray)}
