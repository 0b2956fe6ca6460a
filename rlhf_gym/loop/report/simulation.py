"""A run beside the same loop with the rater that was fitted to its answers: what simulation would have said of it."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from rlhf_gym.loop.report.formatting import MISSING, number, percent, signed
from rlhf_gym.loop.report.run_data import RunData, finite

_FEWEST = 8  # pairs below which an interval says nothing


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        rows: for each metric its name, the run's value and the fitted rater's, as printed.
        verdict: a sentence on how far the tuned models' gold rewards are apart.
    """

    rows: list[tuple[str, str, str]]
    verdict: str

    def as_text(self) -> str:
        """Plain text."""
        lines = ["the same loop with the fitted rater:", f"{'':<34} {'this run':>22} {'fitted rater':>22}"]
        return "\n".join(
            [*lines, *(f"{name:<34} {own:>22} {other:>22}" for name, own, other in self.rows), self.verdict]
        )


def comparison(run: RunData) -> Comparison | None:
    """The run beside its run with the fitted rater; None where there is none that was evaluated.

    Args:
        run: the run that people (or others) gave the answers to.
    """
    other = run.fitted_run
    if other is None or not other.evaluation:
        return None
    rows = [
        ("reward model's held-out accuracy", _accuracy(run), _accuracy(other)),
        ("answers", number(run.labels), number(other.labels)),
    ]
    for title, key in (("gold reward", "gold"), ("proxy reward", "proxy")):
        own, theirs = (number(one.evaluated(f"{key}_after"), 3) for one in (run, other))
        rows.append((f"{title}, tuned model", own, theirs))
    rows.append(("win rate by gold", _win_rate(run), _win_rate(other)))
    rows.append(("KL to the reference, nats", number(run.kl, 2), number(other.kl, 2)))
    return Comparison(rows, _verdict(run, other))


def _accuracy(run: RunData) -> str:
    if not run.reward_models:
        return MISSING
    accuracy, error = (run.reward_models[-1].get(key) for key in ("accuracy", "standard_error"))
    return percent(accuracy) if error is None else f"{percent(accuracy)} ± {percent(1.96 * error)}"


def _win_rate(run: RunData) -> str:
    rate, low, high = (run.evaluated(key) for key in ("win_rate", "win_rate_low", "win_rate_high"))
    return (
        percent(rate) if low is None or high is None else f"{percent(rate, 0)} [{percent(low, 0)}, {percent(high, 0)}]"
    )


def _verdict(run: RunData, other: RunData) -> str:
    mine = {str(pair.get("prompt")): finite(pair.get("gold_after")) for pair in run.pairs}
    theirs = {str(pair.get("prompt")): finite(pair.get("gold_after")) for pair in other.pairs}
    gaps = [b - a for prompt, b in theirs.items() if b is not None and (a := mine.get(prompt)) is not None]
    if len(gaps) < _FEWEST:
        return "Too few held-out prompts were answered in both runs to compare their gold rewards."
    mean, half = statistics.fmean(gaps), 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps))
    far = "beyond chance" if abs(mean) > half else "within chance"
    return (
        f"On {number(len(gaps))} held-out prompts the gold reward with the fitted rater differs by {signed(mean, 3)} ± "
        f"{number(half, 3)} (95%) from this run's: {far}, by one seed of each."
    )
