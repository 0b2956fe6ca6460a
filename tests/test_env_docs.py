"""Every registered environment has a page, in Gymnasium's own form; pages name no environment that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium as gym
import pytest

import rlhf_gym  # noqa: F401

PAGES = Path(__file__).resolve().parents[1] / "docs" / "environments"
REGISTERED = sorted(name for name in gym.registry if name.startswith("rlhf_gym/"))
SECTIONS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Starting State",
    "Rewards",
    "Episode End",
    "Information",
    "Arguments",
    "Version History",
)


def page_of(name: str) -> Path:
    """A level's page, where the level has one; else the task's own."""
    base = name.removeprefix("rlhf_gym/").rsplit("-", 1)[0]
    if base.endswith("Turn"):
        return PAGES / "turn-level.md"
    return PAGES / ("conversation.md" if base.endswith("Conversation") else f"{base.lower()}.md")


def test_there_are_environments_to_document() -> None:
    assert len(REGISTERED) >= 6


@pytest.mark.parametrize("name", REGISTERED)
def test_every_environment_has_a_page_of_the_known_form(name: str) -> None:
    page = page_of(name)
    assert page.is_file(), f"{name} has no page; write {page.relative_to(PAGES.parents[1])}"
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    places = [headings.index(section) for section in SECTIONS]
    assert places == sorted(places)
    shown = text if "Turn-" not in name else text.replace("rlhf_gym/…Turn-v0", name)
    assert name in shown
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    assert f"]({page.name})" in index


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda path: path.name)
def test_pages_name_only_what_is_registered_and_link_to_what_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"rlhf_gym/[A-Za-z]+-v\d+", text))
    assert named <= set(REGISTERED)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing
