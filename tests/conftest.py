"""All tests: where they run, and which databases."""

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from postgres_server import PostgresServer, start_server

# The same examples in every run, so that a check fails for what a change did and for nothing else; `make fuzz` draws others.
# No limits of time: how long an example takes depends on who else is working on the machine.
_BUSY: dict[str, Any] = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("same", **_BUSY, derandomize=True)
hypothesis.settings.register_profile("fuzz", **_BUSY)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first, then all others with those of the page spread among them.

    The page's tests wait for servers and browsers more than they compute. Side by side at the end of the alphabet they would
    leave the processor without work, and the longest of them would keep one worker busy when all others are done.
    """
    files = list(dict.fromkeys(item.path.name for item in items))
    waiting = [name for name in files if name.startswith("test_web_")]
    place = {name: (number + 0.5) / len(group) for group in (waiting, [n for n in files if n not in waiting])
             for number, name in enumerate(group)}  # fmt: skip
    place |= {"test_web_teaches.py": -1.0}
    items.sort(key=lambda item: place[item.path.name])


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Work in an empty folder: a subprocess's ``import rlhf_gym`` must find the installed wheel, as the tests' own does."""
    os.chdir(tmp_path_factory.mktemp("work"))


@pytest.fixture(autouse=True)
def _the_same_raters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raters' names are drawn alike in every run: what somebody is asked, and in which order, depends on their name."""
    drawn = random.Random(0)
    secret = SimpleNamespace(token_hex=secrets.token_hex, token_urlsafe=secrets.token_urlsafe)
    secret.choice, secret.randbelow = drawn.choice, drawn.randrange
    monkeypatch.setattr("rlhf_gym.study.people.secrets", secret)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, shared by all tests."""
    server = start_server()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new feedback store is to be: once a file, once an empty schema of a PostgreSQL database."""
    if request.param == "sqlite":
        return str(tmp_path / "feedback.sqlite")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_url()
