"""The wheel holds every package and data file of the tree, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rlhf_gym

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCE_OF = {"rlhf_gym.agents": ROOT / "agents", "rlhf_gym.envs": ROOT / "envs"}
INSTALLED = Path(rlhf_gym.__file__).parent


def packages_in_tree() -> set[str]:
    found = set()
    for name, folder in {"rlhf_gym": ROOT / "rlhf_gym", **SOURCE_OF}.items():
        for init in folder.rglob("__init__.py"):
            if not init.is_symlink() and not any(p.is_symlink() for p in init.parents):
                found.add(".".join([name, *init.parent.relative_to(folder).parts]))
    return found


def test_every_package_of_the_tree_is_listed() -> None:
    assert packages_in_tree() == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_source_file_is_installed() -> None:
    """A template, a weight file or a migration that the wheel forgets is found here, not by a user."""
    missing = []
    for name, folder in {"rlhf_gym": ROOT / "rlhf_gym", **SOURCE_OF}.items():
        target = INSTALLED.joinpath(*name.split(".")[1:])
        for source in folder.rglob("*"):
            relative = source.relative_to(folder)
            skip = source.suffix == ".pyc" or "__pycache__" in relative.parts or relative.parts[0] in ("agents", "envs")
            if source.is_file() and not skip and not (target / relative).is_file():
                missing.append(str(relative))
    assert not missing


def test_no_stray_top_level_packages() -> None:
    """`agents` and `envs` must not be importable by those names from an installation."""
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('agents', 'envs')])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[None, None]"


@pytest.mark.parametrize(
    "code",
    [
        "import rlhf_gym",
        "import sys; from rlhf_gym.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_the_package_and_its_help_import_gymnasium_and_nothing_else(code: str) -> None:
    """Environments are registered by name only: no torch, no transformers, no stable-baselines3, no SQLAlchemy."""
    code += "\nimport sys; print(*{m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    loaded = {name for name in done.stdout.splitlines()[-1].split() if not name.startswith("_")}
    light = {"rlhf_gym", "gymnasium", "farama_notifications", "numpy", "cloudpickle", "typing_extensions"}
    assert loaded - {"cython_runtime"} <= light


def test_console_script_prints_the_version() -> None:
    script = Path(sys.executable).parent / "rlhf-gym"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert rlhf_gym.__version__ in done.stdout
