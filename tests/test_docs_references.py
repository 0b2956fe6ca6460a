"""The documentation names only what exists: files, links, headings, modules, imports in its code, keys of settings."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from imports import ROOT, sources

PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
    ROOT / "rlhf_gym" / "embedded" / "CARD.md",
]
SECTIONS = (
    "task",
    "sampling",
    "rater",
    "people",
    "evaluation",
    "log",
    "run",
)  # not those whose names are variables in code
MODULES = sources()


def by_name(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


@cache
def names_in(module: str) -> frozenset[str]:
    """What can be imported from a module: what it defines, imports, or lists in ``__all__``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return frozenset(found)


def exists(name: str) -> bool:
    """True for a module's dotted name, and for a name in a module."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        if module in MODULES:
            return end == len(parts) or parts[end] in names_in(module)
    return False


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_check_finds_what_is_missing() -> None:
    assert exists("rlhf_gym.agents.PPO")
    assert exists("rlhf_gym.agents.common.losses.clipped_policy_loss")
    assert not exists("rlhf_gym.agents.common.losses.no_such_loss")
    assert not exists("rlhf_gym.no_such_module")
    assert anchor("How `a` works, and why") == "how-a-works-and-why"


@by_name(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        file, _, wanted = link.partition("#")
        target = page.parent / file if file else page
        if not target.exists():
            missing.append(link)
        elif wanted:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if wanted not in map(anchor, headings):
                missing.append(link)
    assert missing == []


@by_name(PAGES)
def test_modules_and_names_in_them_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"\brlhf_gym(?:\.\w+)+", text))
    for module, names in re.findall(r"^\s*from (rlhf_gym[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        named |= {f"{module}.{name.strip().partition(' ')[0]}" for name in names.split(",")}
    assert sorted(name for name in named if not exists(name)) == []


@by_name(PAGES)
def test_files_of_the_repository_are_there(page: Path) -> None:
    folders = ("rlhf_gym", "agents", "envs", "tests", "benchmarks", "docs", "examples")
    named = re.findall(rf"(?<![\w/.])((?:{'|'.join(folders)})/[\w./-]+\.\w+)", page.read_text(encoding="utf-8"))
    missing = {file for file in named if not (ROOT / file).exists() and not (page.parent / file).exists()}
    if page.name == "CHANGELOG.md":  # names what was there before, too
        missing -= {"benchmarks/tasks/reference_figures.py"}
    assert missing == set()


@by_name([page for page in PAGES if page.name != "CHANGELOG.md"])
def test_settings_of_a_run_are_settings(page: Path) -> None:
    from rlhf_gym.loop.sections import keys

    named = re.findall(
        rf"(?:`|--set )({'|'.join(SECTIONS)})\.(?!json)([a-z_]+)\b(?!\()", page.read_text(encoding="utf-8")
    )
    assert sorted(f"{section}.{key}" for section, key in named if key not in keys(section)) == []
