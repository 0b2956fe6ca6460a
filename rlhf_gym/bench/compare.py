"""Says whether two contenders, or two versions of one, differ: pair by pair, corrected for the number of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_gym.bench.curves import points_within
from rlhf_gym.bench.equal_kl import EqualKL, Span, at_equal_kl
from rlhf_gym.bench.estimates import Difference, Estimate, paired_difference, probability_of_improvement, with_holm
from rlhf_gym.bench.leaderboard import Leaderboard
from rlhf_gym.bench.report_text import interval, number, p_value
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
    lines = [f"  {name}: {_verdict(difference)}" for (name, _), difference in differences.items()]
    improvement = probability_of_improvement(a_scores, b_scores)
    lines.append(f"  probability that a run of A is better than one of B: {interval(improvement, 2)}")
    lines += _equal_kl(ours, first, theirs, second, by_problem)
    return [*lines, *_curves(ours, first, theirs, second, by_problem)]


def _verdict(difference: Difference) -> str:
    p = difference.p if difference.adjusted is None else difference.adjusted
    words = difference.words.replace("the first", "A").replace("the second", "B")
    seeds = "1 seed" if difference.n == 1 else f"{difference.n} seeds"
    return f"{interval(difference.estimate)}, {'' if p is None else f'p {p_value(p)}, '}{seeds}: {words}"


def _equal_kl(ours: Leaderboard, first: str, theirs: Leaderboard, second: str, problems: Sequence[str]) -> list[str]:
    """Lines that say how the two differ at equal KL, and how far apart they end."""
    found = {problem: at_equal_kl(ours, first, theirs, second, [problem]) for problem in problems}
    overall = at_equal_kl(ours, first, theirs, second)
    if overall.reached[0] is None or overall.reached[1] is None:
        without = " and ".join(
            side for side, reached in zip(("A", "B"), overall.reached, strict=True) if reached is None
        )
        return [f"  at equal KL: nothing, no run of {without} has a KL"]
    lines = ["  at equal KL, mean over the KL that both runs of a seed reached:"]
    if len(overall.problems) > 1 and overall.difference is not None:
        name = "all problems" if len(overall.problems) == len(problems) else f"these {len(overall.problems)} problems"
        lines.append(f"    {name}: {_verdict(overall.difference)}")
    corrected = with_holm({(p, ""): f.difference for p, f in found.items() if f.difference is not None})
    for problem, one in found.items():
        words = f"no KL that both reached, {_reached(one)}"
        if one.span is not None:
            words = f"{_verdict(corrected[problem, ''])} ({_span(one.span)}{_left_out(one)})"
        elif one.unknown:
            words += _left_out(one)
        lines.append(f"    {problem}: {words}")
    for side, name, single in zip("AB", (first, second), overall.single, strict=True):
        if single:
            where = "stands at its test reward and final KL, beside rewards while training"
            lines.append(f"    {side} has no learning curve over KL: {name} {where}")
    ends = [
        f"{problem} {interval(e, 2)}" for problem in problems if (e := _final_kl(ours, first, theirs, second, problem))
    ]
    return [*lines, f"  KL at the end, A - B, nats: {', '.join(ends)}"] if ends else lines


def _reached(one: EqualKL) -> str:
    sides = zip("AB", one.reached, strict=True)
    return ", ".join(f"{side} has none" if span is None else f"{side} {_span(span)}" for side, span in sides)


def _span(span: Span) -> str:
    low, high = (number(end, 2) for end in span)
    return f"at {low} nats" if low == high else f"{low} to {high} nats"


def _left_out(one: EqualKL) -> str:
    words = (
        f"; {one.apart} of {one.compared + one.apart} pairs have no KL in common" if one.apart and one.compared else ""
    )
    return words + (f"; {one.unknown} left out, a run has no KL" if one.unknown else "")


def _final_kl(ours: Leaderboard, first: str, theirs: Leaderboard, second: str, problem: str) -> Estimate | None:
    a, b = ours.runs(problem, first), theirs.runs(problem, second)
    kls = [(a[seed]["metrics"].get("kl"), b[seed]["metrics"].get("kl")) for seed in sorted(a.keys() & b.keys())]
    both = [(x, y) for x, y in kls if x is not None and y is not None]
    return paired_difference([x for x, _ in both], [y for _, y in both]).estimate if both else None


def _curves(ours: Leaderboard, first: str, theirs: Leaderboard, second: str, problems: Sequence[str]) -> list[str]:
    """A line that says how much of B's learning curves lies within A's intervals."""
    found = {
        problem: points_within(ours.curves(problem, first), theirs.curves(problem, second)) for problem in problems
    }
    known = {problem: one for problem, one in found.items() if one is not None}
    if not known:
        return []
    each = ", ".join(f"{problem} {one.within} of {one.points}" for problem, one in known.items())
    within, points = (sum(getattr(one, name) for one in known.values()) for name in ("within", "points"))
    together = f"; together {within} of {points}" if len(known) > 1 else ""
    expected = sum(one.expected for one in known.values()) / len(known)
    return [
        f"  points of B's learning curves within A's interval at the same tokens: {each}{together} (independent runs that do "
        f"not differ: {expected:.0%})"
    ]


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


def _same(a: Mapping[int, Result], b: Mapping[int, Result]) -> bool:
    """True where all common seeds have given the same numbers."""
    return all(
        a[seed]["status"] == b[seed]["status"] == "done"
        and a[seed]["metrics"] == b[seed]["metrics"]
        and a[seed]["curve"] == b[seed]["curve"]
        for seed in a.keys() & b.keys()
    )
