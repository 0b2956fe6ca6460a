"""Policies for a reward that fails: the run goes on with a fixed score, or without the sample, instead of stopping."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.adaptive import restore_reward, reward_state
from rlhf_gym.rewards.base import AnyReward, Failure, ScoredBatch, Scores, TermReward, as_term, reward_name, score


class OnError(TermReward):
    """A reward that goes on where another one fails, and counts the failures; subclasses say what a failed sample gets.

    A failing batch is scored again sample by sample, so that one bad sample does not cost the others their scores. The first
    failure gives a warning with the error; the others are counted.

    Args:
        reward: the reward that may fail. Adaptive rewards in it learn once from each sample that has a score.
        most: number of failures *in a row*, at least 1, after which the last error is raised: the reward is dead then.
        on_failure: called with each error, to log it.

    Attributes:
        failures: number of samples that the reward failed on so far.
        placeholder: what stands in the arrays for a failed sample.
        policy: what is done with a failed sample, for messages.

    Raises:
        ConfigError: ``most`` below 1.
    """

    placeholder: float = 0.0
    policy: str = ""

    def __init__(
        self,
        reward: AnyReward,
        *,
        most: int = 100,
        on_failure: Callable[[RewardError], None] | None = None,
    ) -> None:
        if most < 1:
            raise ConfigError(f"most must be at least 1, got {most}")
        self.reward, self.most, self.on_failure = as_term(reward), most, on_failure
        self.name = reward_name(reward)
        self.failures = 0
        self._in_a_row = 0
        self._warned = False

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch; where that fails, sample by sample.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: the reward failed on ``most`` samples in a row.
        """
        errors: list[RewardError | None] = [None] * len(prompts)
        before = reward_state(self.reward)
        try:
            scored = score(self.reward, prompts, responses, columns)
            values, terms = scored.values, scored.terms
            self._in_a_row = 0
        except RewardError:
            restore_reward(self.reward, before)
            values, terms = self._one_by_one(prompts, responses, columns, errors)
        return self.batch(values, {**terms, self.name: values}, errors)

    @abstractmethod
    def batch(self, values: Scores, terms: dict[str, Scores], errors: list[RewardError | None]) -> ScoredBatch:
        """Make the result of a batch.

        Args:
            values: float64 ``[n]``, the placeholder where the reward failed.
            terms: each term's scores by name, float64 ``[n]``, likewise.
            errors: ``n`` errors, None where it did not fail.
        """

    def _one_by_one(
        self,
        prompts: list[str],
        responses: list[str],
        columns: Mapping[str, Sequence[Any]],
        errors: list[RewardError | None],
    ) -> tuple[Scores, dict[str, Scores]]:
        values = np.full(len(prompts), self.placeholder)
        terms: dict[str, Scores] = {}
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            before = reward_state(self.reward)
            try:
                one = score(self.reward, [prompt], [response], {name: [column[i]] for name, column in columns.items()})
            except RewardError as error:
                restore_reward(self.reward, before)
                errors[i] = error
                self._note(error)
                continue
            self._in_a_row = 0
            values[i] = one.values[0]
            for name, term in one.terms.items():
                terms.setdefault(name, np.full(len(prompts), self.placeholder))[i] = term[0]
        return values, terms

    def _note(self, error: RewardError) -> None:
        """Count a failure and warn of the first; raise after too many in a row."""
        self.failures += 1
        self._in_a_row += 1
        if self.on_failure:
            self.on_failure(error)
        if self._in_a_row >= self.most:
            raise RewardError(
                f"reward {self.name!r} failed on {self._in_a_row} samples in a row, so {self.policy} stops here; the last "
                f"error: {error}"
            ) from error
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"reward {self.name!r} has failed: {self.policy} from now on (one warning; all failures are counted): {error}",
                stacklevel=6,
            )


class FillOnError(OnError):
    """A fixed score for the samples that a reward fails on; the term ``NAME_failed`` is 1 there.

    Args:
        reward: see :class:`OnError`.
        fill: the score of a sample that it fails on; choose it no higher than that of an honest bad response, or failing pays.
        most: see :class:`OnError`.
        on_failure: see :class:`OnError`.

    Raises:
        ConfigError: ``fill`` is not finite, or ``most`` below 1.
    """

    def __init__(
        self,
        reward: AnyReward,
        *,
        fill: float,
        most: int = 100,
        on_failure: Callable[[RewardError], None] | None = None,
    ) -> None:
        if not math.isfinite(fill):
            raise ConfigError(f"fill must be finite, got {fill}")
        super().__init__(reward, most=most, on_failure=on_failure)
        self.fill = self.placeholder = float(fill)
        self.policy = f"filling in {self.fill:g}"

    def batch(self, values: Scores, terms: dict[str, Scores], errors: list[RewardError | None]) -> ScoredBatch:
        """Add the term ``NAME_failed``.

        Args:
            values: float64 ``[n]``, the placeholder where the reward failed.
            terms: each term's scores by name, float64 ``[n]``, likewise.
            errors: ``n`` errors, None where the reward did not fail.
        """
        failed = np.array([error is not None for error in errors], dtype=np.float64)
        return ScoredBatch(values, {**terms, f"{self.name}_failed": failed})


class SkipOnError(OnError):
    """No score for the samples that a reward fails on: their episodes are left out of learning and of all metrics.

    In a combination the whole sample is left out. Adaptive combinations around it learn nothing from it. Environments report it
    in ``info["reward_skipped"]``, the name of the reward that failed (or ``""``), and agents count it as ``reward/skipped``;
    where samples cannot be left out, the error is raised.

    Args:
        reward: see :class:`OnError`.
        most: see :class:`OnError`.
        on_failure: see :class:`OnError`.

    Raises:
        ConfigError: ``most`` below 1.
    """

    policy = "leaving such samples out"

    def batch(self, values: Scores, terms: dict[str, Scores], errors: list[RewardError | None]) -> ScoredBatch:
        """Add the failures.

        Args:
            values: float64 ``[n]``, the placeholder where the reward failed.
            terms: each term's scores by name, float64 ``[n]``, likewise.
            errors: ``n`` errors, None where the reward did not fail.
        """
        failures = tuple(None if error is None else Failure(self.name, str(error)) for error in errors)
        return ScoredBatch(values, terms, failures)


def on_error(reward: AnyReward, policy: str | Mapping[str, Any]) -> AnyReward:
    """Put a reward under a policy, given as in YAML.

    Args:
        reward: the reward that may fail.
        policy: ``"raise"`` (returns the reward as it is), ``"skip"``, or a mapping: ``{"fill": number}`` or
            ``{"skip": True}``, each with ``most`` if wanted.

    Raises:
        ConfigError: the policy is none of these.
    """
    if policy == "raise":
        return reward
    settings: Any = {"skip": True} if policy == "skip" else policy
    known = isinstance(settings, Mapping) and set(settings) <= {"fill", "skip", "most"}
    if not isinstance(settings, Mapping) or not known or (settings.get("skip") is True) == ("fill" in settings):
        raise ConfigError(
            f"on_error must be raise, skip, {{fill: number}} or {{skip: true, most: 100}}, got {policy!r}"
        )
    options: dict[str, Any] = {key: value for key, value in settings.items() if key != "skip"}
    return FillOnError(reward, **options) if "fill" in options else SkipOnError(reward, **options)
