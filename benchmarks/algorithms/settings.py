"""The tasks of the comparison, with their networks and budgets, and the algorithms, with the settings that the search tries.

Network, prompts, number of tokens, episodes an iteration and KL coefficient are the same for every algorithm on a task. The
search chooses the settings in an algorithm's ``grid``; everything else is its class's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from rlhf_gym import agents
from rlhf_gym.tasks import Task, load_task

Options = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A task, with the settings that are the same for every algorithm.

    Attributes:
        task: its name.
        task_options: its options.
        tokens: budget of response tokens.
        level: the reward, averaged over three iterations, at which the task counts as learned.
        kl_coef: the KL coefficient.
        episodes: episodes an iteration.
        untrained: True for a network with random weights, which learns from scratch; False for the embedded model.
    """

    task: str
    task_options: Mapping[str, Any]
    tokens: int
    level: float
    kl_coef: float
    episodes: int = 64
    untrained: bool = True

    def load_task(self) -> Task:
        """The task."""
        return load_task(self.task, **self.task_options)


# Staying close to a random network has no use, so its KL coefficient is next to nothing.
SETTINGS = {
    "copy": Setting("copy", {"difficulty": 1}, 10_000, 0.8, 0.001),
    "sort": Setting("sort", {"difficulty": 1}, 10_000, 0.8, 0.001),
    "brackets": Setting("brackets", {"difficulty": 1}, 10_000, 0.8, 0.001),
    "sentiment": Setting("sentiment", {}, 12_000, 0.6, 0.1, episodes=32, untrained=False),
}
SEARCHED_ON = ("copy", "brackets")
"""The search chooses by the mean objective on these, for all tasks that start from a random network."""

EMBEDDED_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""A pretrained network wants smaller steps: searched on the sentiment task, on its own."""

MOST_KL = 10.0
"""The largest KL of a candidate, nats a response, mean over its seeds: beyond it, responses with high scores are no longer film
reviews (Ziegler et al. 2019 aim at 6)."""


@dataclass(frozen=True)
class Algorithm:
    """An agent, with the settings that the search tries.

    Attributes:
        agent: the class's name in :mod:`rlhf_gym.agents`.
        options: settings that make it this algorithm, and values of the grid's settings where the search does not try them.
        grid: settings to try, each with its values.
    """

    agent: str
    options: Options = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """The class."""
        return getattr(agents, self.agent)

    def candidates(self) -> list[Options]:
        """All combinations of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]


RATES = (3e-4, 1e-3, 3e-3, 1e-2)
GROUPED = {"learning_rate": RATES, "group_size": (4, 8)}

ALGORITHMS = {
    "PPO": Algorithm("PPO", grid={"learning_rate": RATES, "n_epochs": (2, 4)}),
    "NLPO": Algorithm("NLPO", {"mask_top_p": 0.9}, {"learning_rate": RATES, "mask_top_p": (0.9, 0.98)}),
    "A2C": Algorithm("A2C", grid={"learning_rate": RATES, "batch_size": (16, 64)}),
    "TRPO": Algorithm("TRPO", grid={"max_kl": (0.01, 0.03, 0.1)}),
    "REINFORCE": Algorithm("REINFORCE", grid={"learning_rate": RATES, "batch_size": (16, 64)}),
    "REINFORCE++": Algorithm("ReinforcePlusPlus", grid={"learning_rate": RATES, "n_epochs": (1, 2)}),
    "RLOO": Algorithm("RLOO", grid=GROUPED),
    "GRPO": Algorithm("GRPO", agents.GRPO.preset("original"), GROUPED),
    "Dr. GRPO": Algorithm("GRPO", agents.GRPO.preset("dr_grpo"), GROUPED),
    "GSPO": Algorithm("GSPO", grid=GROUPED),
    "online DPO": Algorithm("OnlineDPO", grid={"learning_rate": (3e-4, 1e-3, 3e-3), "beta": (0.03, 0.1)}),
    "RAFT": Algorithm("RAFT", {"group_size": 4}, GROUPED),
}
