"""Tuning of contenders' settings with Optuna: equal budgets, pruned, on validation prompts, with seeds that are never reported.

Every trial's runs stay in the folder, each with its result, and ``trials.jsonl`` has a line for each trial; Optuna's own
journal makes a killed search go on. Needs ``pip install 'rlhf-gym[bench]'``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rlhf_gym.bench.cells import Cell, Selection, make_cell
from rlhf_gym.bench.results import Result, ResultsFolder
from rlhf_gym.bench.runner import Processes, Watcher, check_cells
from rlhf_gym.bench.suite import BASELINES, Entrant, Problem, Suite
from rlhf_gym.errors import ConfigError
from rlhf_gym.loop.whole_files import write_json, write_text

FIRST_SEED = 1_000_000
"""Seeds of tuning begin here; those that are reported begin at 0."""
SAMPLER_SEED = 0


def tune(
    selection: Selection, out: Path | str, watcher: Watcher, *, trials: int = 16, seeds: int = 2, jobs: int = 1
) -> dict[str, dict[str, Any]]:
    """Search the settings of every contender that says what may be searched, the same number of trials for each.

    A trial runs on one problem after the other, seed by seed; after each run the mean score so far is reported, and a trial
    that lies below the median of those before it at the same place is pruned. A trial's score is the mean normalised reward
    less the KL penalty where the suite's tasks have one; a failed run counts at the bottom.

    Args:
        selection: suite, contenders, tasks.
        out: folder of the search; another one than that of results.
        watcher: is told of each run.
        trials: of each contender.
        seeds: runs of a trial on each problem.
        jobs: runs of a trial on one problem at once.

    Returns:
        The best settings by contender, which also stand in ``tuned.yaml``.

    Raises:
        ConfigError: nothing to search, a search that is not written as one, or a folder of something else.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if trials < 1 or seeds < 1 or jobs < 1:
        raise ConfigError(f"--trials, --seeds and --jobs must be at least 1, got {trials}, {seeds} and {jobs}")
    entrants = {name: entrant for name, entrant in selection.agents.items() if entrant.search}
    if not entrants:
        raise ConfigError(
            f"suite {selection.suite.name!r} has no `search` for {', '.join(without_search(selection))}: say there what may be "
            "tried, e.g. search: {learning_rate: {low: 1e-5, high: 1e-3, log: true}, n_epochs: [1, 2, 4]}"
        )
    for name, entrant in entrants.items():
        check_search(name, entrant.search)
    suite, problems = selection.suite, selection.problems
    check_cells(
        [
            make_cell(suite, problem, name, one, FIRST_SEED, part="validation")
            for problem in problems
            for name, one in entrants.items()
        ]
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = ResultsFolder(out)
    best: dict[str, dict[str, Any]] = {}
    with folder.open(suite):
        storage = JournalStorage(JournalFileBackend(str(folder.path / "optuna.log")))
        processes = Processes(jobs)
        try:
            for name, entrant in entrants.items():
                study = optuna.create_study(
                    study_name=name, storage=storage, direction="maximize", load_if_exists=True,
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=4), )  # fmt: skip
                # A search that goes on must not suggest again what it began with.
                study.sampler = optuna.samplers.TPESampler(seed=SAMPLER_SEED + len(study.trials))
                _retry_unfinished(study)
                ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
                left = trials - len(study.get_trials(deepcopy=False, states=ended))
                search = _Search(suite, problems, name, entrant, seeds, folder, watcher, processes)
                if left > 0:
                    study.optimize(search, n_trials=left)
                _write_trials(
                    folder.path,
                    {known: optuna.load_study(study_name=known, storage=storage) for known in [*best, name]},
                )
                best[name] = dict(study.best_trial.params)
        finally:
            processes.close()
        write_text(folder.path / "tuned.yaml", _tuned(suite, entrants, best))
    return best


def without_search(selection: Selection) -> list[str]:
    """The contenders that the suite says no ``search`` for; baselines, which are always chosen, only where nothing else is."""
    names = [name for name, entrant in selection.agents.items() if not entrant.search]
    return [name for name in names if name not in BASELINES] or ([] if len(names) < len(selection.agents) else names)


class _Search:
    """One contender's objective."""

    def __init__(
        self, suite: Suite, problems: Sequence[Problem], name: str, entrant: Entrant, seeds: int, folder: ResultsFolder,
        watcher: Watcher, execute: Processes,
    ) -> None:  # fmt: skip
        self.suite, self.problems, self.name, self.entrant, self.seeds = suite, problems, name, entrant, seeds
        self.folder, self.watcher, self.execute = folder, watcher, execute

    def __call__(self, trial: Any) -> float:
        import optuna

        chosen = {name: suggested(trial, name, space) for name, space in self.entrant.search.items()}
        entrant = Entrant(self.entrant.agent, {**self.entrant.settings, **chosen}, _without(self.entrant.tasks, chosen))
        scores: list[float] = []
        made = {result["run_id"]: result for result in self.folder.read()}
        for place, problem in enumerate(self.problems):
            cells = [
                make_cell(self.suite, problem, self.name, entrant, FIRST_SEED + seed, part="validation")
                for seed in range(self.seeds)
            ]
            left = [(cell, self._folder(cell)) for cell in cells if cell.run_id not in made]
            for cell, result in self.execute(left, self.watcher):
                self.folder.append(result)
                made[cell.run_id] = result
                self.watcher.ended(cell, result)
            scores += [score(self.suite, cell, made[cell.run_id]) for cell in cells]
            trial.report(float(np.mean(scores)), place)
            if place + 1 < len(self.problems) and trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(scores))

    def _folder(self, cell: Cell) -> Path:
        path = self.folder.run(cell)
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "cell.json", cell.as_json())
        return path


def score(suite: Suite, cell: Cell, result: Result) -> float:
    """A run's score in a search: the normalised reward less the KL penalty of the suite's task; a failed run has 0.

    Args:
        suite: the suite.
        cell: the run.
        result: its result.
    """
    if result["status"] != "done":
        return 0.0
    low, high = suite.tasks[cell.task].range
    penalty = float((cell.run.get("agent") or {}).get("kl_coef", 0.0)) * float(result["metrics"]["kl"] or 0.0)
    return (float(result["metrics"]["reward"]) - penalty - low) / (high - low)


def check_search(contender: str, search: Mapping[str, Any]) -> None:
    """Refuse what is no search space.

    Args:
        contender: its name, for the message.
        search: a list of values, or ``{low, high, log}``, by setting.

    Raises:
        ConfigError: names the setting.
    """
    for name, space in search.items():
        ranged = isinstance(space, Mapping) and {"low", "high"} <= set(space) <= {"low", "high", "log"}
        if ranged and not space["low"] < space["high"]:
            raise ConfigError(f"search of {contender}.{name}: low must be below high, got {dict(space)}")
        if not ranged and not (isinstance(space, list | tuple) and space):
            raise ConfigError(
                f"search of {contender}.{name}: expected a list of values or {{low, high, log}}, got {space!r}"
            )


def suggested(trial: Any, name: str, space: Any) -> Any:
    """A value that Optuna suggests.

    Args:
        trial: Optuna's.
        name: the setting.
        space: what may be tried.
    """
    if not isinstance(space, Mapping):
        return trial.suggest_categorical(name, list(space))
    low, high, log = space["low"], space["high"], bool(space.get("log", False))
    whole = isinstance(low, int) and isinstance(high, int)
    return trial.suggest_int(name, low, high, log=log) if whole else trial.suggest_float(name, low, high, log=log)


def _without(tasks: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of single tasks, but for those that are searched: one search is for all tasks of its command."""
    return {task: {k: v for k, v in values.items() if k not in chosen} for task, values in tasks.items()}


def _retry_unfinished(study: Any) -> None:
    """Have the trials of a killed search made again; runs that they had finished are kept."""
    import optuna

    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _write_trials(folder: Path, studies: Mapping[str, Any]) -> None:
    """Write every trial, pruned and failed ones too."""
    lines = [
        json.dumps({
            "contender": name, "trial": trial.number, "state": trial.state.name.lower(), "settings": trial.params,
            "score": trial.value, "means": [trial.intermediate_values[i] for i in sorted(trial.intermediate_values)],
        })
        for name, study in studies.items()
        for trial in study.trials
    ]  # fmt: skip
    write_text(folder / "trials.jsonl", "".join(line + "\n" for line in lines))


def _tuned(suite: Suite, entrants: Mapping[str, Entrant], best: Mapping[str, Mapping[str, Any]]) -> str:
    """The best settings as the section ``agents`` of a suite."""
    agents = {
        name: {
            "agent": entrants[name].agent,
            "settings": {**entrants[name].settings, **settings},
            "tasks": _without(entrants[name].tasks, settings),
        }
        for name, settings in best.items()
    }
    head = f"# Found by `rlhf-gym bench tune {suite.name}` on validation prompts, with seeds from {FIRST_SEED:,} on.\n"
    return head + yaml.safe_dump({"agents": agents}, sort_keys=False)
