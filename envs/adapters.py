"""Environments of other libraries at the turn level: GEM's and TextArena's, as Gymnasium environments over texts.

Both libraries draw from Python's and NumPy's global random numbers. Here each environment keeps a state of its own, which
replaces the global one while it runs: a seed gives the same episodes whatever else the process does, and does not disturb it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.missing import LibraryMissingError
from rlhf_gym.envs.rendering import check_render_mode
from rlhf_gym.envs.turn_spaces import AnyText, as_text_action
from rlhf_gym.errors import ConfigError

MOST_TURNS = 1000
"""Turns of opponents in a row after which a game counts as stuck."""

_GLOBAL_RANDOMNESS = threading.RLock()  # held while an environment's state is in the place of the global one

Opponent = Callable[[str, np.random.Generator], str]
"""Gives another player's action: ``opponent(observation, rng)``."""


class Adapter(gym.Env[str, str]):
    """The base of the adapters: spaces, random numbers, rendering, and the order of calls.

    Args:
        max_observation: most characters of an observation; of a longer one, its end is given.
        max_characters: most characters of an action.
        render_mode: ``"ansi"`` or ``"human"``.

    Raises:
        ConfigError: a number below 1, or an unknown render mode.
    """

    metadata = {"render_modes": ["ansi", "human"], "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(self, max_observation: int, max_characters: int, render_mode: str | None) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        for name, value in (("max_observation", max_observation), ("max_characters", max_characters)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.max_observation, self.max_characters = max_observation, max_characters
        self.observation_space = AnyText(max_observation)
        self.action_space = AnyText(max_characters)
        self.render_mode = render_mode
        self._randomness: tuple[Any, Any] | None = None
        self._running = False
        self._shown: str | None = None

    def _start(self, seed: int | None) -> int | None:
        """The seed for the wrapped environment; None lets it go on with its own random numbers."""
        super().reset(seed=seed)
        self._running = False  # until the wrapped environment has started
        if seed is not None or self._randomness is None:
            seed = int(self.np_random.integers(2**31))
            self._randomness = (random.Random(seed).getstate(), np.random.RandomState(seed).get_state())
            return seed
        return None

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        with _GLOBAL_RANDOMNESS:
            outside = random.getstate(), np.random.get_state()  # noqa: NPY002 - the libraries draw from it
            assert self._randomness is not None
            random.setstate(self._randomness[0])
            np.random.set_state(self._randomness[1])  # noqa: NPY002
            try:
                yield
            finally:
                self._randomness = random.getstate(), np.random.get_state()  # noqa: NPY002
                random.setstate(outside[0])
                np.random.set_state(outside[1])  # noqa: NPY002

    def _check_step(self, action: Any) -> str:
        if not self._running:
            raise gym.error.ResetNeeded(
                f"step() where {'the episode has ended' if self._shown is not None else 'no episode was started'}: call reset()"
            )
        return as_text_action(action, self.max_characters)

    def _show(self, text: str) -> str:
        """An observation that fits the space: of a longer one, its end."""
        self._shown = text[-self.max_observation :]
        if self.render_mode == "human":
            print(self._shown)
        return self._shown

    def render(self) -> str | None:
        """The last observation (``ansi``); None before the first reset and in other modes."""
        return self._shown if self.render_mode == "ansi" else None


class GemEnv(Adapter):
    """An environment of GEM (package ``gem-llm``): an action is a text, the reward is GEM's, at every turn.

    Observation: ``Text``, GEM's, followed by its ``info["suffix"]`` where there is one. Termination and truncation are GEM's.

    Args:
        env: a name for ``gem.make``, e.g. ``"game:GuessTheNumber-v0-easy"``, or an environment of GEM.
        max_observation: most characters of an observation; of a longer one, its end is given.
        max_characters: most characters of an action.
        render_mode: ``"ansi"`` or ``"human"``.
        options: further arguments of ``gem.make``.

    Raises:
        ConfigError: GEM is not installed, or has no environment of that name.
    """

    def __init__(
        self,
        env: Any,
        *,
        max_observation: int = 16384,
        max_characters: int = 4096,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(max_observation, max_characters, render_mode)
        self.wrapped = _make("gem", "pip install gem-llm", env, options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: not used.
        """
        given = self._start(seed)
        with self._own_randomness():
            observation, info = self.wrapped.reset(seed=given)
        self._running = True
        return self._show(_with_suffix(observation, info)), dict(info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a turn."""
        text = self._check_step(action)
        with self._own_randomness():
            observation, reward, terminated, truncated, info = self.wrapped.step(text)
        self._running = not (terminated or truncated)
        shown = self._show(_with_suffix(observation, info))
        return shown, float(reward), bool(terminated), bool(truncated), dict(info)


class TextArenaEnv(Adapter):
    """A game of TextArena (package ``textarena``): an action is a text; the reward, at the end, is the game's for this player.

    Observation: ``Text``, as TextArena shows it to the player. A game *terminates* when TextArena says that it is done.

    Args:
        env: a name for ``textarena.make``, e.g. ``"GuessTheNumber-v0"``, or an environment of TextArena.
        num_players: the number of players.
        player: the number of the player whose actions are given to ``step``.
        opponent: acts for the other players; needed if there are any.
        max_observation: most characters of an observation; of a longer one, its end is given.
        max_characters: most characters of an action.
        render_mode: ``"ansi"`` or ``"human"``.
        options: further arguments of ``textarena.make``.

    Raises:
        ConfigError: TextArena is not installed, or has no game of that name; there is no such player; or there are other
            players and no ``opponent``.
    """

    def __init__(
        self,
        env: Any,
        *,
        num_players: int = 1,
        player: int = 0,
        opponent: Opponent | None = None,
        max_observation: int = 16384,
        max_characters: int = 4096,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(max_observation, max_characters, render_mode)
        if num_players < 1 or not 0 <= player < num_players:
            raise ConfigError(f"player must lie in 0..{num_players - 1} (num_players={num_players}), got {player}")
        if num_players > 1 and opponent is None:
            raise ConfigError(
                f"a game of {num_players} players needs a function that acts for the others: opponent=f, called as "
                "f(observation, rng)"
            )
        self.num_players, self.player, self.opponent = num_players, player, opponent
        self.wrapped = _make("textarena", "pip install 'rlhf-gym[textarena]'", env, options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a game; the others move until it is this player's turn.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: not used.

        Raises:
            gymnasium.error.Error: the game ended before this player's first turn.
        """
        given = self._start(seed)
        self._forget()
        with self._own_randomness():
            self.wrapped.reset(num_players=self.num_players, seed=given)
            observation, done, info = self._until_our_turn(False, {})
        if done:
            raise gym.error.Error("the game ended before this player's first turn; give it another opponent")
        self._running = True
        return self._show(observation), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Move; the others move until it is this player's turn again, or the game is done."""
        text = self._check_step(action)
        with self._own_randomness():
            done, info = self.wrapped.step(text)
            observation, done, info = self._until_our_turn(done, dict(info))
            reward = 0.0
            if done:
                rewards, more = self.wrapped.close()
                reward = float((rewards or {}).get(self.player, 0.0))
                info |= {"rewards": dict(rewards or {}), "game": more}
        self._running = not done
        return self._show(observation), reward, bool(done), False, info

    def _forget(self) -> None:
        """Empty what TextArena's wrappers have collected: they go on with it in the next game, and would show both."""
        layer = self.wrapped
        while layer is not None:
            own = getattr(layer, "__dict__", {})  # a wrapper has its environment's attributes, too
            own.get("full_observations", {}).clear()
            layer = own.get("env")

    def _until_our_turn(self, done: bool, info: dict[str, Any]) -> tuple[str, bool, dict[str, Any]]:
        """Let the others move until this player is to move or the game ends; returns the observation, ``done`` and the info."""
        for _ in range(MOST_TURNS):
            player, observation = self.wrapped.get_observation()
            if done or player == self.player:
                return str(observation), bool(done), info
            assert self.opponent is not None
            done, info = self.wrapped.step(self.opponent(str(observation), self.np_random))
            info = dict(info)
        raise gym.error.Error(f"the others moved {MOST_TURNS} times in a row; the game seems stuck")


def _make(module: str, advice: str, env: Any, options: dict[str, Any]) -> Any:
    if not isinstance(env, str):
        if options:
            raise ConfigError(f"the options {', '.join(options)} are for an environment given by name")
        return env
    try:
        library = import_module(module)
    except ImportError as error:
        raise LibraryMissingError(f"the environment {env!r} needs {module}: {advice} ({error})") from error
    try:
        return library.make(env, **options)
    except Exception as error:  # each library has its own kinds
        raise ConfigError(f"{module} cannot make the environment {env!r}: {type(error).__name__}: {error}") from error


def _with_suffix(observation: Any, info: dict[str, Any]) -> str:
    suffix = info.get("suffix")
    return f"{observation}\n{suffix}" if suffix else str(observation)
