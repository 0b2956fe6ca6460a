"""Small tasks over letters, for tests that need an environment but no language."""

from __future__ import annotations

from typing import Any

from rlhf_gym.rewards.base import Reward
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.samples import Prompt

PROMPTS = ("abc", "d", "efghij", "bb")


def count_a(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """How many of the letters are an "a"."""
    return [float(r.count("a")) for r in responses]


def letter_task(reward: Reward = count_a, *, limit: int = 6, stop: tuple[str, ...] = (), minimum: int = 0) -> Task:
    """Write letters; by default as many "a" as fit."""
    return Task(
        name="letters",
        prompts=[Prompt(p, {"number": i}) for i, p in enumerate(PROMPTS)],
        held_out=[Prompt("zz")],
        reward=reward,
        max_new_tokens=limit,
        min_new_tokens=minimum,
        stop=stop,
    )
