"""A run's evaluation: the answers of the reference and of the tuned model compared, responses and conversations alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlhf_gym.errors import RewardError
from rlhf_gym.lm.response_kl import ResponseKL
from rlhf_gym.loop.best_of_reference import BestOfN
from rlhf_gym.loop.fluency import Fluency, fluency, fluent_wins, repetition
from rlhf_gym.loop.intervals import standard_error, wilson_interval
from rlhf_gym.rewards.base import Scores
from rlhf_gym.text import distinct_2


@dataclass(frozen=True)
class MeasuredAnswers:
    """One model's answers, one to each prompt.

    Attributes:
        shown: the answers as a report shows them; of a conversation all further turns.
        said: the model's own words.
        nats: of each of the model's own tokens, under the reference at temperature 1.
        ended: True where the model ended its answer before the length limit; in a conversation, every turn.
        means: further values, one for each answer, whose means are reported.
    """

    shown: Sequence[str]
    said: Sequence[str]
    nats: Sequence[Sequence[float]]
    ended: Sequence[bool]
    means: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def perplexities(self) -> Scores:
        """Perplexity per token of each answer."""
        return np.array([math.exp(sum(one) / len(one)) for one in self.nats])

    def metrics(self, when: str) -> dict[str, Any]:
        """What is measured of the answers by themselves, by name."""
        return {
            f"perplexity_{when}": math.exp(sum(map(sum, self.nats)) / sum(map(len, self.nats))),
            f"distinct_2_{when}": distinct_2(self.said), f"repetition_{when}": np.mean(repetition(self.said)),
            f"length_{when}": np.mean([len(one) for one in self.nats]), f"ended_{when}": np.mean(self.ended),
            **{f"{name}_{when}": np.mean(values) for name, values in self.means.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class BeforeAfter:
    """The answers of two models, and what they are measured by.

    Attributes:
        prompts: as texts.
        before: the reference's answers.
        after: the tuned model's.
        scored: scores by name; see :func:`compared`.
        kls: of the tuned model's answers.
        best_of_n: the reference's best of n answers.
    """

    prompts: Sequence[str]
    before: MeasuredAnswers
    after: MeasuredAnswers
    scored: Mapping[str, Scores]
    kls: Sequence[ResponseKL]
    best_of_n: Sequence[BestOfN] = ()

    def as_json(self) -> dict[str, Any]:
        """Metrics, ranges of fluency, best-of-n and all pairs, as plain values for JSON.

        Raises:
            RewardError: rewards failed on every prompt.
        """
        before, after = self.before, self.after
        perplexities = before.perplexities, after.perplexities
        found = fluency(*perplexities, before.said, after.said)
        k1, exact = np.array([kl.k1 for kl in self.kls]), np.array([kl.exact for kl in self.kls])
        metrics = {
            **compared(self.scored, found), "kl": k1.mean(), "kl_se": standard_error(k1), "kl_exact": exact.mean(),
            "kl_exact_se": standard_error(exact), **before.metrics("before"), **after.metrics("after"),
        }  # fmt: skip
        pairs = [
            {
                "prompt": prompt, "before": before.shown[i], "after": after.shown[i],
                **{name: float(values[i]) if np.isfinite(values[i]) else None for name, values in self.scored.items()},
                "perplexity_before": float(perplexities[0][i]), "perplexity_after": float(perplexities[1][i]),
                "fluent_before": bool(found.before[i]), "fluent_after": bool(found.after[i]),
            }
            for i, prompt in enumerate(self.prompts)
        ]  # fmt: skip
        return {
            **{k: v if isinstance(v, int) else float(v) for k, v in metrics.items()},
            "fluency": [measure.as_json() for measure in found.measures],
            "best_of_n": [point.as_json() for point in self.best_of_n],
            "pairs": pairs,
        }


def compared(scored: Mapping[str, Scores], found: Fluency) -> dict[str, Any]:
    """Win rates and mean scores of "after" against "before".

    Args:
        scored: scores by name (``gold``, ``proxy``, ``judge``, each ``_before`` and ``_after``), ``[n]`` each, NaN where a
            reward failed; without a reward there is none of its name.
        found: the fluency of the same ``n`` pairs.

    Raises:
        RewardError: rewards failed on every prompt.
    """
    n_prompts = len(found.before)
    kept = np.isfinite(list(scored.values())).all(axis=0) if scored else np.ones(n_prompts, bool)
    if not kept.any():
        raise RewardError(f"rewards failed on every one of the {n_prompts} prompts of the evaluation")
    n, values = int(kept.sum()), {name: given[kept] for name, given in scored.items()}
    fluent = replace(found, before=found.before[kept], after=found.after[kept])
    out: dict[str, Any] = {
        "n": n, "skipped": n_prompts - n, "fluent_before": fluent.before.mean(), "fluent_after": fluent.after.mean(),
        **{name: given.mean() for name, given in values.items()},
    }  # fmt: skip
    if "gold_after" in values:
        gain = values["gold_after"] - values["gold_before"]
        better, equal = gain > 0, gain == 0
        wins, ties = int(better.sum()), int(equal.sum())
        out |= {
            "wins": wins, "ties": ties, **_win_rate("win_rate", wins + ties / 2, n),
            **_win_rate("fluent_win_rate", fluent_wins(better, equal, fluent), n), "gold_difference_se": standard_error(gain),
        }  # fmt: skip
    if "judge_after" in values:
        gain = values["judge_after"] - values["judge_before"]
        out |= _win_rate("judge_win_rate", float((gain > 0).sum() + (gain == 0).sum() / 2), n)
    return out


def _win_rate(name: str, wins: float, n: int) -> dict[str, float]:
    low, high = wilson_interval(wins, n)
    return {name: wins / n, f"{name}_low": low, f"{name}_high": high}
