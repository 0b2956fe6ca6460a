"""Cells: one contender on one problem with one seed, with everything that its run needs. Nothing heavy is imported here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_gym.bench.contender_catalogue import known_contenders
from rlhf_gym.bench.suite import BASELINES, Entrant, Problem, Suite
from rlhf_gym.errors import ConfigError
from rlhf_gym.objects import is_place
from rlhf_gym.text import nearest

PARTS = ("test", "validation")
"""The prompts that a run is measured on: the final test, or those for tuning."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a benchmark, complete: a worker needs nothing else.

    Attributes:
        run_id: hash of everything that alters the run's result.
        suite: the suite's name.
        suite_version: its version.
        suite_hash: its content hash.
        problem: the problem's name.
        task: the task's name in the suite.
        contender: the contender's name in the suite.
        agent: what it is: an agent, a baseline, an outside trainer, or a place.
        settings: its settings.
        seed: of the start model, the prompts' order and all sampling.
        part: one of :data:`PARTS`.
        equal: what the budget counts.
        budget: the amount.
        level: the reward at which the task counts as learned.
        validation_prompts: prompts taken from those to train on.
        test_prompts: most prompts of the measurement.
        task_name: the task's name or place.
        task_options: its options.
        model: settings of the section ``model``, or ``{random: ...}``.
        run: further settings of the run, by section.
        time_limit: seconds.
    """

    run_id: str
    suite: str
    suite_version: int
    suite_hash: str
    problem: str
    task: str
    contender: str
    agent: str
    settings: Mapping[str, Any]
    seed: int
    part: str
    equal: str
    budget: int
    level: float | None
    validation_prompts: int
    test_prompts: int
    task_name: str
    task_options: Mapping[str, Any]
    model: Mapping[str, Any]
    run: Mapping[str, Mapping[str, Any]]
    time_limit: float

    @property
    def folder(self) -> str:
        """The name of the run's folder."""
        return f"{self.problem.replace('/', '-')}-{self.contender}-{self.seed}-{self.run_id[:8]}"

    def as_json(self) -> dict[str, Any]:
        """The cell as plain values."""
        return asdict(self)


def make_cell(suite: Suite, problem: Problem, name: str, entrant: Entrant, seed: int, *, part: str = "test") -> Cell:
    """Make a cell.

    Args:
        suite: the suite.
        problem: one of its problems.
        name: the contender's name.
        entrant: the contender.
        seed: the seed.
        part: the prompts to measure on.
    """
    task = suite.tasks[problem.task]
    settings = entrant.on(problem.task)
    reward, rater = suite.rewards[problem.reward], suite.raters[problem.rater]
    run = _merged(suite.settings, task.settings, {"task": dict(reward)} if reward else {}, rater)
    key = [suite.hash, problem.name, entrant.agent, settings, code_hash(entrant.agent), seed, part]
    return Cell(
        run_id=hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16],
        suite=suite.name, suite_version=suite.version, suite_hash=suite.hash, problem=problem.name, task=problem.task,
        contender=name, agent=entrant.agent, settings=settings, seed=seed, part=part, equal=suite.equal,
        budget=suite.budgets[problem.budget], level=task.level, validation_prompts=task.validation_prompts,
        test_prompts=task.test_prompts, task_name=task.name, task_options=dict(task.options),
        model=dict(suite.models[problem.model]), run=run, time_limit=suite.time_limit,
    )  # fmt: skip


def code_hash(agent: str) -> str:
    """A hash of a contender's own file, so that two versions of it are two contenders; empty for everything else."""
    source = Path(agent.rpartition(":")[0]).expanduser()
    return hashlib.sha256(source.read_bytes()).hexdigest()[:16] if agent.count(":") and source.is_file() else ""


def _merged(*layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.items():
            found.setdefault(section, {}).update(values)
    return found


@dataclass(frozen=True)
class Selection:
    """The part of a suite that a command asks for.

    Attributes:
        suite: the whole suite.
        agents: the contenders by name.
        tasks: names of tasks.
        seeds: the seeds.
    """

    suite: Suite
    agents: Mapping[str, Entrant]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(
        cls,
        suite: Suite,
        *,
        agents: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        seeds: int | None = None,
        tuned: Mapping[str, Entrant] | None = None,
    ) -> Selection:
        """Select a part of a suite.

        Args:
            suite: the suite.
            agents: names of contenders, or places of one's own (``my.py:Mine``); the baselines stay in. None takes all.
            tasks: names of tasks; None takes all.
            seeds: number of seeds, from 0; None takes the suite's.
            tuned: contenders with settings that replace the suite's.

        Raises:
            ConfigError: an unknown name; the nearest one is named.
        """
        suite = replace(suite, agents={**suite.agents, **(tuned or {})})
        chosen = dict(suite.agents)
        if agents is not None:
            chosen = {name: suite.agents[name] for name in BASELINES}
            chosen |= dict(_entrant(suite, name) for name in agents)
        for name in tasks or ():
            if name not in suite.tasks:
                raise ConfigError(
                    f"suite {suite.name!r} has no task {name!r}{nearest(name, suite.tasks)} Expected some of "
                    f"{', '.join(suite.tasks)}"
                )
        if seeds is not None and seeds < 1:
            raise ConfigError(f"--seeds must be at least 1, got {seeds}")
        number = suite.seeds if seeds is None else seeds
        return cls(suite, chosen, tuple(suite.tasks if tasks is None else tasks), tuple(range(number)))

    @property
    def problems(self) -> list[Problem]:
        """The problems of these tasks."""
        return [problem for problem in self.suite.problems if problem.task in self.tasks]

    def cells(self) -> Iterator[Cell]:
        """All runs: seed by seed, so that an early end leaves whole pairs."""
        for seed in self.seeds:
            for problem in self.problems:
                for name, entrant in self.agents.items():
                    yield make_cell(self.suite, problem, name, entrant, seed)


def _entrant(suite: Suite, name: str) -> tuple[str, Entrant]:
    if name in suite.agents:
        return name, suite.agents[name]
    if is_place(name):
        return name.rpartition(":")[2], Entrant(name)
    if name in known_contenders():
        return name, Entrant(name)
    known = list(dict.fromkeys([*suite.agents, *known_contenders()]))
    raise ConfigError(
        f"suite {suite.name!r} has no agent {name!r}{nearest(name, known)} Expected some of {', '.join(known)}, or "
        "path/file.py:Class of your own"
    )
