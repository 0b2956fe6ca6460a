"""The leaderboard and the problems' tables as plain text and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_gym.bench.curves import points_within
from rlhf_gym.bench.equal_kl import at_equal_kl
from rlhf_gym.bench.estimates import Estimate, TimeToLevel, with_holm
from rlhf_gym.bench.leaderboard import Leaderboard, Row, Standing

NONE = "-"
NOISE = "* marks the first, and those whose paired difference to it does not stand out of the noise (Holm-corrected)."


def number(value: float | None, decimals: int = 3) -> str:
    """A number, or a dash for none.

    Args:
        value: the number.
        decimals: digits after the point.
    """
    return NONE if value is None else f"{round(value, decimals) + 0.0:,.{decimals}f}"  # no -0.000


def p_value(value: float | None) -> str:
    """A p value to three digits, or a dash for none; one that rounds to 0 is said to be small."""
    return "<0.001" if value is not None and value < 0.0005 else number(value)


def interval(estimate: Estimate, decimals: int = 3) -> str:
    """An estimate with its interval in brackets.

    Args:
        estimate: the estimate.
        decimals: digits after the point.
    """
    if estimate.low is None or estimate.high is None:
        return number(estimate.value, decimals)
    value, low, high = (number(end, decimals) for end in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def level_words(level: TimeToLevel | None) -> str:
    """Tokens to a level: the median with censored runs, and how many arrived."""
    if level is None:
        return NONE
    median = NONE if level.median is None else f"{level.median:,.0f}"
    return f"{median} ({level.reached} of {level.n})"


STANDING_HEAD = ("contender", "score [95%]", "runs", "failed")
ROW_HEAD = (
    "contender", "reward [95%]", "KL, nats", "win rate", "tokens", "optimizer steps", "CPU s", "area",
    "tokens to level", "failed",
)  # fmt: skip


PAIR_HEAD = (
    "first", "second", "difference [95%]", "p", "p after Holm", "verdict", "at equal KL [95%]", "p after Holm", "points within",
)  # fmt: skip
EQUAL_KL = (
    "At equal KL: the mean difference over the KL that both runs of a seed reached, along their learning curves; best-of-n and "
    "imitation stand at their test reward and final KL. Points within: those of the second's mean learning curve inside the "
    "first's 95% interval at the same tokens."
)


def standing_cells(standing: Standing, first: bool) -> tuple[str, ...]:
    """The cells of a contender's line in the leaderboard.

    Args:
        standing: the contender over all problems.
        first: True for the first of the table.
    """
    mark = "*" if first or standing.tied else ""
    runs = f"{standing.runs}" + ("" if standing.complete else " (incomplete)")
    return standing.contender + mark, interval(standing.score), runs, str(standing.failed)


def row_cells(row: Row) -> tuple[str, ...]:
    """The cells of a contender's line in a problem's table."""
    return (
        row.contender, interval(row.reward), number(row.metrics["kl"], 2), number(row.metrics["win_rate"], 2),
        f"{row.tokens:,.0f}", f"{row.optimizer_steps:,.0f}", number(row.seconds, 1), number(row.area), level_words(row.level),
        f"{row.failed} of {row.runs}" if row.failed else "0",
    )  # fmt: skip


def pair_cells(board: Leaderboard) -> list[tuple[str, ...]]:
    """For each pair the difference of scores, at the end and at equal KL, and what the learning curves have in common."""
    equal = {
        (first, second): found
        for first, second in board.differences
        if (found := at_equal_kl(board, first, board, second).difference) is not None
    }
    corrected = with_holm(equal)
    rows: list[tuple[str, ...]] = []
    for (first, second), d in board.differences.items():
        kl = corrected.get((first, second))
        at_kl = (NONE, NONE) if kl is None else (interval(kl.estimate), p_value(kl.adjusted))
        shares = (points_within(board.curves(p, first), board.curves(p, second)) for p in board.problems)
        counts = [(share.within, share.points) for share in shares if share is not None]
        within = "{} of {}".format(*map(sum, zip(*counts, strict=True))) if counts else NONE
        rows.append((first, second, interval(d.estimate), p_value(d.p), p_value(d.adjusted), d.words, *at_kl, within))
    return rows


def leaderboard_text(leaderboard: Leaderboard) -> str:
    """The leaderboard for a terminal."""
    standings = leaderboard.standings
    lines = [standing_cells(standing, i == 0) for i, standing in enumerate(standings)]
    title = f"suite {leaderboard.suite['name']} version {leaderboard.suite['version']}, {len(leaderboard.problems)} problems"
    parts = [title, *_aligned([STANDING_HEAD, *lines]), NOISE]
    parts += [
        f"{result['status']}: {result['contender']} on {result['problem']}, seed {result['seed']}: {result['error']}"
        for result in leaderboard.failures[:10]
    ]
    return "\n".join(parts)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def markdown(leaderboard: Leaderboard, commands: Sequence[str]) -> str:
    """The report in Markdown.

    Args:
        leaderboard: the results.
        commands: the commands that made them.
    """
    suite = leaderboard.suite
    parts = [
        f"# Benchmark {suite['name']}, version {suite['version']}", "",
        f"{suite['about']} Equal for all: {suite['equal'].replace('_', ' ')}. Hash {suite['hash']}.", "",
        "```sh", *commands, "```", "", "## Leaderboard", "",
        "Score: interquartile mean of rewards on the scale of each task's range, over problems and seeds, with a stratified "
        f"bootstrap interval. Failed runs count at the bottom. {NOISE}", "",
        *_table(STANDING_HEAD, [standing_cells(s, i == 0) for i, s in enumerate(leaderboard.standings)]),
    ]  # fmt: skip
    for problem in leaderboard.problems:
        parts += ["", f"## {problem}", "", *_table(ROW_HEAD, [row_cells(row) for row in leaderboard.rows(problem)])]
    parts += [
        "",
        "## Pairs",
        "",
        f"Difference of scores, first less second, paired by seed. {EQUAL_KL}",
        "",
    ]
    parts += _table(PAIR_HEAD, pair_cells(leaderboard))
    if leaderboard.failures:
        parts += ["", "## Failures", ""]
        parts += [
            f"- {r['contender']} on {r['problem']}, seed {r['seed']}: {r['status']}, {' '.join(str(r['error']).split())}"
            for r in leaderboard.failures
        ]
    return "\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]
