"""A suite: tasks, language models, rewards, raters, budgets and contenders, with the settings that are the same for all.

A suite is a YAML file, one of those in this package or a user's own. Its content hash stands in every result, so that results
of two versions of a suite never mix. Nothing heavy is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rlhf_gym.errors import ConfigError, first_line
from rlhf_gym.text import nearest

Values = Mapping[str, Any]

BASELINES: Mapping[str, Values] = {
    "untrained": {"agent": "untrained"},
    "random": {"agent": "random"},
    "best_of_4": {"agent": "best_of_n", "settings": {"n": 4}},
    "best_of_16": {"agent": "best_of_n", "settings": {"n": 16}},
    "sft_best": {"agent": "sft_best"},
}
"""Contenders that every suite has, whatever it names: without them a table says little."""

EQUAL = ("tokens", "optimizer_steps")
"""What a budget may hold equal for all contenders."""


@dataclass(frozen=True)
class BenchTask:
    """A task of a suite.

    Attributes:
        name: a task by name or place, as ``task.name`` of a run.
        options: its options.
        models: names of the suite's models that it is learned with; empty for all.
        rewards: names of the suite's rewards; empty for all.
        raters: names of the suite's raters; empty for all.
        budgets: names of the suite's budgets; empty for all.
        level: the reward at which the task counts as learned, for tokens to a level; None has none.
        range: rewards that stand for 0 and 1 when tasks are averaged.
        test_prompts: most prompts of the final test.
        validation_prompts: prompts for tuning and for the choice of a checkpoint, taken from those to train on.
        settings: settings of the run on this task, by section, for all contenders.
    """

    name: str
    options: Values = field(default_factory=dict)
    models: tuple[str, ...] = ()
    rewards: tuple[str, ...] = ()
    raters: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    level: float | None = None
    range: tuple[float, float] = (0.0, 1.0)
    test_prompts: int = 200
    validation_prompts: int = 32
    settings: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Entrant:
    """A contender of a suite.

    Attributes:
        agent: an agent of a run (``ppo``, ..., ``my.py:Mine``), a baseline or an outside trainer (docs/bench.md).
        settings: its settings.
        tasks: settings that differ on some tasks: by the task's name in the suite.
        search: what ``bench tune`` may try: a list of values, or ``{low, high, log}``, by setting.
    """

    agent: str
    settings: Values = field(default_factory=dict)
    tasks: Mapping[str, Values] = field(default_factory=dict)
    search: Values = field(default_factory=dict)

    def on(self, task: str) -> dict[str, Any]:
        """Its settings on one of the suite's tasks."""
        return {**self.settings, **self.tasks.get(task, {})}


@dataclass(frozen=True)
class Problem:
    """One thing to solve: a task with a model, a reward, a rater and a budget.

    Attributes:
        name: the parts' names, joined; parts of which the suite has one only are left out.
        task: the task's name in the suite.
        model: the model's.
        reward: the reward's.
        rater: the rater's.
        budget: the budget's.
    """

    name: str
    task: str
    model: str
    reward: str
    rater: str
    budget: str


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark: what is compared on what, and under which rules.

    Attributes:
        name: its name.
        version: grows with every change that alters results.
        about: a sentence or two for readers.
        equal: what the budgets hold equal for all contenders: ``tokens`` generated, or ``optimizer_steps``.
        seeds: runs of each contender on each problem.
        time_limit: seconds after which a run is ended and counts as failed.
        measured: False for a suite of which no results are published.
        tasks: the tasks by name.
        models: settings of the section ``model``, or ``{random: {layers, width, heads}}``, by name.
        rewards: ``{reward: ...}`` as ``task.reward`` takes it, or ``{}`` for the task's own, by name.
        raters: ``{}`` to train against the reward itself, or the sections ``rater``, ``reward_model`` and ``sampling``.
        budgets: amounts of what is held equal, by name.
        agents: the contenders by name; the baselines are always among them.
        settings: settings of every run, by section.
    """

    name: str
    version: int = 1
    about: str = ""
    equal: str = "tokens"
    seeds: int = 5
    time_limit: float = 3600.0
    measured: bool = True
    tasks: Mapping[str, BenchTask]
    models: Mapping[str, Values] = field(default_factory=lambda: {"embedded": {"name": "embedded"}})
    rewards: Mapping[str, Values] = field(default_factory=lambda: {"own": {}})
    raters: Mapping[str, Values] = field(default_factory=lambda: {"none": {}})
    budgets: Mapping[str, int]
    agents: Mapping[str, Entrant]
    settings: Values = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = {name: Entrant(**entrant) for name, entrant in BASELINES.items() if name not in self.agents}
        object.__setattr__(self, "agents", {**missing, **self.agents})
        self._check()

    def _check(self) -> None:
        if self.equal not in EQUAL:
            raise ConfigError(f"suite {self.name!r}: equal must be one of {', '.join(EQUAL)}, got {self.equal!r}")
        for what, value in {"seeds": self.seeds, "time_limit": self.time_limit}.items():
            if not value > 0:
                raise ConfigError(f"suite {self.name!r}: {what} must be above 0, got {value!r}")
        for name, task in self.tasks.items():
            axes = {"models": self.models, "rewards": self.rewards, "raters": self.raters, "budgets": self.budgets}
            for axis, known in axes.items():
                for one in getattr(task, axis):
                    if one not in known:
                        raise ConfigError(
                            f"suite {self.name!r}, task {name!r}: there is nothing called {one!r} among its "
                            f"{axis}{nearest(one, known)} Expected some of {', '.join(known)}"
                        )
            if not task.range[0] < task.range[1]:
                raise ConfigError(f"suite {self.name!r}, task {name!r}: range must go up, got {list(task.range)}")
        for axis in ("tasks", "models", "rewards", "raters", "budgets", "agents"):
            for name in getattr(self, axis):
                if not name.replace("-", "_").replace(".", "_").isidentifier():
                    raise ConfigError(
                        f"suite {self.name!r}: {name!r} of its {axis} is no name (letters, digits, _, - and .)"
                    )
        for name, amount in self.budgets.items():
            if isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
                raise ConfigError(
                    f"suite {self.name!r}: budget {name!r} must be a number of {self.equal}, got {amount!r}"
                )

    @property
    def hash(self) -> str:
        """Hash of all that alters results: two suites of one hash ask for the same runs.

        Contenders, seeds and words are no part of it: who adds a contender keeps the others' results.
        """
        content = asdict(self)
        for name in ("agents", "seeds", "about", "measured", "time_limit"):
            del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def problems(self) -> list[Problem]:
        """All problems, in order."""
        found = []
        for name, task in self.tasks.items():
            for model in task.models or self.models:
                for reward in task.rewards or self.rewards:
                    for rater in task.raters or self.raters:
                        for budget in task.budgets or self.budgets:
                            parts = {"model": model, "reward": reward, "rater": rater, "budget": budget}
                            shown = [part for axis, part in parts.items() if len(self._choices(task, axis)) > 1]
                            found.append(Problem("/".join([name, *shown]), name, model, reward, rater, budget))
        return found

    def _choices(self, task: BenchTask, axis: str) -> Sequence[str]:
        return list(getattr(task, f"{axis}s") or getattr(self, f"{axis}s"))


def suite_names() -> list[str]:
    """The names of the suites that come with the package."""
    folder = resources.files("rlhf_gym.bench").joinpath("suites")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name: str) -> Suite:
    """Load a suite.

    Args:
        name: one of :func:`suite_names`, or a YAML file.

    Raises:
        ConfigError: there is no such suite, or it is not written as one.
    """
    if name in suite_names():
        text = resources.files("rlhf_gym.bench").joinpath("suites", f"{name}.yaml").read_text(encoding="utf-8")
        return parse_suite(text, name)
    if not name.endswith((".yaml", ".yml")):
        known = suite_names()
        raise ConfigError(
            f"there is no suite {name!r}{nearest(name, known)} Expected one of {', '.join(known)}, or a YAML file"
        )
    try:
        return parse_suite(Path(name).read_text(encoding="utf-8"), name)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no suite file {name!r}; `rlhf-gym bench list` lists the suites that come along"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the suite {name!r}: {error}") from error


def with_models(suite: Suite, places: Sequence[str]) -> Suite:
    """A suite some of whose models come from elsewhere, which is another suite by its hash.

    Args:
        suite: the suite.
        places: ``NAME=PLACE``: the model's name in the suite, and what ``model.name`` of a run takes.

    Raises:
        ConfigError: no name or place, a model that the suite lacks, or one with random weights.
    """
    models = dict(suite.models)
    for given in places:
        name, _, place = given.partition("=")
        if not name or not place:
            raise ConfigError(f"--model takes NAME=PLACE, got {given!r}; the suite's models: {', '.join(models)}")
        if name not in models:
            raise ConfigError(
                f"suite {suite.name!r} has no model {name!r}{nearest(name, models)} Expected some of {', '.join(models)}"
            )
        if "random" in models[name]:
            raise ConfigError(f"the model {name!r} of suite {suite.name!r} has random weights, and comes from nowhere")
        if place.startswith(("~", ".")) or Path(place.rpartition(":")[0] or place).exists():
            place = str(Path(place).expanduser().absolute())  # runs have working directories of their own
        models[name] = {**models[name], "name": place}
    return replace(suite, models=models)


def parse_suite(text: str, where: str) -> Suite:
    """Make a suite from YAML.

    Args:
        text: the YAML.
        where: its place, for messages.

    Raises:
        ConfigError: no YAML, an unknown key, or a value of a wrong kind.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"suite {where}: not YAML ({first_line(error)})") from error
    values = _known(content, Suite, where)
    for axis in ("tasks", "agents", "budgets"):
        if not isinstance(values.get(axis), dict) or not values[axis]:
            raise ConfigError(f"suite {where}: it needs {axis}, by name")
    values["tasks"] = {
        name: BenchTask(**_known(one, BenchTask, f"{where}, task {name}")) for name, one in values["tasks"].items()
    }
    values["agents"] = {
        name: Entrant(**_known(one, Entrant, f"{where}, agent {name}")) for name, one in values["agents"].items()
    }
    values.setdefault("name", Path(where).stem)
    return Suite(**values)


def _known(content: object, kind: type, where: str) -> dict[str, Any]:
    """A mapping whose keys are a dataclass's fields, lists of names as tuples."""
    if not isinstance(content, dict):
        raise ConfigError(f"suite {where}: expected keys and values, got {type(content).__name__}")
    names = [f.name for f in fields(kind)]
    needed = {"tasks", "agents", "budgets"} if kind is Suite else {names[0]}
    for key in content:
        if key not in names:
            raise ConfigError(
                f"suite {where}: there is no key {key!r}{nearest(str(key), names)} Expected some of {', '.join(names)}"
            )
    if missing := sorted(needed - set(content)):
        raise ConfigError(f"suite {where}: the key {missing[0]!r} is missing")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}


def load_tuned(path: Path | str) -> dict[str, Entrant]:
    """Read contenders from a file that ``bench tune`` has written, or one like it: ``agents``, by name.

    Args:
        path: the file.

    Raises:
        ConfigError: there is no such file, or it is not written as one.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the contenders of {str(path)!r}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("agents"), dict):
        raise ConfigError(
            f"{path} is no file of contenders: expected `agents`, by name, as `rlhf-gym bench tune` writes it"
        )
    return {name: Entrant(**_known(one, Entrant, f"{path}, agent {name}")) for name, one in content["agents"].items()}
