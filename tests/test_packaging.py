"""The wheel holds every package and data file of the tree, and importing it stays light."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_import_is_light() -> None:
    """`import rlhf_gym` registers environments by name only: no torch, no transformers, no stable-baselines3."""
    code = (
        "import sys, rlhf_gym; "
        "print([m for m in ('torch', 'transformers', 'stable_baselines3', 'pandas', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "tests")
    assert done.stdout.strip() == "[]"


def test_console_script_prints_the_version() -> None:
    script = Path(sys.executable).parent / "rlhf-gym"
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert rlhf_gym.__version__ in done.stdout
