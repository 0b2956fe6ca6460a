"""What to do when a reward fails: by default the run stops; here, for rewards that may, a stated score takes its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.base import Reward, ScoredBatch, reward_name, score


class FillOnError:
    """A reward that gives a fixed score to the samples that another one fails on, and counts them.

    A failing batch is asked again sample by sample, so that one bad sample does not cost the others their scores.

    Args:
        reward: the reward that may fail. It must not learn from what it scores: the samples of a failing batch come twice.
        fill: the score of a sample that it fails on; put it no higher than an honest bad score, or failing pays.
        most: after so many failures *in a row* the last error is raised after all: a dead service is no score.
        on_failure: called with the error each time, to log it.

    Attributes:
        failures: samples filled so far.
    """

    def __init__(
        self,
        reward: Reward | Callable[..., Any],
        *,
        fill: float,
        most: int = 100,
        on_failure: Callable[[RewardError], None] | None = None,
    ) -> None:
        if not math.isfinite(fill) or most < 1:
            raise ConfigError(f"fill must be finite and most at least 1, got {fill} and {most}")
        self.reward, self.fill, self.most, self.on_failure = reward, float(fill), most, on_failure
        self.name = reward_name(reward)
        self.failures = 0
        self._in_a_row = 0

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch; the term ``NAME_failed`` is 1 at filled samples.

        Raises:
            RewardError: the reward failed on ``most`` samples in a row.
        """
        try:
            scored = score(self.reward, prompts, responses, columns)
            failed = np.zeros(len(prompts))
            self._in_a_row = 0
        except RewardError:
            scored, failed = self._one_by_one(prompts, responses, columns)
        return ScoredBatch(scored.values, {**scored.terms, self.name: scored.values, f"{self.name}_failed": failed})

    def _one_by_one(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> tuple[ScoredBatch, Any]:
        values, failed = np.full(len(prompts), self.fill), np.zeros(len(prompts))
        terms: dict[str, Any] = {}
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            try:
                one = score(self.reward, [prompt], [response], {name: [column[i]] for name, column in columns.items()})
            except RewardError as error:
                failed[i] = 1
                self.failures += 1
                self._in_a_row += 1
                if self.on_failure:
                    self.on_failure(error)
                if self._in_a_row >= self.most:
                    raise RewardError(
                        f"reward {self.name!r} failed on {self._in_a_row} samples in a row, so filling in {self.fill:g} "
                        f"stops here; the last error: {error}"
                    ) from error
                continue
            self._in_a_row = 0
            values[i] = one.values[0]
            for name, term in one.terms.items():
                terms.setdefault(name, np.full(len(prompts), self.fill))[i] = term[0]
        return ScoredBatch(values, terms), failed

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        """Score a batch."""
        values: list[float] = self.score_terms(list(prompts), list(responses), columns).values.tolist()
        return values
