"""The turn level: Gymnasium's contract in both formats, and the token level's prompts, rewards and infos."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import LetterTokenizer
from toy_tasks import count_a, letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import TokenEnv, TurnEnv
from rlhf_gym.envs.registration import ENVIRONMENTS, turn_level
from rlhf_gym.envs.turn_spaces import AnyText
from rlhf_gym.errors import ConfigError, RewardError, TaskError

EOS, PAD, A, B = 0, 1, 2, 3

Format = Literal["text", "tokens"]
FORMATS: tuple[Format, ...] = ("text", "tokens")


def turn(kind: Format, render_mode: str | None = None, **options: Any) -> TurnEnv:
    return TurnEnv(letter_task(**options), LetterTokenizer(), format=kind, render_mode=render_mode)


@pytest.mark.parametrize("kind", FORMATS)
def test_passes_the_checker_without_a_warning(kind: Format) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gym.register(
            f"test/{kind}-v0",
            entry_point="rlhf_gym.envs.turn_env:TurnEnv",
            kwargs={"task": "copy", "format": kind},
        )
        check_env(gym.make(f"test/{kind}-v0").unwrapped)
        # The passive checker and the time limit's wrapper take its spaces too.
        env = gym.make(f"test/{kind}-v0", max_episode_steps=3)
        env.reset(seed=0)
        assert env.step(env.action_space.sample())[2]


def test_the_checker_takes_a_task_on_the_embedded_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("rlhf_gym/SentimentTurn-v0").unwrapped)


def test_a_text_turn_by_hand() -> None:
    env = turn("text", stop=("!",))
    prompt, info = env.reset(seed=3)
    assert info == {"prompt": prompt}
    observation, reward, terminated, truncated, info = env.step("aab! aaa")
    assert (observation, reward, terminated, truncated) == (prompt + "aab", 2.0, True, False)
    assert info == {"prompt": prompt, "response": "aab", "reward_terms": {"count_a": 2.0}}


def test_a_turn_of_tokens_by_hand() -> None:
    env = turn("tokens")
    observation, info = env.reset(seed=3)
    n = int(observation["prompt_length"][0])
    for action in ([A, B, A, EOS, A, PAD], [A, B, A]):  # what follows EOS is ignored; a shorter row has ended
        observation, _ = env.reset(seed=3)
        observation, reward, terminated, truncated, info = env.step(np.array(action))
        assert (reward, terminated, truncated) == (2.0, True, False)
        assert observation["ids"][n : n + 5].tolist() == [A, B, A, EOS, PAD]
        assert (info["response"], info["ended"], info["response_length"]) == ("aba", True, 4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), ids=st.lists(st.integers(0, 27), min_size=6, max_size=6), stop=st.booleans())
def test_the_token_level_gives_the_same_for_the_same_seed_and_ids(seed: int, ids: list[int], stop: bool) -> None:
    options: dict[str, Any] = {"stop": ("ab", "d") if stop else ()}
    tokens = TokenEnv(letter_task(**options), LetterTokenizer())
    start, _ = tokens.reset(seed=seed)
    whole = turn("tokens", **options)
    begun, info = whole.reset(seed=seed)
    text = turn("text", **options)
    assert text.reset(seed=seed)[1] == info
    assert all(np.array_equal(start[key], begun[key]) for key in start)
    observation, reward, info = start, 0.0, {}
    for token in ids:
        observation, reward, terminated, _, info = tokens.step(token)
        if terminated:
            break
    got, turn_reward, _, _, turn_info = whole.step(np.array(ids))
    assert (turn_reward, turn_info) == (reward, info)
    assert all(np.array_equal(observation[key], got[key]) for key in observation)
    written = LetterTokenizer().decode(ids[: ids.index(EOS)] if EOS in ids else ids)
    _, text_reward, _, _, text_info = text.step(written)
    assert (text_reward, text_info["response"]) == (reward, info["response"])


@pytest.mark.parametrize("kind", FORMATS)
def test_steps_out_of_turn_are_refused(kind: Format) -> None:
    env = turn(kind)
    action = env.action_space.sample()
    with pytest.raises(gym.error.ResetNeeded, match="no episode was started"):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(action)


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("text", 3, "expected the response as a text, got int"),
        ("text", "a" * 97, "97 characters, more than the 96"),
        ("tokens", [A] * 7, "a row of 1 to 6 token ids"),
        ("tokens", [], "a row of 1 to 6 token ids"),
        ("tokens", [0.5], "got float64"),
        ("tokens", [A, 28], "28 is not a token id; expected 0..27"),
        ("tokens", [-1], "-1 is not a token id"),
    ],
)
def test_wrong_actions_are_refused_and_leave_the_episode_as_it_was(kind: Format, action: Any, message: str) -> None:
    env = turn(kind)
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match=message):
        env.step(action)
    good: Any = "a" if kind == "text" else [A]
    assert env.step(good)[1] == 1.0


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("raised", "seen"), [(ConnectionError, RewardError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_reward_that_fails_leaves_the_prompt_to_be_answered_again(
    kind: Format, raised: type[BaseException], seen: type[BaseException]
) -> None:
    failing = [True]

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        if failing:
            failing.pop()
            raise raised("no reward")
        return count_a(prompts, responses)

    env = TurnEnv(letter_task(reward), LetterTokenizer(), format=kind)
    _, begun = env.reset(seed=0)
    first, second = ("b", "aa") if kind == "text" else ([B, A, B], [A, A])
    with pytest.raises(seen, match="no reward"):
        env.step(first)
    _, total, _, _, info = env.step(second)
    assert (total, info["prompt"], info["response"]) == (2.0, begun["prompt"], "aa")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="format must be 'text' or 'tokens'"):
        turn("words")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_characters must be at least 1"):
        TurnEnv("copy", max_characters=0)
    with pytest.raises(ConfigError, match="belongs to the format 'text'"):
        TurnEnv("copy", format="tokens", max_characters=3)
    with pytest.raises(TaskError, match="already built"):
        TurnEnv(letter_task(), task_options={"limit": 3})
    with pytest.raises(TaskError, match="has no reward"):
        TurnEnv("table", task_options={"data": [{"prompt": "p"}]})
    with pytest.raises(gym.error.UnsupportedMode, match="'video'"):
        TurnEnv("copy", render_mode="video")


@pytest.mark.parametrize("kind", FORMATS)
def test_copies_go_their_own_way(kind: Format) -> None:
    env = turn(kind)
    env.reset(seed=5)
    good: Any = "aa" if kind == "text" else [A, A]
    for other in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert other.step(good)[1] == 2.0
    assert env.step(good)[1] == 2.0


def test_what_is_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    env = turn("text", "ansi")
    assert env.render() is None
    prompt, _ = env.reset(seed=0)
    assert env.render() == f"{prompt} │"
    env.step("aa")
    assert env.render() == f"{prompt} │aa  [2.000]"
    human = turn("tokens", "human")
    human.reset(seed=0)
    human.step([A])
    assert human.render() is None
    assert capsys.readouterr().out == f"{prompt} │\n{prompt} │a  [1.000]\n"


def test_every_task_is_registered_at_both_levels_and_its_spec_is_json() -> None:
    for name in ENVIRONMENTS:
        spec = gym.spec(f"rlhf_gym/{turn_level(name)}")
        assert EnvSpec.from_json(spec.to_json()) == spec
    assert turn_level("Sort-v0") == "SortTurn-v0"


def test_many_at_once() -> None:
    envs = gym.make_vec("rlhf_gym/CopyTurn-v0", num_envs=3)
    prompts, _ = envs.reset(seed=0)
    _, rewards, terminated, _, infos = envs.step(tuple(p[:-1] for p in prompts))
    assert rewards.tolist() == [1.0, 1.0, 1.0]
    assert terminated.all()
    assert infos["response"].tolist() == [p[:-1] for p in prompts]
    tokens = gym.make_vec("rlhf_gym/CopyTurn-v0", num_envs=3, format="tokens")
    tokens.reset(seed=0)
    assert tokens.step(tokens.action_space.sample())[2].all()


def test_the_text_form_of_a_small_task_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, gymnasium as gym, rlhf_gym; env = gym.make('rlhf_gym/SortTurn-v0'); env.reset(seed=0); env.step('1'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_any_text_holds_every_script_and_samples_itself() -> None:
    space = AnyText(8, seed=0)
    assert all(text in space for text in ("", "naïve", "日本語", "\N{GRINNING FACE}"))
    assert all(x not in space for x in ("123456789", 3, None, b"ab"))
    assert all(space.sample() in space for _ in range(20))
    assert pickle.loads(pickle.dumps(space)) == space == copy.deepcopy(space)
    assert space != AnyText(9)
    assert space != gym.spaces.Text(8)
