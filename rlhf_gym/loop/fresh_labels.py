"""A few fresh labels while a policy is trained: the proxy's verdict against the rater's, on responses that it never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from rlhf_gym.feedback import FeedbackStore, Query
from rlhf_gym.lm.decoding import generate
from rlhf_gym.loop.context import RunContext
from rlhf_gym.loop.label import reference_rewards
from rlhf_gym.loop.rater_catalogue import find_rater
from rlhf_gym.loop.train_reward import ProxyAndGold
from rlhf_gym.raters import ask
from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import score
from rlhf_gym.tasks.samples import Prompt, columns_of

FRESH_FILE = "fresh_labels.sqlite"
ONE_SIDED = 1.645
"""Standard errors between a mean and the lower end of its one-sided 95% interval."""


class FreshLabels:
    """Asks the run's rater which of two responses is better, the policy's or the reference's, and compares the proxy's answer.

    The labels measure and are not learned from: they go into a store of their own, ``round-N/fresh_labels.sqlite``, from which
    a run that goes on takes those that it has.

    Args:
        context: the run.
        number: the round, from 1.
        reward: holds the proxy.
    """

    def __init__(self, context: RunContext, number: int, reward: ProxyAndGold) -> None:
        self._context, self._round, self._reward = context, number, reward
        self._file = context.run.round(number) / FRESH_FILE
        self._prompts = list(context.validation[: context.config.evaluation.fresh_labels])
        settings = replace(context.config.rater, query_type="pair")
        self._rater = find_rater(
            settings, context.gold, partial(reference_rewards, context), context.seed(number, "evaluate")
        )
        self._before: list[str] | None = None

    def __call__(self, responses: Sequence[str]) -> dict[str, float]:
        """The gap between proxy and rater on the first validation prompts.

        Args:
            responses: of the policy, to the validation prompts in order.

        Returns:
            ``label_gap``: the policy's win rate over the reference by the proxy minus that by the rater; ties count half.
            ``label_gap_low``: the lower end of its one-sided 95% interval, for stops that chance does not trigger.
            ``label_win_rate``: by the rater. ``labels``: answers, without skips. Empty where all are skipped.

        Raises:
            FeedbackError: the rater cannot go on.
        """
        context = self._context
        if self._before is None:
            ids = [context.prompt_ids(p) for p in self._prompts]
            found = generate(
                context.reference, ids, context.limits, sampling=context.sampling, stop=context.task.stop,
                seed=context.seed(0, "evaluate"), batch_size=context.config.sampling.batch_size,
            )  # fmt: skip
            self._before = [generation.text for generation in found]
        queries = [
            Query(
                prompt=p.text,
                responses=(before, after),
                query_type="pair",
                columns=p.columns,
                round=self._round,
                index=i,
            )
            for i, (p, before, after) in enumerate(zip(self._prompts, self._before, responses, strict=False))
        ]
        wanted = {query.id for query in queries}
        with frozen(context.gold), FeedbackStore(self._file) as store:
            ask(self._rater, queries, store)
            said = [judgement for query, judgement in store.answers() if query.id in wanted]
        by_rater: dict[str, list[float]] = {}
        for judgement in said:
            if not judgement.skipped:
                won = 0.5 if judgement.choice is None else float(judgement.choice)
                by_rater.setdefault(judgement.query_id, []).append(won)
        kept = [i for i, query in enumerate(queries) if query.id in by_rater]
        if not kept:
            return {}
        rater = np.array([np.mean(by_rater[queries[i].id]) for i in kept])
        prompts = [self._prompts[i] for i in kept]
        proxy = self._wins(prompts, [self._before[i] for i in kept], [responses[i] for i in kept])
        gap = proxy - rater
        gap, rater = gap[np.isfinite(gap)], rater[np.isfinite(gap)]
        if not len(gap):
            return {}
        error = float(gap.std(ddof=1)) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
        return {
            "label_gap": float(gap.mean()), "label_gap_low": max(float(gap.mean()) - ONE_SIDED * error, -1.0),
            "label_win_rate": float(rater.mean()), "labels": float(len(gap)),
        }  # fmt: skip

    def _wins(self, prompts: Sequence[Prompt], before: list[str], after: list[str]) -> np.ndarray:
        """1 where the proxy prefers the policy's response, 1/2 for equal scores; NaN where it left one out."""
        proxy, texts, columns = self._reward.proxy, [p.text for p in prompts], columns_of(prompts)
        with frozen(proxy):
            first, second = (score(proxy, texts, responses, columns, may_skip=True) for responses in (before, after))
        wins = 0.5 * (1 + np.sign(second.values - first.values))
        return np.where(first.kept & second.kept, wins, np.nan)
