"""The reward that a run's agent is given: the proxy is optimised, the gold reward and the task's metrics are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_gym.rewards.adaptive import frozen
from rlhf_gym.rewards.base import Reward, ScoredBatch, Scores, first_failures, reward_name, score


class ProxyAndGold:
    """The proxy as the reward, with further rewards that are reported but not optimised.

    Args:
        proxy: the reward that the agent is trained against.
        watched: the further rewards, by name. Their adaptive states stay fixed: only the proxy adapts to a rollout.

    Attributes:
        parts: the proxy and all watched rewards, in which a checkpoint finds the states of adaptive ones.
    """

    name = "proxy"

    def __init__(self, proxy: Reward, watched: Mapping[str, Reward]) -> None:
        self.proxy = proxy
        self.watched = dict(watched)
        self.parts = (proxy, *self.watched.values())

    def replace(self, proxy: Reward) -> None:
        """Replace the proxy."""
        self.proxy = proxy
        self.parts = (proxy, *self.parts[1:])

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> Any:
        """Score samples by the proxy alone."""
        return score(self, prompts, responses, columns).values

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score samples by the proxy; the terms are the proxy's own, and the scores of all watched rewards.

        A sample that lacks one of these scores is left out, so that all metrics are of the same samples.

        Args:
            prompts: ``n`` prompts.
            responses: ``n`` responses.
            columns: the task's columns by name, ``n`` values each.
        """
        scored = score(self.proxy, prompts, responses, columns, may_skip=True)
        terms, failures = {"proxy": scored.values}, scored.failures
        for name, reward in self.watched.items():
            if reward is self.proxy:
                terms[name] = scored.values
                continue
            with frozen(reward):
                watched = score(reward, prompts, responses, columns, may_skip=True)
            terms[name], failures = watched.values, first_failures(failures, watched.failures)
        return ScoredBatch(scored.values, self._parts_of_proxy(scored) | terms, failures, scored.tokens)

    def _parts_of_proxy(self, scored: ScoredBatch) -> dict[str, Scores]:
        """The terms of a proxy that combines rewards; none for a single reward, whose only term is itself."""
        own = reward_name(self.proxy)
        return {name: values for name, values in scored.terms.items() if name != own}
