"""A cache of scores, for rewards that are slow and pure."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.adaptive import stateful_parts
from rlhf_gym.rewards.base import AnyReward, Failure, ScoredBatch, TermReward, as_term, reward_name

Known = tuple[float, dict[str, float]]
"""A sample's score, and those of the terms by name."""


class CachedReward(TermReward):
    """A reward whose scores are cached by (prompt, response, columns).

    Only for pure rewards: the same sample must always get the same score. Failures are not cached. Safe to call from
    several threads.

    Args:
        reward: the pure reward.
        size: most samples in the cache, at least 1; the least recently used are dropped.

    Raises:
        ConfigError: a size below 1, or a reward that changes while it scores.

    Attributes:
        hits: number of samples found in the cache.
        misses: number of samples that the reward scored.
    """

    def __init__(self, reward: AnyReward, *, size: int = 100_000) -> None:
        if size < 1:
            raise ConfigError(f"the cache's size must be at least 1, got {size}")
        if changing := [reward_name(part) for part in stateful_parts(reward)]:
            raise ConfigError(
                f"a cache is for rewards that always give a sample the same score, and {changing[0]!r} changes while it "
                "scores; put the cache around its parts"
            )
        self.reward, self.size, self.name = as_term(reward), size, reward_name(reward)
        self.hits = self.misses = 0
        self._may_skip = False  # known with the first batch, which the reward always scores
        self._known: OrderedDict[tuple[str, ...], Known] = OrderedDict()
        self._lock = threading.Lock()

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch: the reward scores the samples that are not in the cache, each once.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: further columns of the data set, ``n`` values each.

        Raises:
            RewardError: the reward failed.
        """
        # Columns enter the key by their repr: they may be lists or mappings, which have no hash.
        names = sorted(columns)
        keys = [
            (p, r, *(repr(columns[c][i]) for c in names))
            for i, (p, r) in enumerate(zip(prompts, responses, strict=True))
        ]
        with self._lock:
            found = {key: self._known[key] for key in keys if key in self._known}
        failed: dict[tuple[str, ...], Failure] = {}
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        rows = sorted(new.values())
        if rows:
            scored = self.reward.score_terms(
                [prompts[i] for i in rows],
                [responses[i] for i in rows],
                {c: [columns[c][i] for i in rows] for c in names},
            )
            failures = scored.failures
            self._may_skip |= failures is not None
            for place, i in enumerate(rows):
                terms = {name: float(values[place]) for name, values in scored.terms.items()}
                found[keys[i]] = (float(scored.values[place]), terms)
                if failures and (failure := failures[place]):
                    failed[keys[i]] = failure
        with self._lock:
            self.hits += len(keys) - len(rows)
            self.misses += len(rows)
            for key in keys:
                if key not in failed:
                    self._known[key] = found[key]
                    self._known.move_to_end(key)
            while len(self._known) > self.size:
                self._known.popitem(last=False)
        terms_of = [found[key][1] for key in keys]
        every = dict.fromkeys(name for terms in terms_of for name in terms)
        return ScoredBatch(
            np.array([found[key][0] for key in keys]),
            # A failed sample may lack terms that others have.
            {name: np.array([terms.get(name, 0.0) for terms in terms_of]) for name in every},
            tuple(failed.get(key) for key in keys) if self._may_skip else None,
        )
