"""Environments of OpenEnv at the turn level: a server's, by its client, as Gymnasium environments over texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf_gym.envs.adapters import Adapter
from rlhf_gym.envs.missing import LibraryMissingError
from rlhf_gym.errors import ConfigError

TEXT_FIELDS = ("text", "message", "prompt", "content", "echoed_message", "output", "result")
"""Fields of an observation that are taken for its text where none is named, the first that holds one."""


class OpenEnvEnv(Adapter):
    """An environment that speaks OpenEnv (package ``openenv``): an action is a text, the reward is the server's, at every turn.

    OpenEnv's actions and observations have fields; a text is one of them, or whatever two functions make of it. The server says
    ``done`` and no more, so that an episode *terminates*. Answers come over the network: agents decode other slots meanwhile
    (attribute ``slow``). Each slot takes a client, and so a session of its own.

    Args:
        env: a server's address, ``"http://..."`` or ``"ws://..."``, a client, or an ``Environment`` in this process.
        action: the field of an action that holds the policy's text, or a function of the text that makes the action.
        observation: the field of an observation that holds its text, or a function of the observation that gives it; None:
            the first of :data:`TEXT_FIELDS` that holds a text.
        reset: further arguments of the server's ``reset``.
        max_observation: most characters of an observation; of a longer one, its end is given.
        max_characters: most characters of an action.
        render_mode: ``"ansi"`` or ``"human"``.

    Raises:
        LibraryMissingError: OpenEnv is not installed.
        ConfigError: this is none of its clients, or no address of a server.
    """

    slow = True

    def __init__(
        self,
        env: Any,
        *,
        action: str | Callable[[str], Any] = "message",
        observation: str | Callable[[Any], str] | None = None,
        reset: Mapping[str, Any] | None = None,
        max_observation: int = 16384,
        max_characters: int = 4096,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(max_observation, max_characters, render_mode)
        self._action, self._observation, self._options = action, observation, dict(reset or {})
        given = _client(env) if isinstance(env, str) else env
        # A synchronous client passes attributes on, so its class is asked.
        self.wrapped: Any = given.sync() if callable(getattr(type(given), "sync", None)) else given
        if not callable(getattr(self.wrapped, "step", None)):
            raise ConfigError(
                f"expected a server's address, a client or an environment of OpenEnv, got {type(env).__name__}"
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: the server's; None leaves it to the server.
            options: further arguments of the server's ``reset``.

        Raises:
            ConfigError: the observation has no text, with the fields that it has.
        """
        given = self._start(seed)
        asked = {**self._options, **(options or {})}
        if given is not None:
            asked["seed"] = given
        text, _, _, info = self._read(self.wrapped.reset(**asked))
        self._running = True
        return self._show(text), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take a turn."""
        text = self._check_step(action)
        made = self._action(text) if callable(self._action) else {self._action: text}
        shown, reward, done, info = self._read(self.wrapped.step(made))
        self._running = not done
        return self._show(shown), reward, done, False, info

    def close(self) -> None:
        """Close the client's connection."""
        if callable(close := getattr(self.wrapped, "close", None)):
            close()

    def _read(self, result: Any) -> tuple[str, float, bool, dict[str, Any]]:
        """Text, reward (0 where there is none), ``done`` and info of a client's result or an environment's observation."""
        seen = getattr(result, "observation", result)
        metadata = getattr(result, "metadata", None) or {}
        text = self._observation(seen) if callable(self._observation) else self._text(seen)
        return str(text), float(result.reward or 0.0), bool(result.done), {"openenv": seen, **metadata}

    def _text(self, seen: Any) -> str:
        fields = seen if isinstance(seen, Mapping) else vars(seen)
        for name in TEXT_FIELDS if self._observation is None else (self._observation,):
            if isinstance(fields.get(str(name)), str):
                return str(fields[str(name)])
        wanted = f"in any of {', '.join(TEXT_FIELDS)}" if self._observation is None else self._observation
        raise ConfigError(
            f"the observation has no text {wanted}; its fields are {', '.join(map(str, fields))}: name one, observation='...', "
            "or give a function that makes a text of it"
        )


def _client(address: str) -> Any:
    if not address.startswith(("http://", "https://", "ws://", "wss://")):
        raise ConfigError(f"expected an OpenEnv server's address, http://... or ws://..., got {address!r}")
    try:
        from openenv.core import GenericEnvClient
    except ImportError as error:
        raise LibraryMissingError(
            f"the environment at {address} needs openenv: pip install openenv ({error})"
        ) from error
    return GenericEnvClient(base_url=address)
