"""The plots of a benchmark, as inline SVG for the page and as files for a paper."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from rlhf_gym.bench.colours import classes, paper_style
from rlhf_gym.bench.curves import mean_curve
from rlhf_gym.bench.equal_kl import mean_frontier
from rlhf_gym.bench.estimates import Estimate, performance_profile
from rlhf_gym.bench.leaderboard import Leaderboard
from rlhf_gym.bench.report_text import interval
from rlhf_gym.loop.report.formatting import number
from rlhf_gym.loop.report.svg import Chart, padded, spread

WIDTH, HEIGHT = 560, 300
ROW, NAME = 24, 14
"""Heights of a line of the leaderboard and of a name beside a plot, in SVG units."""
BEYOND = 1.5
"""How many times the root of KL that 95% of the runs keep within a plot reaches; runs beyond are counted below it."""
LABELS = 130
"""Room for contenders' names, in SVG units."""


def _range(estimates: list[Estimate]) -> tuple[float, float]:
    ends = [end for e in estimates for end in (e.low, e.value, e.high) if end is not None]
    return padded(ends)


def score_plot(board: Leaderboard) -> Markup:
    """Each contender's interquartile mean with its interval, best first."""
    standings, css = board.standings, classes(board.contenders)
    height = 60 + ROW * len(standings)
    x_range = _range([standing.score for standing in standings])
    chart = Chart(WIDTH, height, x_range, (len(standings) + 0.5, 0.5), (10, 24, 44, LABELS))
    chart.axes(
        "interquartile mean of normalised rewards, 95% interval", y_ticks=list(range(1, len(standings) + 1)),
        y_names=[standing.contender for standing in standings],
    )  # fmt: skip
    for place, standing in enumerate(standings, 1):  # at 0 the grid draws the line of a value of 0
        score, colour = standing.score, css[standing.contender]
        if score.low is not None and score.high is not None:
            chart.segment((chart.x(score.low), chart.y(place)), (chart.x(score.high), chart.y(place)), f"rule {colour}")
        chart.dots([(score.value, place)], colour, 4.5)
        chart.spot((score.value, place), f"{standing.contender}: {interval(score)}")
    return chart.render("Leaderboard", f"{standings[0].contender} is first with {interval(standings[0].score)}.")


def curve_plot(board: Leaderboard, problem: str) -> Markup | None:
    """The learning curves of a problem, means over seeds with Student's t bands; None where nobody has a curve.

    Args:
        board: the results.
        problem: the problem's name.
    """
    css = classes(board.contenders)
    curves = {c: mean_curve(board.curves(problem, c)) for c in board.contenders}
    curves = {contender: curve for contender, curve in curves.items() if curve}
    if not curves:
        return None
    # Bands of few seeds may be far wider than the rewards: the axis follows the means.
    means = [estimate.value for curve in curves.values() for _, estimate in curve]
    low, high = padded(means)
    last = max(tokens for curve in curves.values() for tokens, _ in curve)
    height = max(HEIGHT, 74 + NAME * len(curves))
    chart = Chart(WIDTH, height, (0, last), (low, high), (14, LABELS, 44, 52))
    chart.axes("tokens generated", y_label="gold reward")
    for contender, curve in curves.items():
        banded = [(x, e) for x, e in curve if e.low is not None and e.high is not None]
        if banded:
            upper = [(x, min(e.high or 0.0, high)) for x, e in banded]
            chart.band(upper, [(x, max(e.low or 0.0, low)) for x, e in banded], f"area {css[contender]}")
    for contender, curve in curves.items():
        chart.line([(x, e.value) for x, e in curve], css[contender])
    _names(chart, {c: curve[-1][1].value for c, curve in curves.items()}, css)
    return chart.render(f"Learning curves on {problem}", f"{len(curves)} contenders, mean reward over tokens.")


def profile_plot(board: Leaderboard) -> Markup:
    """The share of runs that score above each threshold."""
    css, points = classes(board.contenders), 41
    scores = {c: [score for stratum in board.scores(c) for score in stratum] for c in board.contenders}
    low, high = padded([score for values in scores.values() for score in values])
    thresholds = [low + (high - low) * i / (points - 1) for i in range(points)]
    chart = Chart(WIDTH, HEIGHT, (low, high), (0, 1.02), (14, 20, 44, 52))
    chart.axes("normalised reward τ", y_label="share of runs above τ")
    for contender, values in scores.items():
        profile = performance_profile(values, thresholds)
        chart.line([(x, e.value) for x, e in zip(thresholds, profile, strict=True)], css[contender])
    return chart.render("Performance profiles", "The share of runs that score above each threshold; higher is better.")


def frontier_plot(board: Leaderboard, problem: str) -> Markup | None:
    """Reward against KL, on a root scale: each run's end as a dot, the mean course of training as a line.

    Best-of-n stands at its analytic KL; its dots are joined by a line of their own.

    Args:
        board: the results.
        problem: the problem's name.
    """
    css = classes(board.contenders)
    dots: dict[str, list[tuple[float, float]]] = {}
    for contender in board.contenders:
        for result in board.runs(problem, contender).values():
            if result["status"] == "done" and result["metrics"].get("kl") is not None:
                dots.setdefault(contender, []).append((_root(result["metrics"]["kl"]), board.reward(result)))
    if not dots:
        return None
    courses = {
        contender: [(_root(kl), reward) for kl, reward in course]
        for contender in dots
        if (course := mean_frontier(board.curves(problem, contender)))
    }
    # One run that has left for hundreds of nats would press all others into a corner.
    ends = sorted(root for found in dots.values() for root, _ in found)
    reach = max([BEYOND * ends[math.ceil(0.95 * len(ends)) - 1], *(course[-1][0] for course in courses.values())])
    beyond = sum(root > reach for root in ends)
    drawn = [*([place for place in found if place[0] <= reach] for found in dots.values()), *courses.values()]
    x_range = padded([root for places in drawn for root, _ in places], from_zero=True)
    height = max(HEIGHT, 74 + NAME * len(dots))
    y_range = padded([reward for places in drawn for _, reward in places])
    chart = Chart(WIDTH, height, x_range, y_range, (14, LABELS, 44, 52))
    ticks = _nats(x_range[1])
    more = f"; {beyond} run{'s' * (beyond > 1)} beyond {number(reach**2, 0 if reach > 3 else 2)}" if beyond else ""
    chart.axes(
        f"KL to the start model, nats a response, root scale{more}", y_label="gold reward",
        x_ticks=[_root(tick) for tick in ticks], x_names=[f"{tick:g}" for tick in ticks],
    )  # fmt: skip
    best = sorted(
        (sum(kl for kl, _ in found) / len(found), sum(r for _, r in found) / len(found))
        for c, found in dots.items()
        if _is_best_of_n(board, c)
    )
    if len(best) > 1:
        chart.line(best, "other faint-line")
    for contender, found in dots.items():
        near = [(root, reward) for root, reward in found if root <= reach]
        chart.dots(near, f"{css[contender]}{' faint' if contender in courses else ''}", 3)
        for root, reward in near:
            chart.spot((root, reward), f"{contender}: reward {number(reward, 3)} at {number(root**2, 2)} nats")
    for contender, course in courses.items():
        chart.line(course, css[contender])
    # Names stand at the right edge, at the height of each contender's mean.
    _names(chart, {c: sum(r for _, r in found) / len(found) for c, found in dots.items()}, css)
    return chart.render(
        f"Reward and KL on {problem}", "Dots are runs, test reward at the last KL; lines are mean courses of training."
    )


def _root(kl: float) -> float:
    return math.sqrt(max(float(kl), 0.0))


def _nats(root: float) -> list[float]:
    """Ticks of a root scale up to some root: 1, 2 and 5 times powers of ten that are not too close to one another."""
    found = [0.0]
    for power in range(-3, 7):
        for tick in (1 * 10.0**power, 2 * 10.0**power, 5 * 10.0**power):
            if _root(tick) <= root and _root(tick) - _root(found[-1]) >= 0.1 * root:
                found.append(tick)
    return found


def _is_best_of_n(board: Leaderboard, contender: str) -> bool:
    return any(r["agent"] == "best_of_n" and contender == r["contender"] for r in board.results)


def _names(chart: Chart, ends: dict[str, float], css: dict[str, str]) -> None:
    """Write names at the right edge, at the heights of some values, apart from one another and beside the plot."""
    names = sorted(ends, key=lambda name: chart.y(ends[name]))
    places = spread([chart.y(ends[name]) + 4 for name in names], NAME)
    least = chart.top + 4.0
    for i, place in enumerate(places):
        places[i] = least = max(place, least)
        least += NAME
    most = chart.bottom + 8.0
    for i in reversed(range(len(places))):
        places[i] = most = min(places[i], most)
        most -= NAME
    for name, place in zip(names, places, strict=True):
        chart.text((chart.right + 6, place), name, f"end {css[name]}")


def standalone(svg: str) -> str:
    """A plot as a file of its own, with its style inside, on white."""
    head, rest = str(svg).split(">", 1)  # a Markup would escape what is put into it
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    return f"{head}>\n<style>{paper_style()}</style>\n{rest}\n"


def all_plots(board: Leaderboard) -> dict[str, Markup]:
    """Every plot by the name of its file."""
    found: dict[str, Markup | None] = {"leaderboard": score_plot(board), "profiles": profile_plot(board)}
    kinds: dict[str, Callable[[Leaderboard, str], Markup | None]] = {"curves": curve_plot, "frontier": frontier_plot}
    for problem in board.problems:
        for kind, plot in kinds.items():
            found[f"{kind}-{problem.replace('/', '-')}"] = plot(board, problem)
    return {name: plot for name, plot in found.items() if plot is not None}
