"""Every registered environment has a page, and the pages' tables of arguments are those of the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

import rlhf_gym  # noqa: F401
from rlhf_gym.envs import ConversationEnv, TokenEnv, TokenVectorEnv, ToolEnv, TurnEnv
from rlhf_gym.envs.registration import ENVIRONMENTS
from rlhf_gym.tasks.calculation import calculation_task
from rlhf_gym.tasks.detox import detox_task
from rlhf_gym.tasks.format_control import format_task
from rlhf_gym.tasks.length import length_task
from rlhf_gym.tasks.reasoning import reasoning_task
from rlhf_gym.tasks.sentiment import sentiment_task
from rlhf_gym.tasks.stars import stars_task
from rlhf_gym.tasks.symbols import SYMBOL_TASKS
from rlhf_gym.tasks.words import words_task

PAGES = Path(__file__).resolve().parents[1] / "docs" / "environments"
REGISTERED = sorted(name for name in gym.registry if name.startswith("rlhf_gym/"))
FACTORIES: dict[str, Callable[..., Any]] = {
    "sentiment": sentiment_task,
    "words": words_task,
    "length": length_task,
    "format": format_task,
    "detox": detox_task,
    "stars": stars_task,
    "reasoning": reasoning_task,
}


def page_of(name: str) -> Path:
    """A level's page, where the level has one; else the task's own."""
    base = name.removeprefix("rlhf_gym/").rsplit("-", 1)[0]
    if base.endswith("Turn"):
        return PAGES / "turn-level.md"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", base).lower()
    return PAGES / ("conversation.md" if base.endswith("Conversation") else f"{words}.md")


def arguments(page: Path) -> set[str]:
    """The names in the first column of the tables under the heading Arguments."""
    section = page.read_text(encoding="utf-8").split("## Arguments\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", section, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters)


def test_there_are_environments_to_document() -> None:
    assert len(REGISTERED) >= 6


@pytest.mark.parametrize("name", REGISTERED)
def test_every_environment_has_a_page_that_names_it(name: str) -> None:
    page = page_of(name)
    assert page.is_file(), f"{name} has no page; write {page.relative_to(PAGES.parents[1])}"
    text = page.read_text(encoding="utf-8")
    shown = text if "Turn-" not in name else text.replace("rlhf_gym/…Turn-v0", name)
    assert name in shown
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    assert f"]({page.name})" in index


def test_the_levels_pages_list_their_environments_arguments() -> None:
    token = parameters(TokenEnv) | parameters(TokenVectorEnv) - {"num_envs"}
    assert arguments(PAGES / "token-level.md") == token
    assert arguments(PAGES / "turn-level.md") == parameters(TurnEnv)
    assert arguments(PAGES / "conversation.md") == parameters(ConversationEnv)
    assert arguments(PAGES / "calculator.md") == parameters(ToolEnv) | parameters(calculation_task)


@pytest.mark.parametrize("name", sorted({str(options["task"]) for options in ENVIRONMENTS.values()}))
def test_a_tasks_page_lists_its_options(name: str) -> None:
    if name in SYMBOL_TASKS:
        expected = {"difficulty", "easiest", "partial", "num_prompts", "seed", *SYMBOL_TASKS[name].sizes}
    else:
        expected = parameters(FACTORIES[name])
    assert arguments(PAGES / f"{name}.md") == expected


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda path: path.name)
def test_pages_name_only_what_is_registered(page: Path) -> None:
    named = set(re.findall(r"rlhf_gym/[A-Za-z]+-v\d+", page.read_text(encoding="utf-8")))
    assert named <= set(REGISTERED)
