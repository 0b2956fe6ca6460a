"""The plots of a benchmark, as inline SVG for the page and as files for a paper."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from rlhf_gym.bench.colours import classes, paper_style
from rlhf_gym.bench.curves import mean_curve
from rlhf_gym.bench.estimates import Estimate, performance_profile
from rlhf_gym.bench.leaderboard import Leaderboard
from rlhf_gym.bench.report_text import interval
from rlhf_gym.loop.report.formatting import number
from rlhf_gym.loop.report.svg import Chart, padded, spread

WIDTH, HEIGHT = 560, 300
ROW = 24
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
    chart = Chart(WIDTH, height, x_range, (len(standings) - 0.5, -0.5), (10, 24, 44, LABELS))
    chart.axes(
        "interquartile mean of normalised rewards, 95% interval", y_ticks=list(range(len(standings))),
        y_names=[standing.contender for standing in standings],
    )  # fmt: skip
    for place, standing in enumerate(standings):
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
    curves = {c: mean_curve([r["curve"] for r in board.runs(problem, c).values()]) for c in board.contenders}
    curves = {contender: curve for contender, curve in curves.items() if curve}
    if not curves:
        return None
    # Bands of few seeds may be far wider than the rewards: the axis follows the means.
    means = [estimate.value for curve in curves.values() for _, estimate in curve]
    low, high = padded(means)
    last = max(tokens for curve in curves.values() for tokens, _ in curve)
    chart = Chart(WIDTH, HEIGHT, (0, last), (low, high), (14, LABELS, 44, 52))
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
    """Reward against KL: each run's end as a dot, the mean course as a line, best-of-n at its analytic KL.

    Args:
        board: the results.
        problem: the problem's name.
    """
    css = classes(board.contenders)
    dots: dict[str, list[tuple[float, float]]] = {}
    for contender in board.contenders:
        for result in board.runs(problem, contender).values():
            if result["status"] == "done" and result["metrics"].get("kl") is not None:
                dots.setdefault(contender, []).append((float(result["metrics"]["kl"]), board.reward(result)))
    if not dots:
        return None
    places = [place for found in dots.values() for place in found]
    x_range = padded([kl for kl, _ in places], from_zero=True)
    chart = Chart(WIDTH, HEIGHT, x_range, padded([reward for _, reward in places]), (14, LABELS, 44, 52))
    chart.axes("KL to the start model, nats a response", y_label="gold reward")
    best = sorted(
        (sum(kl for kl, _ in found) / len(found), sum(r for _, r in found) / len(found))
        for c, found in dots.items()
        if _is_best_of_n(board, c)
    )
    if len(best) > 1:
        chart.line(best, "other faint-line")
    for contender, found in dots.items():
        chart.dots(found, css[contender], 3.5)
        for place in found:
            chart.spot(place, f"{contender}: reward {number(place[1], 3)} at {number(place[0], 2)} nats")
    # Names stand at the right edge, at the height of each contender's mean.
    _names(chart, {c: sum(r for _, r in found) / len(found) for c, found in dots.items()}, css)
    return chart.render(f"Reward and KL on {problem}", "Each dot is a run: its test reward at its KL.")


def _is_best_of_n(board: Leaderboard, contender: str) -> bool:
    return any(r["agent"] == "best_of_n" and contender == r["contender"] for r in board.results)


def _names(chart: Chart, ends: dict[str, float], css: dict[str, str]) -> None:
    """Write names at the right edge, at the heights of some values, apart from one another."""
    names = list(ends)
    for name, place in zip(names, spread([chart.y(ends[name]) for name in names], 14), strict=True):
        chart.text((chart.right + 6, min(place + 4, chart.bottom + 8)), name, f"end {css[name]}")


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
