"""A model's responses to prompts with their rewards, and the comparison of two models' by rewards or by a rater."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.agents.online_dpo import preferred
from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.feedback.queries import Query
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.loop.config import RaterConfig
from rlhf_gym.loop.given_data import Unscored
from rlhf_gym.loop.rater_catalogue import find_rater
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, score
from rlhf_gym.tasks.samples import Prompt, columns_of


@dataclass(frozen=True)
class ScoredAnswers:
    """A model's responses to some prompts.

    Attributes:
        responses: ``n`` to each prompt.
        rewards: float64 ``[prompts, n]``, NaN where the reward failed and is set to skip failures; None without a reward.
    """

    responses: Sequence[Sequence[Generation]]
    rewards: NDArray[np.float64] | None


def scored(gold: Reward | None, prompts: Sequence[Prompt], responses: Sequence[Sequence[Generation]]) -> ScoredAnswers:
    """Have responses scored.

    Args:
        gold: the reward; None gives none.
        prompts: the prompts.
        responses: as many to each prompt.
    """
    if gold is None:
        return ScoredAnswers(responses, None)
    repeated = [p for p, row in zip(prompts, responses, strict=True) for _ in row]
    with frozen(gold):
        found = score(
            gold,
            [p.text for p in repeated],
            [g.text for row in responses for g in row],
            columns_of(repeated),
            may_skip=True,
        )
    return ScoredAnswers(responses, np.where(found.kept, found.values, np.nan).reshape(len(prompts), -1))


@dataclass(frozen=True)
class Comparison:
    """The answers of a model, and those of another one where there is one.

    Attributes:
        prompts: the prompts.
        ours: the model's answers.
        theirs: the other one's; None compares with nothing.
        gold: what the rewards are of.
        rater: who compares the two; None compares rewards.
    """

    prompts: Sequence[Prompt]
    ours: ScoredAnswers
    theirs: ScoredAnswers | None
    gold: Reward | None
    rater: RaterConfig | None

    @property
    def _tables(self) -> list[NDArray[np.float64]]:
        return [a.rewards for a in (self.ours, self.theirs) if a is not None and a.rewards is not None]

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """The prompts on whose every response the reward has not failed, bool ``[prompts]``.

        Raises:
            RewardError: there is none.
        """
        kept = np.ones(len(self.prompts), dtype=bool)
        for table in self._tables:
            kept &= np.isfinite(table).all(axis=1)
        if not kept.any():
            raise RewardError(f"the reward failed on every one of the {len(self.prompts)} prompts")
        return kept

    def wins(self, seed: int) -> NDArray[np.float64] | None:
        """1 for ours, -1 for theirs, 0 for ties: float64 ``[kept prompts, n]``; None where nothing can be compared.

        Args:
            seed: of a simulated rater, and of which of the two is shown first.

        Raises:
            ConfigError: the rater is fitted to rewards, and there is none.
        """
        ours, theirs = self.ours, self.theirs
        if theirs is None:
            return None
        if self.rater is not None:
            gold = Unscored() if self.gold is None else self.gold
            rater = find_rater(self.rater, gold, lambda _: self._reference_rewards()[self.kept], seed)
            return _judged(rater, self.prompts, ours.responses, theirs.responses, seed)[self.kept]
        if ours.rewards is None or theirs.rewards is None:
            return None
        wins: NDArray[np.float64] = np.sign(ours.rewards - theirs.rewards)[self.kept]
        return wins

    def _reference_rewards(self) -> NDArray[np.float64]:
        if not self._tables:
            raise ConfigError(
                "a preset of the simulated rater is fitted to rewards, and the task has none: give --reward"
            )
        return np.concatenate(self._tables, axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """The responses and their rewards, prompt by prompt, as JSON values."""
        rows: list[dict[str, Any]] = []
        for i, prompt in enumerate(self.prompts):
            row: dict[str, Any] = {"prompt": prompt.text}
            for prefix, answers in (("", self.ours), ("against_", self.theirs)):
                if answers is not None:
                    row[f"{prefix}responses"] = [g.text for g in answers.responses[i]]
                    if answers.rewards is not None:
                        row[f"{prefix}rewards"] = answers.rewards[i].tolist()
            rows.append(row)
        return rows


def _judged(
    rater: Any, prompts: Sequence[Prompt], ours: Sequence[Sequence[Generation]], theirs: Sequence[Sequence[Generation]],
    seed: int,
) -> NDArray[np.float64]:  # fmt: skip
    """A rater's preferences ``[prompts, n]``: 1 for ours, -1 for theirs, 0 for ties, skips and equal texts.

    Which of the two is shown first is drawn anew for each pair, so that a preference for a position favours neither.
    """
    swapped = np.random.default_rng(seed).integers(0, 2, size=(len(prompts), len(ours[0]))).astype(bool)
    queries: dict[tuple[int, int], Query] = {}
    for i, (prompt, mine, other) in enumerate(zip(prompts, ours, theirs, strict=True)):
        for j, (a, b) in enumerate(zip(mine, other, strict=True)):
            if a.text != b.text:
                pair = (b.text, a.text) if swapped[i, j] else (a.text, b.text)
                queries[i, j] = Query(
                    prompt=prompt.text, responses=pair, columns=prompt.columns, index=i * len(mine) + j
                )
    wins = np.zeros(swapped.shape)
    for place, sign in zip(queries, preferred(list(queries.values()), rater).tolist(), strict=True):
        wins[place] = -sign if swapped[place] else sign
    return wins
