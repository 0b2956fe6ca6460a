"""A judge as a reward: scores, or comparisons with a text of the data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.errors import RewardError
from rlhf_gym.judge.client import ChatClient, JudgeError, Usage
from rlhf_gym.judge.judge import Judge, unreadable
from rlhf_gym.rewards.base import ScoredBatch, TermReward


class JudgeReward(TermReward):
    """A chat model's opinion, from 0 (worst) to 1 (best).

    Its further terms are ``judge_tokens``, ``judge_cost`` and ``judge_cached`` (questions answered from the cache),
    and for comparisons ``judge_disagreed``: the share in which the two orders contradicted one another.

    Args:
        url: the service's address, e.g. ``http://localhost:8000/v1``.
        model: its model; None takes the only one that it serves.
        against: column with a text to compare each response with, in both orders: 1 better, 0.5 a tie, 0 worse. None asks
            for scores.
        rubric: see :class:`~rlhf_gym.judge.judge.Judge`.
        template: likewise.
        low: the worst score.
        high: the best one.
        name: name to report under.
        options: of :class:`~rlhf_gym.judge.client.ChatClient`: concurrency, timeout, retries, cache, price, parameters.

    Raises:
        ConfigError: a setting out of its range, or the ``openai`` package is missing.
    """

    slow = True  # it waits for another machine: overlapped scoring

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        against: str | None = None,
        rubric: str | os.PathLike[str] | None = None,
        template: str | os.PathLike[str] | None = None,
        low: int = 1,
        high: int = 10,
        name: str = "judge",
        **options: Any,
    ) -> None:
        self.name, self.against = name, against
        client = ChatClient(url, model, **options)
        self.judge = Judge(client, rubric=rubric, template=template, pairs=against is not None, low=low, high=high)

    @property
    def usage(self) -> Usage:
        """Counts of the questions so far."""
        return self.judge.client.usage

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Ask for an opinion of each sample.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: the service cannot be reached, a reply cannot be read, or the column is missing.
        """
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(prompts))]
        try:
            if self.against is None:
                opinions = self.judge.scores(prompts, responses, rows)
            else:
                if self.against not in columns:
                    there = ", ".join(columns) or "none"
                    raise RewardError(f"reward {self.name!r}: there is no column {self.against!r}; there are {there}")
                texts = [str(row[self.against]) for row in rows]
                opinions = self.judge.compare(list(zip(prompts, texts, responses, strict=True)), rows)
        except JudgeError as error:
            raise RewardError(f"reward {self.name!r}: {error}; nothing that was scored before is lost") from error
        values = np.empty(len(opinions))
        for index, opinion in enumerate(opinions):
            if opinion.value is None:
                raise RewardError(f"reward {self.name!r}: sample {index}: {unreadable(opinion)}")
            worst, best = (-1, 1) if self.against else (self.judge.low, self.judge.high)
            values[index] = (opinion.value - worst) / (best - worst)
        terms = {
            self.name: values,
            f"{self.name}_tokens": np.array([float(o.tokens) for o in opinions]),
            f"{self.name}_cost": np.array([o.cost for o in opinions]),
            f"{self.name}_cached": np.array([float(o.cached) for o in opinions]),
        }
        if self.against is not None:
            terms[f"{self.name}_disagreed"] = np.array([float(o.disagreed) for o in opinions])
        return ScoredBatch(values, terms)
