"""A checkout works as it stands, and installed as editable: `envs/` and `agents/` stand beside the package there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USE = """
import importlib.util, pickle, gymnasium, rlhf_gym, rlhf_gym.envs, rlhf_gym.agents
from rlhf_gym.envs.registration import register_all
assert pickle.loads(pickle.dumps(register_all)) is register_all
assert "rlhf_gym/Copy-v0" in gymnasium.registry
print(*(m.__file__ for m in (rlhf_gym, rlhf_gym.envs, rlhf_gym.agents)), sep="\\n")
print(importlib.util.find_spec("rlhf_gym.agents.common.losses").origin)
"""
SPAWN = """
import multiprocessing, rlhf_gym.envs
from rlhf_gym.envs.registration import register_all

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(register_all))
"""


def files_of(root: Path) -> list[str]:
    files = ("rlhf_gym/__init__.py", "envs/__init__.py", "agents/__init__.py", "agents/common/losses.py")
    return [str(root / file) for file in files]


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is installed beside us, without our own wheel: links, so nothing is downloaded or copied."""
    folder = tmp_path_factory.mktemp("dependencies")
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.lower().startswith(("rlhf_gym", "__editable__")) and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout, for what writes into it."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("rlhf_gym", "agents", "envs", "examples"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    return root


def python(*arguments: str | Path, cwd: Path, program: str | Path = sys.executable, path: str = "") -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path:
        environment["PYTHONPATH"] = path
    done = subprocess.run([program, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_python_in_the_root(checkout: Path, dependencies: Path) -> None:
    """`python -c`, the prompt and a notebook in the root alike: the current folder is first on the path, as ''."""
    assert python("-c", USE, cwd=checkout) == files_of(checkout)
    without_wheel = f"import sys; assert sys.path[0] == ''; sys.path.append({str(dependencies)!r})\n{USE}"
    assert python("-S", "-c", without_wheel, cwd=checkout) == files_of(checkout)


def test_the_command_line_and_spawned_processes_in_the_root(checkout: Path) -> None:
    assert python("-m", "rlhf_gym", "--version", cwd=checkout)[0].startswith("rlhf-gym ")
    (checkout / "spawn.py").write_text(SPAWN)
    assert python("spawn.py", cwd=checkout) == ["None"]


def test_a_script_in_examples_with_the_root_on_the_path(checkout: Path) -> None:
    (checkout / "examples" / "use.py").write_text(USE)
    assert python("use.py", cwd=checkout / "examples", path=str(checkout)) == files_of(checkout)
    assert python("examples/use.py", cwd=checkout, path=".") == files_of(checkout)


@pytest.mark.slow
def test_an_editable_install(checkout: Path, dependencies: Path, tmp_path: Path) -> None:
    """By pip, in an environment of its own that sees the packages beside us, and without a network."""
    venv = tmp_path / "venv"
    python("-m", "venv", "--without-pip", venv, cwd=tmp_path)
    own = venv / "bin" / "python"
    (site,) = python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path, program=own)
    (Path(site) / "beside.pth").write_text(f"{dependencies}\n")
    install = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "-e", checkout)
    python(*install, cwd=tmp_path, program=own)
    for folder in (tmp_path, checkout, checkout / "examples"):
        assert python("-c", USE, cwd=folder, program=own) == files_of(checkout)
    script = venv / "bin" / "rlhf-gym"
    assert python("--version", cwd=tmp_path, program=script)[0].startswith("rlhf-gym ")
