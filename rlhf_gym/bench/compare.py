"""Says whether two contenders, or two versions of one, differ: pair by pair, corrected for the number of comparisons."""

from __future__ import annotations

from pathlib import Path

from rlhf_gym.bench.estimates import Difference, paired_difference, probability_of_improvement, with_holm
from rlhf_gym.bench.leaderboard import Leaderboard
from rlhf_gym.bench.report_text import interval, number
from rlhf_gym.bench.results import Result, ResultsFolder
from rlhf_gym.errors import ConfigError
from rlhf_gym.text import nearest


def compare_sides(first: str, second: str) -> str:
    """Compare two sides, and say what was found.

    Args:
        first: a folder of results, or ``DIR:CONTENDER``.
        second: likewise.

    Raises:
        ConfigError: no results there, no such contender, results of two suites, or no pairs.
    """
    (folder_a, name_a), (folder_b, name_b) = _side(first), _side(second)
    a, b = ResultsFolder(folder_a), ResultsFolder(folder_b)
    if a.suite["hash"] != b.suite["hash"]:
        raise ConfigError(
            f"{folder_a} holds suite {a.suite['name']!r} version {a.suite['version']} (hash {a.suite['hash']}), {folder_b} "
            f"{b.suite['name']!r} version {b.suite['version']} (hash {b.suite['hash']}): only results of one suite can be "
            f"compared"
        )
    ours, theirs = Leaderboard(a.suite, a.read()), Leaderboard(b.suite, b.read())
    pairs = _pairs(ours, name_a, theirs, name_b, folder_a, folder_b)
    lines = [
        f"A: {first}",
        f"B: {second}",
        "differences A - B of scores, paired by seed, 95% intervals, p after Holm's correction",
    ]
    for contender, other in pairs:
        lines += ["", contender if contender == other else f"{contender} (A) and {other} (B)"]
        lines += _compare(ours, contender, theirs, other)
    return "\n".join(lines) + "\n"


def _side(text: str) -> tuple[Path, str | None]:
    if Path(text).is_dir():
        return Path(text), None
    folder, colon, name = text.rpartition(":")
    return (Path(folder), name) if colon else (Path(text), None)


def _pairs(
    ours: Leaderboard, name_a: str | None, theirs: Leaderboard, name_b: str | None, folder_a: Path, folder_b: Path
) -> list[tuple[str, str]]:
    """The contenders to compare."""
    for name, board, folder in ((name_a, ours, folder_a), (name_b, theirs, folder_b)):
        if name is not None and name not in board.contenders:
            raise ConfigError(
                f"{folder} has no contender {name!r}{nearest(name, board.contenders)} Expected one of "
                f"{', '.join(board.contenders)}"
            )
    if name_a is not None or name_b is not None:
        return [(name_a or name_b or "", name_b or name_a or "")]
    common = [name for name in ours.contenders if name in theirs.contenders]
    if not common:
        raise ConfigError(f"{folder_a} and {folder_b} have no contender in common: name one of each, DIR:CONTENDER")
    return [(name, name) for name in common]


def _compare(ours: Leaderboard, first: str, theirs: Leaderboard, second: str) -> list[str]:
    by_problem, a_scores, b_scores = _paired(ours, first, theirs, second)
    if not by_problem:
        raise ConfigError(f"A has no run of {first} on a problem and seed that B has one of {second} on")
    if all(_same(ours.runs(p, first), theirs.runs(p, second)) for p in by_problem):
        number_of_runs = sum(len(scores) for scores in a_scores)
        return [f"  identical: all {number_of_runs} runs gave the same reward and the same curve"]
    seeds = sorted(set.intersection(*({*ours.runs(p, first)} & {*theirs.runs(p, second)} for p in by_problem)))
    overall = "all problems"
    differences: dict[tuple[str, str], Difference] = {}
    if seeds:
        means = [
            [sum(board.score(board.runs(p, name)[seed]) for p in by_problem) / len(by_problem) for seed in seeds]
            for board, name in ((ours, first), (theirs, second))
        ]
        differences[overall, ""] = paired_difference(*means)
    if len(by_problem) > 1 or not seeds:
        corrected = with_holm(
            {(p, ""): paired_difference(a, b) for p, a, b in zip(by_problem, a_scores, b_scores, strict=True)}
        )
        differences |= corrected
    lines = []
    for (name, _), difference in differences.items():
        p = difference.p if difference.adjusted is None else difference.adjusted
        words = difference.words.replace("the first", "A").replace("the second", "B")
        lines.append(f"  {name}: {interval(difference.estimate)}, p {number(p)}, {difference.n} seeds: {words}")
    improvement = probability_of_improvement(a_scores, b_scores)
    lines.append(f"  probability that a run of A is better than one of B: {interval(improvement, 2)}")
    return lines


def _paired(
    ours: Leaderboard, first: str, theirs: Leaderboard, second: str
) -> tuple[list[str], list[list[float]], list[list[float]]]:
    """The problems that both have seeds of, and the scores of both on those seeds."""
    problems, a_scores, b_scores = [], [], []
    for problem in ours.problems:
        a, b = ours.runs(problem, first), theirs.runs(problem, second)
        if seeds := sorted(a.keys() & b.keys()):
            problems.append(problem)
            a_scores.append([ours.score(a[seed]) for seed in seeds])
            b_scores.append([theirs.score(b[seed]) for seed in seeds])
    return problems, a_scores, b_scores


def _same(a: dict[int, Result], b: dict[int, Result]) -> bool:
    """True where all common seeds have given the same numbers."""
    return all(
        a[seed]["status"] == b[seed]["status"] == "done"
        and a[seed]["metrics"] == b[seed]["metrics"]
        and a[seed]["curve"] == b[seed]["curve"]
        for seed in a.keys() & b.keys()
    )
