"""GEM's and TextArena's environments: on stand-ins with their interfaces, and on the libraries themselves if installed."""

from __future__ import annotations

import importlib.util
import random
import sys
import types
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rlhf_gym.envs import GemEnv, TextArenaEnv
from rlhf_gym.errors import ConfigError

WITH = {name: importlib.util.find_spec(name) is not None for name in ("gem", "textarena")}


class Guess:
    """GEM's interface: guess a number of 0 to 9 within three turns. Draws from global random numbers, as GEM's games do."""

    def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - as GEM does
        self.number, self.turn = random.randrange(10), 0
        return "guess", {"suffix": "your turn"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        right = action == str(self.number)
        noise = float(np.random.rand()) / 100  # noqa: NPY002
        return "yes" if right else "no", float(right) + noise, right, not right and self.turn == 3, {}


class Nim:
    """TextArena's interface: players in turn take 1 or 2 of 5; who takes the last one wins. Global random numbers too."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        if seed is not None:
            random.seed(seed)
        self.players, self.left, self.player, self.mark = num_players, 5, 0, random.random()

    def get_observation(self) -> tuple[int, str]:
        return self.player, f"player {self.player}: {self.left} left ({self.mark:.4f})"

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        self.left -= int(action)
        if self.left <= 0:
            return True, {"last": self.player}
        self.player = (self.player + 1) % self.players
        return False, {}

    def close(self) -> tuple[dict[int, float], dict[int, Any]]:
        return {p: 1.0 if p == self.player else -1.0 for p in range(self.players)}, {0: {"reason": "over"}}


def ones(observation: str, rng: np.random.Generator) -> str:
    return "1"


def test_gem_passes_the_checker_and_gives_what_gem_gives() -> None:
    env = GemEnv(Guess())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an environment made by hand has no spec
        check_env(env)
    observation, info = env.reset(seed=1)
    assert (observation, info) == ("guess\nyour turn", {"suffix": "your turn"})
    number = env.wrapped.number
    wrong = str((number + 1) % 10)
    observation, _, terminated, truncated, _ = env.step(wrong)
    assert (observation, terminated, truncated) == ("no", False, False)
    assert env.step(str(number))[2:4] == (True, False)
    env.reset()
    number = env.wrapped.number
    wrong = str((number + 1) % 10)
    assert [env.step(wrong)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step("1")


def test_seeds_hold_and_global_random_numbers_are_left_alone() -> None:
    def run(env: GemEnv, disturb: bool) -> list[Any]:
        out: list[Any] = []
        for episode in range(5):
            env.reset(seed=7 if episode == 0 else None)
            if disturb:
                random.seed(3)
                np.random.seed(3)  # noqa: NPY002
            out += [env.wrapped.number, *env.step("11")[:2]]
        return out

    first = run(GemEnv(Guess()), disturb=False)
    assert run(GemEnv(Guess()), disturb=True) == first
    assert len({*first[::3]}) > 1
    a, b = GemEnv(Guess()), GemEnv(Guess())
    a.reset(seed=1)
    b.reset(seed=2)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    a.step("3")
    b.reset(seed=9)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_textarena_alone_and_against_others() -> None:
    env = TextArenaEnv(Nim())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env_of_moves(env)
    observation, info = env.reset(seed=1)
    assert observation.startswith("player 0: 5 left")
    assert env.reset(seed=1)[0] == observation
    assert env.step("2")[1:4] == (0.0, False, False)
    env.step("2")
    observation, reward, terminated, truncated, info = env.step("1")
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info == {"last": 0, "rewards": {0: 1.0}, "game": {0: {"reason": "over"}}}
    second = TextArenaEnv(Nim(), num_players=2, player=1, opponent=ones)
    observation, _ = second.reset(seed=1)
    assert observation.startswith("player 1: 4 left")
    assert second.step("2")[0].startswith("player 1: 1 left")
    assert second.step("1")[1:3] == (1.0, True)
    second.reset()
    second.step("1")
    _, reward, terminated, _, info = second.step("1")
    assert (reward, terminated, info["rewards"]) == (-1.0, True, {0: 1.0, 1: -1.0})


def test_a_game_that_ends_before_the_players_first_turn_is_not_played_on() -> None:
    takes = iter("1122")
    env = TextArenaEnv(Nim(), num_players=2, player=1, opponent=lambda observation, rng: next(takes))
    env.reset(seed=0)
    env.opponent = lambda observation, rng: "5"
    with pytest.raises(gym.error.Error, match="ended before this player's first turn"):
        env.reset()
    with pytest.raises(gym.error.ResetNeeded):
        env.step("1")


def check_env_of_moves(env: TextArenaEnv) -> None:
    env.action_space.sample = lambda mask=None, probability=None: "1"  # type: ignore[method-assign]
    check_env(env)


def test_long_observations_are_cut_in_front_and_rendered(capsys: pytest.CaptureFixture[str]) -> None:
    env = GemEnv(Guess(), max_observation=4, render_mode="ansi")
    assert env.render() is None
    assert env.reset(seed=0)[0] == env.render() == "turn"
    GemEnv(Guess(), render_mode="human").reset(seed=0)
    assert capsys.readouterr().out == "guess\nyour turn\n"


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"player must lie in 0\.\.0"):
        TextArenaEnv(Nim(), player=1)
    with pytest.raises(ConfigError, match="needs a function that acts for the others"):
        TextArenaEnv(Nim(), num_players=2)
    with pytest.raises(ConfigError, match="max_observation must be at least 1"):
        GemEnv(Guess(), max_observation=0)
    with pytest.raises(ConfigError, match="options level are for an environment given by name"):
        GemEnv(Guess(), level=3)
    with pytest.raises(gym.error.ResetNeeded, match="no episode was started"):
        GemEnv(Guess()).step("1")
    env = GemEnv(Guess())
    env.reset(seed=0)
    with pytest.raises(gym.error.InvalidAction, match="expected the response as a text"):
        env.step(3)  # type: ignore[arg-type]
    with pytest.raises(gym.error.InvalidAction, match="4097 characters"):
        env.step("1" * 4097)
    monkeypatch.setitem(sys.modules, "gem", None)
    with pytest.raises(ConfigError, match="'game:Guess' needs gem: pip install gem-llm"):
        GemEnv("game:Guess")
    fake = types.ModuleType("textarena")
    fake.make = lambda name, **options: Nim() if name == "Nim" else 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "textarena", fake)
    assert TextArenaEnv("Nim").reset(seed=0)[0]
    with pytest.raises(ConfigError, match="textarena cannot make the environment 'Go': ZeroDivisionError"):
        TextArenaEnv("Go")


@pytest.mark.skipif(not WITH["gem"], reason="gem-llm is not installed (see docs/tasks.md)")
def test_a_game_of_gems_own() -> None:
    env = GemEnv("game:GuessTheNumber-v0-easy")
    first = [env.reset(seed=3)[0], *(env.step(f"\\boxed{{{n}}}")[:4] for n in (1, 2))]
    again = [env.reset(seed=3)[0], *(env.step(f"\\boxed{{{n}}}")[:4] for n in (1, 2))]
    assert first == again
    assert "Guess The Number" in str(first[0])
    rewards = []
    env.reset(seed=4)
    for n in range(1, 11):
        _, reward, terminated, truncated, _ = env.step(f"\\boxed{{{n}}}")
        rewards.append(reward)
        if terminated or truncated:
            break
    assert terminated or truncated


@pytest.mark.skipif(not WITH["textarena"], reason="textarena is not installed: pip install 'rlhf-gym[textarena]'")
def test_games_of_textarenas_own() -> None:
    env = TextArenaEnv("GuessTheNumber-v0")
    first = env.reset(seed=3)[0]
    assert "Guess The Number" in first
    done, n, reward = False, 0, 0.0
    while not done:
        n += 1
        _, reward, done, _, info = env.step(f"[{n}]")
    assert info["rewards"] == {0: reward}
    assert env.reset(seed=3)[0] == first  # nothing of the game before is shown

    def first_free(observation: str, rng: np.random.Generator) -> str:
        return observation.rpartition("Available Moves: ")[2].split("'")[1]

    game = TextArenaEnv("TicTacToe-v0", num_players=2, opponent=first_free)
    observation, _ = game.reset(seed=0)
    done = False
    while not done:
        observation, reward, done, _, info = game.step(first_free(observation, game.np_random))
    assert reward == info["rewards"][0] in (-1, 0, 1)
