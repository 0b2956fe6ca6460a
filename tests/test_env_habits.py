"""The habits of Gymnasium and stable-baselines3: seeds, infos, monitors, errors, videos."""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ppo_setups import small_ppo
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecVideoRecorder
from tiny_models import LetterTokenizer
from toy_tasks import letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import (
    TextArenaEnv,
    TokenEnv,
    TokenVectorEnv,
    TurnVectorEnv,
    VectorVecEnv,
    make_conversation_env,
    make_sb3_env,
    wrap_text_env,
)
from rlhf_gym.envs.picture import HEIGHT, WIDTH
from rlhf_gym.envs.tools.document_search import search_tool
from rlhf_gym.errors import ConfigError

EOS, PAD, A, B = range(4)


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_infos_of_numbers_have_the_same_keys_at_every_step(mode: str) -> None:
    """Clients that keep infos in arrays (Tianshou's buffers) take their keys and types from the first step."""
    options: dict[str, Any] = {"task": letter_task(limit=3), "tokenizer": LetterTokenizer(), "infos": "numbers"}
    single, vector = TokenEnv(**options), TokenVectorEnv(2, autoreset_mode=mode, **options)
    infos = [single.reset(seed=0)[1], *(single.step(action)[4] for action in (2, 3, EOS))]
    assert infos == [{"ended": i == 3, "response_length": i} for i in range(4)]
    assert [type(value) for value in infos[0].values()] == [bool, int]
    assert TokenEnv(**{**options, "infos": "texts"}).reset(seed=0)[1] == {}
    kept = [vector.reset(seed=0)[1], *(vector.step(np.array(actions))[4] for actions in ([2, 2], [3, EOS], [3, 3]))]
    for info in kept:
        assert {"ended", "_ended", "response_length", "_response_length"} <= info.keys()
        assert all(info[key].shape == (2,) and info[key].dtype != np.object_ for key in ("ended", "response_length"))
        assert info["_ended"].all()
    second = kept[2]["final_info"] if mode == "same_step" else kept[2]
    assert (bool(second["ended"][1]), int(second["response_length"][1])) == (True, 2)
    assert "response" not in second
    with pytest.raises(ConfigError, match="infos must be one of texts, numbers, got 'few'"):
        TokenEnv(**{**options, "infos": "few"})
    with pytest.raises(ConfigError, match="make it with infos='texts'"):
        small_ppo(DummyVecEnv([lambda: TokenEnv(**options)]), batch_size=1)


def test_environments_know_the_seed_they_were_reset_with() -> None:
    for name in ("Copy-v0", "CopyTurn-v0", "SentimentConversation-v0"):
        env = gym.make(f"rlhf_gym/{name}").unwrapped
        env.reset(seed=42)
        env.reset()
        assert env.np_random_seed == 42, name
    for name in ("Copy-v0", "CopyTurn-v0"):
        many = gym.make_vec(f"rlhf_gym/{name}", num_envs=2)
        many.reset(seed=42)
        many.reset()
        assert many.unwrapped.np_random_seed == 42, name
        many.reset(seed=[3, 4])
        assert many.unwrapped.np_random_seed == (3, 4)


def test_a_missing_library_is_gymnasiums_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    for name in ("Reasoning-v0", "ReasoningTurn-v0"):
        with pytest.raises(gym.error.DependencyNotInstalled, match=r"pip install 'rlhf-gym\[reasoning\]'"):
            gym.make(f"rlhf_gym/{name}")
    monkeypatch.setitem(sys.modules, "textarena", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match="textarena"):
        TextArenaEnv("GuessTheNumber-v0")
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    grammar = r"pip install 'rlhf-gym\[grammar\]'"
    for mask in ({"pattern": "a+"}, {"words": ["a"]}):
        with pytest.raises(gym.error.DependencyNotInstalled, match=grammar):
            gym.make("rlhf_gym/Copy-v0", mask=mask)
        with pytest.raises(gym.error.DependencyNotInstalled, match=grammar):
            gym.make_vec("rlhf_gym/Copy-v0", num_envs=2, mask=mask)
        with pytest.raises(gym.error.DependencyNotInstalled, match=grammar):
            make_sb3_env(2, task="copy", mask=mask)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"pip install 'rlhf-gym\[search\]'"):
        search_tool(["a text"])


def test_evaluation_misses_no_monitor() -> None:
    env = make_sb3_env(3, task=letter_task(limit=3), tokenizer=LetterTokenizer(), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, _ = evaluate_policy(small_ppo(env, batch_size=3), env, n_eval_episodes=3)
    assert mean >= 0
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3


@pytest.mark.parametrize("name", ["rlhf_gym/CopyTurn-v0", "rlhf_gym/SentimentConversation-v0", "CartPole-v1"])
def test_agents_refuse_other_environments_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="agents learn token by token") as caught:
        small_ppo(name)
    assert len(str(caught.value).splitlines()) == 1
    assert ("wrap_text_env" in str(caught.value)) == ("CartPole" not in name)
    agent = small_ppo(make_sb3_env(1, task=letter_task(), tokenizer=LetterTokenizer()), batch_size=1)
    with pytest.raises(ConfigError, match="agents learn token by token"):
        agent.set_env(gym.make(name))
    with pytest.raises(ConfigError, match=r"gymnasium\.vector environment"):
        agent.set_env(TokenVectorEnv(2, letter_task(), LetterTokenizer()))


def test_vectorised_turns_are_rendered(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def make(mode: str, autoreset: str = "disabled") -> TurnVectorEnv:
        env: Any = gym.make_vec(
            "rlhf_gym/CopyTurn-v0", num_envs=2, render_mode=mode, autoreset_mode=autoreset
        ).unwrapped
        assert env.render() is None
        env.reset(seed=0)
        return env

    texts = make("ansi")
    prompts = texts.render()
    assert prompts is not None
    texts.step(["ab", "c"])
    answered = texts.render()
    assert answered is not None
    assert [line.split("│")[1].split("  [")[0] for line in answered] == ["ab", "c"]
    assert all(line.startswith(prompt) for line, prompt in zip(answered, prompts, strict=True))
    following = make("ansi", "next_step")
    for _ in range(2):  # the second step brings the next prompts
        following.step(["ab", "c"])
    assert [line.split("│")[1] for line in following.render() or ()] == ["", ""]
    pictures = make("rgb_array", "same_step")
    before = pictures.render()
    pictures.step(["ab", "c"])
    after = pictures.render()
    assert before is not None
    assert after is not None
    assert [frame.shape for frame in after] == [(HEIGHT, WIDTH, 3)] * 2
    assert not np.array_equal(before[0], after[0])  # the response, not the prompt that follows it
    make("human").step(["ab", "c"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(gym.error.UnsupportedMode, match="'gif'"):
        TurnVectorEnv(2, letter_task(), render_mode="gif")
    vector = gym.make_vec("rlhf_gym/CopyTurn-v0", num_envs=2, render_mode="rgb_array")
    recorded = gym.wrappers.vector.RecordVideo(vector, str(tmp_path), video_length=2, disable_logger=True)
    recorded.reset(seed=0)
    for _ in range(3):
        recorded.step(("ab", "c"))
    recorded.close()
    assert list(tmp_path.glob("*.mp4"))


@pytest.mark.parametrize("level", ["token", "turn"])
def test_sb3_records_videos(level: str, tmp_path: Path) -> None:
    env: Any
    if level == "token":
        env = make_sb3_env(2, task=letter_task(), tokenizer=LetterTokenizer(), render_mode="rgb_array")
    else:
        env = VectorVecEnv(TurnVectorEnv(2, letter_task(), render_mode="rgb_array", autoreset_mode="same_step"))
    assert env.get_images() == [None, None]
    recorder = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=3)
    recorder.reset()
    assert recorder.render().shape == (2 * HEIGHT, WIDTH, 3)
    for _ in range(4):
        recorder.step(np.array([A, B]) if level == "token" else np.array(["ab", "c"]))
    recorder.close()
    (video,) = tmp_path.glob("*.mp4")
    assert video.stat().st_size > 500


def test_the_pictures_of_conversations_are_those_of_their_environments() -> None:
    env = wrap_text_env(partial(gym.make, "rlhf_gym/SentimentTurn-v0", render_mode="rgb_array"), num_envs=2)
    env.reset()
    assert env.render(mode="rgb_array").shape == (2 * HEIGHT, WIDTH, 3)
    assert wrap_text_env(partial(gym.make, "rlhf_gym/SentimentTurn-v0"), num_envs=2).get_images() == [None, None]


def test_conversations_are_drawn_where_their_environment_makes_no_pictures() -> None:
    env = make_conversation_env(2, task="guess_number", render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    env.seed(0)
    env.reset()
    begun = env.render()
    assert begun is not None
    assert begun.shape == (2 * HEIGHT, WIDTH, 3)
    digit, eos = env.rules.tokenizer.encode("3")[0], env.rules.tokenizer.eos_id
    for token in (digit, eos):
        env.step(np.full(2, token))
    assert (env.get_images()[0] != begun[:HEIGHT]).any()  # the guess and the answer are there
    with pytest.raises(gym.error.UnsupportedMode, match="'ansi' is not known; expected one of rgb_array"):
        make_conversation_env(2, task="guess_number", render_mode="ansi")
