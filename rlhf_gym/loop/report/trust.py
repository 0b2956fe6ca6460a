"""What a win rate is worth: by whom else, with fluency as a condition, and what speaks against believing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_gym.loop.report.formatting import number, percent
from rlhf_gym.loop.report.run_data import RewardModelRound, RunData, finite

GOLD, FLUENT, JUDGE = "by gold", "by gold, if fluent", "by a second judge"


@dataclass(frozen=True)
class WinRate:
    """A win rate of the tuned model over the reference.

    Attributes:
        by: who says so.
        rate: 0 to 1.
        low: lower end of the 95% interval; None without one.
        high: upper end.
    """

    by: str
    rate: float
    low: float | None
    high: float | None

    @property
    def above_chance(self) -> bool:
        """True if the whole interval lies above 50%."""
        return self.low is not None and self.low > 0.5


def win_rates(run: RunData) -> list[WinRate]:
    """The win rates that the run's evaluation has: by gold, by gold among fluent responses, by the second judge."""
    given = {"win_rate": GOLD, "fluent_win_rate": FLUENT, "judge_win_rate": JUDGE}
    found = []
    for key, by in given.items():
        if (rate := run.evaluated(key)) is not None:
            found.append(WinRate(by, rate, run.evaluated(f"{key}_low"), run.evaluated(f"{key}_high")))
    return found


def accuracy_interval(reward_model: RewardModelRound | Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95% interval of a reward model's accuracy, from its standard error; None where that is not known."""
    accuracy, error = (finite(reward_model.get(key)) for key in ("accuracy", "standard_error"))
    return None if accuracy is None or error is None else (accuracy - 1.96 * error, accuracy + 1.96 * error)


def ceiling(run: RunData) -> str:
    """The accuracy on the run's noisy labels of a model that ranks as gold does, in words; empty where it is not known."""
    agree, error = run.evaluated("labels_agree"), run.evaluated("labels_agree_se")
    if agree is None:
        return ""
    spread = "" if error is None else f" ± {number(100 * error, 1)}"
    return f"{percent(agree)}{spread} points (1 SE): the accuracy of a reward model that ranks as gold does"


def doubts(run: RunData) -> list[str]:
    """Sentences about what speaks against the run's win rate; empty where nothing does."""
    return [*_of_reward_models(run), *_of_fluency(run), *_of_judges(run)]


def _of_reward_models(run: RunData) -> list[str]:
    found = []
    if run.setting("reward_model.shuffle_labels") is True:
        found.append("This run is a control: its reward model was fitted to shuffled labels, and knows nothing.")
    for reward_model in run.reward_models:
        interval = accuracy_interval(reward_model)
        if interval is not None and interval[0] <= 0.5:
            found.append(
                f"The reward model of round {reward_model.round} may be no better than a coin: its accuracy of "
                f"{percent(reward_model.get('accuracy'))} has a 95% interval from {percent(interval[0])} to "
                f"{percent(interval[1])}, on {number(reward_model.get('n_validation'))} held-out comparisons."
            )
    return found


def _of_fluency(run: RunData) -> list[str]:
    found = []
    rows = run.evaluation.get("fluency")
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, Mapping) or row.get("flagged") is not True:
            continue
        below, above = finite(row.get("below")) or 0.0, finite(row.get("above")) or 0.0
        name, side = row.get("name"), "low" if below > above else "high"
        before, after = (run.evaluated(f"{_KEYS.get(str(name), name)}_{when}") for when in ("before", "after"))
        found.append(
            f"{percent(max(below, above), 0)} of the tuned responses leave the reference's range of {name}: it is {side}er "
            f"than in 97.5% of the reference's responses (mean {number(before)} before, {number(after)} after)."
        )
    return found


_KEYS = {"distinct word pairs": "distinct_2"}


def _of_judges(run: RunData) -> list[str]:
    by = {rate.by: rate for rate in win_rates(run)}
    gold, fluent, judge = by.get(GOLD), by.get(FLUENT), by.get(JUDGE)
    found: list[str] = []
    if gold is None or not gold.above_chance:
        return found
    if fluent is not None and not fluent.above_chance:
        found.append(
            f"Where a response has to be fluent to win, the win rate is {percent(fluent.rate)}, no better than chance: "
            f"{percent(run.evaluated('fluent_after'))} of the tuned responses are, and "
            f"{percent(run.evaluated('fluent_before'))} of the reference's."
        )
    if judge is not None and not judge.above_chance:
        found.append(
            f"The second judge does not confirm the win rate by gold: {percent(judge.rate)}, with a 95% interval from "
            f"{percent(judge.low)} to {percent(judge.high)}."
        )
    return found
