"""A suite whose runs take a second each, contenders of one's own, and a watcher that keeps what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SUITE = """
name: tiny
version: 3
about: For tests.
seeds: 2
time_limit: 240
models: {small: {random: {layers: 1, width: 16, heads: 2}}}
budgets: {short: 300}
settings:
  agent: {n_episodes: 16, kl_coef: 0.01, checkpoint_every: 1}
tasks:
  sort: {name: sort, options: {difficulty: 2}, level: 0.05, test_prompts: 16, validation_prompts: 8}
agents:
  ppo: {agent: ppo, settings: {learning_rate: 0.003}, search: {learning_rate: {low: 0.001, high: 0.01, log: true}}}
"""

MINE = """
import os, time
from rlhf_gym.agents import GRPO
from rlhf_gym.bench.contender import Trained

class Mine(GRPO):
    "An agent of one's own."

class Boom:
    def train(self, bench):
        raise RuntimeError("<script>alert(1)</script> no luck")

class Hangs:
    def train(self, bench):
        time.sleep(10**6)

class Dies:
    def train(self, bench):
        os._exit(9)
"""


def write_suite(folder: Path, text: str = SUITE) -> Path:
    """The suite as a file, with the contenders beside it.

    Args:
        folder: gets both.
        text: the suite.
    """
    (folder / "mine.py").write_text(MINE)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


class Kept:
    """Keeps what a runner says."""

    def __init__(self) -> None:
        self.begins: list[str] = []
        self.ends: list[str] = []
        self.earlier: list[str] = []

    def found(self, earlier: Any) -> None:
        self.earlier += [cell.run_id for cell, _ in earlier]

    def begun(self, cell: Any) -> None:
        self.begins.append(cell.run_id)

    def ended(self, cell: Any, result: dict[str, Any]) -> None:
        self.ends.append(cell.run_id)
