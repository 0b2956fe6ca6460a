"""Render modes: what each gives, what colours mean, and that Gymnasium's video recorders take the frames."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordVideo
from tiny_models import LetterTokenizer, tiny_language_model
from toy_tasks import letter_task

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import ConversationEnv, TokenEnv, TokenVectorEnv, TurnEnv
from rlhf_gym.envs.picture import HEIGHT, WIDTH, _wrap
from rlhf_gym.envs.rendering import Painter, Piece, scale_colour, split_pieces
from rlhf_gym.errors import TaskError
from rlhf_gym.lm.tokenizer import load_tokenizer
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt
from rlhf_gym.tasks.symbol_tokenizer import SymbolTokenizer

EOS, PAD, A, B = range(4)


def letters(mode: str | None, **options: Any) -> TokenEnv:
    return TokenEnv(letter_task(), LetterTokenizer(), render_mode=mode, **options)


def test_ansi_is_one_line_of_prompt_and_response() -> None:
    env = letters("ansi")
    assert env.render() is None
    env.reset(seed=0)
    prompt = LetterTokenizer().decode(env.episodes.ids[0, : env.episodes.prompt_length[0]].tolist())
    env.step(A)
    env.step(B)
    assert env.render() == f"{prompt} │ab"


def test_human_prints_by_itself_and_shows_the_reward_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    env = letters("human")
    env.reset(seed=0)
    for action in (A, B, EOS):
        env.step(action)
    assert env.render() is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("│")[1].rstrip() for line in lines] == ["", "a", "ab", "ab  [1.000]", "ab  [1.000]"]


def test_human_colours_tokens_by_probability(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    env = letters("human", render_model=tiny_language_model(scale=4.0))
    env.reset(seed=0)
    env.step(A)
    painter = env._painter
    (piece,) = painter.pieces(env.episodes, 0)
    red, green, blue = painter.colour_of(piece, None)
    assert f"38;2;{red};{green};{blue}m" in capsys.readouterr().out


def test_probabilities_are_the_models_own() -> None:
    import torch

    model = tiny_language_model(scale=4.0)
    env = letters(None, render_model=model)
    env.reset(seed=0)
    for action in (A, B, A):
        env.step(action)
    ids = torch.tensor(env.episodes.ids[0, : env.episodes.length[0]])[None]
    with torch.no_grad():
        probs = torch.softmax(model.logits(model.hidden(ids)[0]), dim=-1)
    n = int(env.episodes.prompt_length[0])
    expected = [float(probs[n - 1 + t, token]) for t, token in enumerate((A, B, A))]
    pieces = env._painter.pieces(env.episodes, 0)
    assert [p.text for p in pieces] == ["a", "b", "a"]
    assert [p.probability for p in pieces] == pytest.approx(expected, rel=1e-5)


def test_pieces_of_a_character_of_several_tokens_wait_for_its_end() -> None:
    tokenizer = load_tokenizer("embedded")
    ids = tokenizer.encode("né ☃")
    pieces = split_pieces(ids, [i / 10 for i in range(len(ids))], tokenizer.decode)
    assert "".join(p.text for p in pieces) == "né ☃"
    assert len(pieces) < len(ids)
    assert all("\N{REPLACEMENT CHARACTER}" not in p.text for p in pieces)
    assert pieces[-1].probability == (len(ids) - 1) / 10


def test_colours_go_from_red_to_green() -> None:
    low, middle, high = (scale_colour(v) for v in (-1.0, 0.5, 2.0))
    assert low == scale_colour(0.0)
    assert high == scale_colour(1.0)
    assert low[0] > low[1]
    assert middle[0] == middle[1]
    assert high[1] > high[0]
    painter = Painter()
    for reward in (2.0, -2.0, 1.0):
        painter.note(0, reward)
    assert painter.reward_colour(1.0) == scale_colour(0.75)
    assert painter.colour_of(Piece("x"), 2.0) == scale_colour(1.0)
    assert painter.colour_of(Piece("x", 0.25), 2.0) == scale_colour(0.5)


def test_frames_are_pictures_that_change_with_every_token_and_at_the_end() -> None:
    env = letters("rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for action in (A, B, EOS):
        env.step(action)
        frames.append(env.render())
    for frame in frames:
        assert isinstance(frame, np.ndarray)
        assert (frame.shape, frame.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert len({f.tobytes() for f in frames if isinstance(f, np.ndarray)}) == 4


def test_long_texts_are_wrapped_and_their_end_is_shown() -> None:
    lines = _wrap([("aa bb", (0, 0, 0)), ("bb cccccccccc\nd", (1, 1, 1))], lambda text: float(len(text)), 6)
    assert ["".join(text for _, text, _ in line) for line in lines] == ["aa bb", "bb", "cccccc", "cccc", "d"]
    assert all(x + len(text) <= 6 for line in lines for x, text, _ in line)
    env = TokenEnv(letter_task(limit=400), LetterTokenizer(), render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(398):
        env.step(B)
    before = env.render()
    env.step(A)
    assert not np.array_equal(before, env.render())  # type: ignore[arg-type]


def test_record_video_works(tmp_path: Path) -> None:
    env = RecordVideo(
        gym.make("rlhf_gym/Copy-v0", render_mode="rgb_array"), str(tmp_path / "videos"), disable_logger=True
    )
    env.reset(seed=0)
    while not env.step(2)[2]:
        pass
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 500


@pytest.mark.parametrize("name", ["CopyTurn", "SentimentConversation"])
def test_whole_responses_make_videos_too(name: str, tmp_path: Path) -> None:
    env = RecordVideo(
        gym.make(f"rlhf_gym/{name}-v0", render_mode="rgb_array"), str(tmp_path / "videos"), disable_logger=True
    )
    prompt, _ = env.reset(seed=0)
    before: Any = env.render()
    assert before.shape == (HEIGHT, WIDTH, 3)
    assert before.dtype == np.uint8
    while not env.step(prompt[:2])[2]:
        pass
    assert not np.array_equal(before, env.render())  # type: ignore[arg-type]
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 500


def test_a_terminal_is_not_told_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\u202eevil"
    task = Task("hostile", [Prompt(hostile)], reward=lambda prompts, responses: [0.0] * len(prompts))
    turn = TurnEnv(task, render_mode="human")
    turn.reset(seed=0)
    turn.step(hostile)
    talk = ConversationEnv(task, user={"lines": [hostile]}, render_mode="human")
    talk.reset(seed=0)
    talk.step(hostile)
    letters = Task("hostile", [Prompt("ab")], reward=task.reward, max_new_tokens=3)
    for mode in ("human", "ansi"):
        token = TokenEnv(letters, SymbolTokenizer("\x1bab"), render_mode=mode)
        token.reset(seed=0)
        token.step(2)
        print(token.render() or "")
    out = capsys.readouterr().out
    assert out.count("\\x1b") >= 6
    assert "\x1b[2J" not in out
    assert "ab │\x1b" not in out
    assert "\u202e" not in out


def test_the_vector_environment_renders_every_slot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def make(mode: str) -> TokenVectorEnv:
        env = TokenVectorEnv(3, letter_task(), LetterTokenizer(), render_mode=mode, autoreset_mode="disabled")
        env.reset(seed=0)
        env.step(np.array([A, EOS, B]))
        return env

    texts = make("ansi").render()
    assert texts is not None
    assert [str(t).split("│")[1] for t in texts] == ["a", "", "b"]
    frames = make("rgb_array").render()
    assert frames is not None
    assert [f.shape for f in frames] == [(HEIGHT, WIDTH, 3)] * 3
    assert make("human").render() is None
    assert len(capsys.readouterr().out.splitlines()) == 6
    vector = gym.make_vec("rlhf_gym/Copy-v0", num_envs=2, render_mode="rgb_array")
    recorded = gym.wrappers.vector.RecordVideo(vector, str(tmp_path / "videos"), video_length=3, disable_logger=True)
    recorded.reset(seed=0)
    for _ in range(4):
        recorded.step(np.array([2, 3]))
    recorded.close()
    assert list(tmp_path.glob("videos/*.mp4"))


def test_an_unknown_mode_and_a_missing_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(gym.error.UnsupportedMode, match="'gif' is not known; expected one of ansi, human, rgb_array"):
        letters("gif")
    with pytest.raises(gym.error.UnsupportedMode, match="'gif'"):
        TokenVectorEnv(2, letter_task(), LetterTokenizer(), render_mode="gif")
    env = letters("rgb_array")
    env.reset(seed=0)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(TaskError, match=r"rlhf-gym\[render\]"):
        env.render()
