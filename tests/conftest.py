"""All tests: where they run."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Work in an empty folder: a subprocess's ``import rlhf_gym`` must find the installed wheel, as the tests' own does."""
    os.chdir(tmp_path_factory.mktemp("work"))
