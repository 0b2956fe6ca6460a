"""The report's numbers and tables: headline metrics, verdict, numbers of the curves, pairs of responses."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rlhf_gym.loop.report.formatting import MISSING, duration, number, percent, signed
from rlhf_gym.loop.report.frontier import Frontier
from rlhf_gym.loop.report.run_data import METRICS, RunData, finite
from rlhf_gym.loop.report.trust import GOLD, win_rates

_MOST_ROWS = 200
_FIRST_ROWS = 12
_SHADES = 3  # shades on either side of the middle


@dataclass(frozen=True)
class Tile:
    """One headline metric; `value` is None while it is not there yet."""

    title: str
    value: str | None
    note: str


@dataclass(frozen=True)
class Score:
    """A score as a table prints it: its value, also the sort key, and a shade from -3 (low) to 3 (high)."""

    value: float | None
    shade: int


@dataclass(frozen=True)
class PairRow:
    """One held-out prompt with its responses; `extra` rows are hidden at first."""

    number: int
    prompt: str
    before: str
    after: str
    gold_before: Score
    gold_after: Score
    proxy_before: Score
    proxy_after: Score
    gain: float | None
    extra: bool


def headline(run: RunData) -> list[Tile]:
    """The six headline metrics."""
    rate, low, high = (run.evaluated(key) for key in ("win_rate", "win_rate_low", "win_rate_high"))
    before, after = run.evaluated("gold_before"), run.evaluated("gold_after")
    kl, prompts = run.kl, run.evaluated("n")
    kl_error = run.evaluated("kl_exact_se")
    reward_model = run.reward_models[-1] if run.reward_models else None
    accuracy = reward_model.get("accuracy") if reward_model else None
    error = reward_model.get("standard_error") if reward_model else None
    held_out = reward_model.get("n_validation") if reward_model else None
    agree = run.evaluated("labels_agree")
    interval = f"95% interval {percent(low, 0)} to {percent(high, 0)}" if low is not None else "no interval"
    return [
        Tile("Win rate", _or_none(rate, percent), f"{interval}, {number(prompts)} prompts"),
        Tile(
            "Gold reward",
            None if before is None or after is None else f"{number(before, 2)} → {number(after, 2)}",
            f"{signed(_difference(after, before))} on held-out prompts",
        ),
        Tile(
            "KL to the reference",
            _or_none(kl, number),
            "nats per response" + ("" if kl_error is None else f", ± {number(kl_error, 2)} (1 SE)"),
        ),
        Tile(
            "Reward model's accuracy",
            _or_none(accuracy, percent),
            ("" if error is None else f"± {number(100 * error, 1)} points (1 SE), ")
            + f"{number(held_out)} held-out pairs"
            + ("" if agree is None else f"; gold itself: {percent(agree, 0)}"),
        ),
        Tile("Labels used", None if run.labels is None else number(run.labels), "judgements in the store"),
        Tile("Time", _or_none(run.wall_seconds, duration), "all stages together"),
    ]


def verdict(run: RunData, found: Frontier | None) -> list[str]:
    """Sum up the run in a few sentences made of its own metrics.

    Args:
        run: the run's data.
        found: its KL/reward frontier; None where there is none.
    """
    sentences = []
    rate, low, high = (run.evaluated(key) for key in ("win_rate", "win_rate_low", "win_rate_high"))
    if rate is not None:
        others = [f"{percent(one.rate)} {one.by}" for one in win_rates(run) if one.by != GOLD]
        sentence = f"The tuned model's response beats the reference's on {percent(rate)} of held-out prompts by the gold reward"
        sentence += f" ({', '.join(others)})" if others else ""
        kl = run.kl
        sentence += "." if kl is None else f", at {number(kl)} nats of KL per response."
        if low is not None and high is not None and low <= 0.5 <= high:
            sentence += " The interval holds 50%: this may be chance."
        sentences.append(sentence)
    if found and found.standardised:
        last = found.trend[-1]
        ending = found.held_out or last
        where = "On held-out prompts" if found.held_out else "Where KL was largest"
        sentences.append(
            f"{where} the proxy reward gained {signed(ending.proxy)} and the gold reward {signed(ending.gold)} "
            f"standard deviations of the reference's scores: a gap of {signed(ending.gap)}."
        )
        best = max(found.trend, key=lambda point: point.gold)
        if best.gold - last.gold > 0.15 and last.proxy >= best.proxy:
            sentences.append(
                f"The gold reward was best near {number(best.root_kl**2, 1)} nats and fell from there while the proxy "
                "rose: the policy is over-optimised."
            )
    sentences += run.endings
    if not sentences:
        sentences.append("This run has not come to its evaluation yet. Below is what there is so far.")
    return sentences


def curve_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """The numbers of the learning curves: titles of the columns, and at most 200 rows, evenly spaced."""
    drawn = [metric for metric in METRICS if any(value is not None for value in run.series(metric.key))]
    metrics = [*drawn, *run.terms]
    step = max(1, -(-len(run.iterations) // _MOST_ROWS))
    rows = [
        [
            str(iteration.index),
            str(iteration.round),
            MISSING if iteration.tokens is None else f"{iteration.tokens:,}",
            *(number(iteration.values.get(metric.key)) for metric in metrics),
        ]
        for iteration in run.iterations[::step]
    ]
    return ["Iteration", "Round", "Tokens", *(metric.title for metric in metrics)], rows


def time_shares(run: RunData) -> list[tuple[str, str, str]]:
    """The iterations' time by phase: phase, time, share; empty if it was not recorded."""
    names = {
        "generation": "generating responses", "reward": "waiting for rewards", "reference": "reference log-probabilities",
        "learning": "learning", "weights": "new weights to an engine",
    }  # fmt: skip
    total = sum(run.seconds.get(phase, 0.0) for phase in names)
    if not total:
        return []
    return [
        (name, duration(run.seconds[phase]), percent(run.seconds[phase] / total))
        for phase, name in names.items()
        if phase in run.seconds
    ]


def worker_table(run: RunData) -> tuple[list[str], list[list[str]]]:
    """The metrics of each worker, last and mean: titles of the columns, and a row for each worker; no rows without workers."""
    names = list(dict.fromkeys(name for metrics in run.workers.values() for name in metrics))
    titles = [f"{name.replace('_', ' ')}, {which}" for name in names for which in ("last", "mean")]
    rows = []
    for worker, metrics in run.workers.items():
        cells = [f"worker {worker}"]
        for name in names:
            values = metrics.get(name, [])
            cells += [number(values[-1]), number(statistics.fmean(values))] if values else [MISSING, MISSING]
        rows.append(cells)
    return ["", *titles], rows


def text_health(run: RunData) -> list[tuple[str, str, str]]:
    """Metrics of the text's quality: name, before, after."""
    rows = (
        ("Gold reward", "gold", 3),
        ("Proxy reward", "proxy", 3),
        ("Second judge's reward", "judge", 3),
        ("Perplexity under the reference", "perplexity", 1),
        ("Distinct bigrams, share", "distinct_2", 3),
        ("Repeated bigrams within a response, share", "repetition", 3),
        ("Fluent, share of responses", "fluent", 3),
        ("Length in tokens", "length", 1),
    )
    found = []
    for title, key, decimals in rows:
        before, after = run.evaluated(f"{key}_before"), run.evaluated(f"{key}_after")
        if before is not None or after is not None:
            found.append((title, number(before, decimals), number(after, decimals)))
    for title, key in (("KL in nats, by the tokens drawn (k1)", "kl"), ("KL in nats, exact per token", "kl_exact")):
        kl, error = run.evaluated(key), run.evaluated(f"{key}_se")
        if kl is not None:
            found.append((title, number(0.0), number(kl, 2) + ("" if error is None else f" ± {number(error, 2)}")))
    return found


def pair_rows(run: RunData) -> list[PairRow]:
    """The first 200 pairs in the order of the held-out prompts: no pair is picked by its score."""
    pairs = run.pairs[:_MOST_ROWS]
    scales = {name: _scale([finite(pair.get(f"{name}_before")) for pair in run.pairs]) for name in ("gold", "proxy")}

    def score(name: str, value: float | None) -> Score:
        mean, standard_deviation = scales[name]
        shade = 0 if value is None else round((value - mean) / standard_deviation / 0.6)
        return Score(value, max(-_SHADES, min(_SHADES, shade)))

    rows = []
    for index, pair in enumerate(pairs):
        gold_before, gold_after = finite(pair.get("gold_before")), finite(pair.get("gold_after"))
        rows.append(
            PairRow(
                number=index + 1,
                prompt=str(pair.get("prompt", "")),
                before=str(pair.get("before", "")),
                after=str(pair.get("after", "")),
                gold_before=score("gold", gold_before),
                gold_after=score("gold", gold_after),
                proxy_before=score("proxy", finite(pair.get("proxy_before"))),
                proxy_after=score("proxy", finite(pair.get("proxy_after"))),
                gain=_difference(gold_after, gold_before),
                extra=index >= _FIRST_ROWS,
            )
        )
    return rows


def _scale(scores: list[float | None]) -> tuple[float, float]:
    """Mean and standard deviation of the reference's scores, by which colours are scaled."""
    known = [score for score in scores if score is not None]
    standard_deviation = statistics.pstdev(known) if known else 0.0
    return (statistics.fmean(known) if known else 0.0, standard_deviation or 1.0)


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _or_none(value: float | None, show: Callable[[float], str]) -> str | None:
    return None if value is None else show(value)
