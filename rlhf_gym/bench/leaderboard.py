"""What results say: a row for each contender, differences of all pairs, with failed runs counted at the bottom of the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_gym.bench.curves import Curve, area_under_curve, tokens_to_level
from rlhf_gym.bench.estimates import (
    Difference,
    Estimate,
    TimeToLevel,
    iqm_interval,
    mean_interval,
    paired_difference,
    probability_of_improvement,
    time_to_level,
    with_holm,
)
from rlhf_gym.bench.results import Result
from rlhf_gym.errors import ConfigError

MEANS = ("win_rate", "kl", "gap", "perplexity", "distinct_2", "length")
"""Metrics of which a problem's table has the mean, beyond the reward."""


@dataclass(frozen=True)
class Row:
    """A contender on one problem.

    Attributes:
        contender: its name.
        reward: mean gold reward over seeds; failed runs have the lowest reward of the task's range.
        metrics: means over the seeds that did not fail, by name; None where there is none.
        tokens: mean tokens of training.
        optimizer_steps: likewise.
        seconds: mean CPU seconds of a run.
        area: mean area under the learning curve; None without curves.
        level: tokens to the task's level; None for a task without a level, or a contender that does not learn.
        runs: number of runs.
        failed: those of them that failed.
    """

    contender: str
    reward: Estimate
    metrics: Mapping[str, float | None]
    tokens: float
    optimizer_steps: float
    seconds: float
    area: float | None
    level: TimeToLevel | None
    runs: int
    failed: int


@dataclass(frozen=True)
class Standing:
    """A contender over all problems.

    Attributes:
        contender: its name.
        score: interquartile mean of normalised rewards, 0 and 1 at the ends of each task's range.
        runs: number of runs.
        failed: those of them that failed.
        tied: True where its difference to the first of the table is inside the noise.
        complete: False where it lacks runs that others have.
    """

    contender: str
    score: Estimate
    runs: int
    failed: int
    tied: bool
    complete: bool


class Leaderboard:
    """The results of one suite, ready to be shown.

    Args:
        suite: what ``suite.json`` says.
        results: the results; those of tuning are left out.

    Raises:
        ConfigError: there are none.
    """

    def __init__(self, suite: Mapping[str, Any], results: Sequence[Result]) -> None:
        self.suite = suite
        self.results = [result for result in results if result["part"] == "test"]
        if not self.results:
            raise ConfigError("there are no results yet: `rlhf-gym bench run` makes them")
        self.problems = list(dict.fromkeys(result["problem"] for result in self.results))
        self.contenders = sorted({result["contender"] for result in self.results})
        self._runs: dict[tuple[str, str], dict[int, Result]] = {}
        for result in sorted(self.results, key=lambda result: int(result["seed"])):
            self._runs.setdefault((result["problem"], result["contender"]), {})[result["seed"]] = result

    def runs(self, problem: str, contender: str) -> Mapping[int, Result]:
        """A contender's runs on a problem, by seed.

        Args:
            problem: the problem's name.
            contender: the contender's name.
        """
        return self._runs.get((problem, contender), {})

    def curves(self, problem: str, contender: str) -> list[Curve]:
        """The learning curves of a contender's runs on a problem; those of failed runs are empty.

        Args:
            problem: the problem's name.
            contender: the contender's name.
        """
        return [result["curve"] for result in self.runs(problem, contender).values()]

    def range_of(self, problem: str) -> tuple[float, float]:
        """The rewards that stand for 0 and 1 on a problem."""
        low, high = self.suite["tasks"][problem.partition("/")[0]]["range"]
        return float(low), float(high)

    def reward(self, result: Result) -> float:
        """A run's reward; that of a failed run is the lowest of the task's range, or lower where others end lower."""
        if result["status"] == "done":
            return float(result["metrics"]["reward"])
        others = [
            float(r["metrics"]["reward"])
            for r in self.results
            if r["problem"] == result["problem"] and r["status"] == "done"
        ]
        return min([self.range_of(result["problem"])[0], *others])

    def score(self, result: Result) -> float:
        """A run's reward on the scale on which problems are averaged."""
        low, high = self.range_of(result["problem"])
        return (self.reward(result) - low) / (high - low)

    def scores(self, contender: str) -> list[list[float]]:
        """A contender's scores: a list for each problem that it has runs on."""
        found = [[self.score(r) for r in self.runs(problem, contender).values()] for problem in self.problems]
        return [one for one in found if one]

    @cached_property
    def standings(self) -> list[Standing]:
        """The contenders, best first."""
        most = {problem: max(len(self.runs(problem, c)) for c in self.contenders) for problem in self.problems}
        scores = {contender: iqm_interval(self.scores(contender)) for contender in self.contenders}
        order = sorted(self.contenders, key=lambda contender: -scores[contender].value)
        found = []
        for contender in order:
            runs = [r for problem in self.problems for r in self.runs(problem, contender).values()]
            complete = all(len(self.runs(problem, contender)) == most[problem] for problem in self.problems)
            difference = None if contender == order[0] else self.difference(order[0], contender)
            tied = difference is not None and not difference.found
            failed = sum(r["status"] != "done" for r in runs)
            found.append(Standing(contender, scores[contender], len(runs), failed, tied, complete))
        return found

    def rows(self, problem: str) -> list[Row]:
        """The table of a problem, best first.

        Args:
            problem: its name.
        """
        found = [
            self._row(contender, list(runs.values()))
            for contender in self.contenders
            if (runs := self.runs(problem, contender))
        ]
        return sorted(found, key=lambda row: -row.reward.value)

    def _row(self, contender: str, runs: list[Result]) -> Row:
        done = [r for r in runs if r["status"] == "done"]
        areas = [area for r in done if (area := _area(r)) is not None]
        return Row(
            contender,
            mean_interval([self.reward(r) for r in runs]),
            {name: _mean([r["metrics"].get(name) for r in done]) for name in MEANS},
            float(np.mean([r["tokens"] for r in runs])),
            float(np.mean([r["optimizer_steps"] for r in runs])),
            float(np.mean([r["cpu_seconds"] for r in runs])),
            float(np.mean(areas)) if areas else None,
            _level(runs),
            len(runs),
            len(runs) - len(done),
        )  # fmt: skip

    def pair(
        self, first: str, second: str, problems: Sequence[str] | None = None
    ) -> tuple[list[list[float]], list[list[float]]]:
        """The scores of two contenders on the seeds that both have, a list for each problem.

        Args:
            first: a contender.
            second: another.
            problems: some of the problems; None takes all.
        """
        ours, theirs = [], []
        for problem in self.problems if problems is None else problems:
            a, b = self.runs(problem, first), self.runs(problem, second)
            if seeds := sorted(a.keys() & b.keys()):
                ours.append([self.score(a[seed]) for seed in seeds])
                theirs.append([self.score(b[seed]) for seed in seeds])
        return ours, theirs

    def difference(self, first: str, second: str) -> Difference:
        """The difference of two contenders, corrected for all pairs of the table.

        Args:
            first: a contender.
            second: another.
        """
        if (first, second) in self.differences:
            return self.differences[first, second]
        other = self.differences[second, first]
        value = other.estimate
        turned = Estimate(
            -value.value, None if value.high is None else -value.high, None if value.low is None else -value.low
        )
        return Difference(turned, other.p, other.n, other.adjusted)

    @cached_property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """The paired differences of all pairs of contenders, with Holm's correction.

        A pair's values are its seeds' mean differences over the problems that both have for the seed: seeds are what was
        drawn at random, problems were chosen.
        """
        found = {(a, b): self._difference(a, b) for a, b in combinations(self.contenders, 2)}
        return with_holm({key: difference for key, difference in found.items() if difference is not None})

    def _difference(self, first: str, second: str) -> Difference | None:
        by_seed: dict[int, list[tuple[float, float]]] = {}
        for problem in self.problems:
            a, b = self.runs(problem, first), self.runs(problem, second)
            for seed in a.keys() & b.keys():
                by_seed.setdefault(seed, []).append((self.score(a[seed]), self.score(b[seed])))
        if not by_seed:
            return None
        most = max(map(len, by_seed.values()))  # a seed without some problems would mix problems into the noise
        means = [np.mean(pairs, axis=0) for _, pairs in sorted(by_seed.items()) if len(pairs) == most]
        return paired_difference([m[0] for m in means], [m[1] for m in means])

    def improvement(self, first: str, second: str) -> Estimate | None:
        """The probability that a run of the first is better than one of the second; None where they share no seed.

        Args:
            first: a contender.
            second: another.
        """
        ours, theirs = self.pair(first, second)
        return probability_of_improvement(ours, theirs) if ours else None

    @property
    def failures(self) -> list[Result]:
        """The runs that failed, took too long or diverged."""
        return [result for result in self.results if result["status"] != "done"]


def _area(result: Result) -> float | None:
    curve = result["curve"]
    budget = result["budget"] if result["equal"] == "tokens" else result["tokens"]
    return area_under_curve(curve, budget) if len(curve) > 1 else None


def _level(runs: Sequence[Result]) -> TimeToLevel | None:
    """Tokens to the level; a run that failed is censored where it ended."""
    level = runs[0]["level"]
    if level is None or not any(r["curve"] for r in runs):
        return None
    arrived = [tokens_to_level(r["curve"], level) for r in runs]
    # A run that failed counts as one that never arrives: as if it had used its whole budget.
    ends = [float(r["tokens"] if r["status"] == "done" or r["equal"] != "tokens" else r["budget"]) for r in runs]
    reached = [tokens for tokens in arrived if tokens is not None]
    return time_to_level(reached, [end for tokens, end in zip(arrived, ends, strict=True) if tokens is None])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
