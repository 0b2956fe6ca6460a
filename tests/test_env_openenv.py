"""OpenEnv's environments: on a stand-in with its interface, and on its own server and client if they are installed."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from held_port import held_port
from waiting import LONG

from rlhf_gym.envs import OpenEnvEnv, wrap_text_env
from rlhf_gym.errors import ConfigError

HAS_CLIENT = importlib.util.find_spec("openenv") is not None
HAS_SERVER = HAS_CLIENT and importlib.util.find_spec("fastmcp") is not None


class Countdown:
    """A synchronous client's interface: say the number that is one less, from the seed's down to 0."""

    closed = False

    def reset(self, seed: int = 3, start: int | None = None) -> Any:
        self.left = 1 + seed % 3 if start is None else start
        return SimpleNamespace(observation={"text": f"{self.left}"}, reward=None, done=False, metadata=None)

    def step(self, action: dict[str, str]) -> Any:
        assert set(action) == {"message"}
        right = action["message"] == str(self.left - 1)
        self.left -= 1
        return SimpleNamespace(
            observation={"text": f"{self.left}"}, reward=float(right), done=self.left == 0, metadata={"left": self.left}
        )

    def close(self) -> None:
        self.closed = True


def test_texts_go_in_and_out_and_the_rewards_are_the_servers() -> None:
    env = OpenEnvEnv(Countdown())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an environment made by hand has no spec
        check_env(env)
    assert env.reset(seed=5)[0] == env.reset(seed=5)[0]
    env = OpenEnvEnv(Countdown(), reset={"start": 2}, render_mode="ansi")
    assert env.reset()[0] == env.render() == "2"
    assert env.step("1")[:4] == ("1", 1.0, False, False)
    observation, reward, terminated, truncated, info = env.step("7")
    assert (observation, reward, terminated, truncated, info["left"]) == ("0", 0.0, True, False, 0)
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step("1")
    assert env.reset(options={"start": 1})[0] == "1"
    env.close()
    assert env.wrapped.closed


def test_slots_wait_side_by_side_and_agents_read_turns() -> None:
    talks = wrap_text_env(lambda: OpenEnvEnv(Countdown()), 2, max_new_tokens=4)
    assert talks.slow
    assert talks.reset()["length"].shape == (2, 1)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = OpenEnvEnv(Countdown(), observation="board")
    with pytest.raises(ConfigError, match=r"no text board; its fields are text: name one"):
        env.reset()
    with pytest.raises(ConfigError, match=r"a client or an environment of OpenEnv, got int"):
        OpenEnvEnv(3)
    with pytest.raises(ConfigError, match="expected an OpenEnv server's address"):
        OpenEnvEnv("echo_env")
    monkeypatch.setitem(sys.modules, "openenv", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match="pip install openenv"):
        OpenEnvEnv("http://localhost:1")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """OpenEnv's own server, with an environment written for it."""
    if not HAS_SERVER:
        pytest.skip("OpenEnv's server is not installed: pip install openenv")
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State

    class Said(Action):  # type: ignore[misc, unused-ignore]
        message: str

    class Seen(Observation):  # type: ignore[misc, unused-ignore]
        text: str

    class Server(Environment):  # type: ignore[misc, unused-ignore, type-arg]
        SUPPORTS_CONCURRENT_SESSIONS = True

        def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> Any:
            self.left = 1 + (seed or 0) % 3
            return Seen(text=str(self.left), done=False, reward=None)

        def step(self, action: Any, timeout_s: float | None = None, **options: Any) -> Any:
            right = action.message == str(self.left - 1)
            self.left -= 1
            return Seen(text=str(self.left), done=self.left == 0, reward=float(right))

        @property
        def state(self) -> Any:
            return State(episode_id="x", step_count=0)

    app = create_fastapi_app(Server, Said, Seen, max_concurrent_envs=4)
    with held_port() as port:
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join(LONG)


def test_openenvs_own_server_and_client(address: str) -> None:
    env = OpenEnvEnv(address)
    try:
        first = int(env.reset(seed=4)[0])
        assert env.reset(seed=4)[0] == str(first)
        total, terminated = 0.0, False
        for left in range(first - 1, -1, -1):
            observation, reward, terminated, _, _ = env.step(str(left))
            total += reward
            assert observation == str(left)
        assert (total, terminated) == (float(first), True)
        other = OpenEnvEnv(address)  # a session of its own
        theirs = int(other.reset(seed=1)[0])
        env.reset(seed=4)
        assert other.step("x")[:2] == (str(theirs - 1), 0.0)
        assert env.step(str(first - 1))[:2] == (str(first - 1), 1.0)
        other.close()
    finally:
        env.close()
