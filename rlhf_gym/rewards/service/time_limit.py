"""A reward that may hang, with a time limit: training ends with a message instead of standing still for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from rlhf_gym.errors import ConfigError, RewardError
from rlhf_gym.rewards.base import Reward, ScoredBatch, reward_name, score
from rlhf_gym.rewards.calling import Pairs, under_way
from rlhf_gym.rewards.combine import Renamed
from rlhf_gym.text import shorten


class TimeLimit:
    """A reward whose calls are given up after some seconds.

    Python cannot end a thread from outside: a call that is given up goes on by itself until it returns or the process ends,
    and its result is thrown away.

    Args:
        reward: the reward.
        seconds: most seconds a call, above 0.

    Raises:
        ConfigError: a limit that is not above 0.
    """

    def __init__(self, reward: Reward | Callable[..., Any], seconds: float) -> None:
        if not seconds > 0:
            raise ConfigError(f"a time limit must be above 0 seconds, got {seconds}")
        self.parts, self.seconds, self.name = (reward,), seconds, reward_name(reward)

    def score_terms(
        self, prompts: list[str], responses: list[str], columns: Mapping[str, Sequence[Any]]
    ) -> ScoredBatch:
        """Score a batch.

        Raises:
            RewardError: the reward failed, or did not return in time.
        """
        outcome: list[ScoredBatch | BaseException] = []
        pairs: Pairs = {}

        def run() -> None:
            under_way.set(pairs)
            try:
                outcome.append(score(self.parts[0], prompts, responses, columns, name=self.name, may_skip=True))
            except BaseException as error:
                outcome.append(error)

        # A daemon: the process must be able to end while the reward hangs.
        thread = threading.Thread(target=partial(copy_context().run, run), name="rlhf-gym-time-limit", daemon=True)
        thread.start()
        thread.join(self.seconds)
        if not outcome:
            raise RewardError(
                f"reward {self.name!r} did not return within {self.seconds:g} seconds for "
                f"{_where(prompts, responses, pairs)}; mend it, or give it a longer time limit"
            )
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def __call__(self, prompts: list[str], responses: list[str], /, **columns: Any) -> list[float]:
        """Score a batch."""
        values: list[float] = score(self, prompts, responses, columns).values.tolist()
        return values


def _where(prompts: list[str], responses: list[str], pairs: Pairs) -> str:
    """What a reward hangs on: the sample, for one that takes a pair at a time, else its batch."""
    found = next(iter(list(pairs.values())), None)
    for i, pair in enumerate(zip(prompts, responses, strict=True)):
        if pair == found:  # looked up by its texts: a cache in between asks about fewer samples
            return f"sample {i}, prompt {shorten(pair[0])}, response {shorten(pair[1])}"
    return f"a batch of {len(prompts)}, the first response being {shorten(responses[0])}"


def limit_parts(reward: Any, seconds: float) -> Any:
    """Give every plain reward that a reward is made of a time limit of its own, so that the message names the one that hangs.

    Args:
        reward: what :func:`~rlhf_gym.rewards.load_reward` made; changed in place where it is a combination.
        seconds: most seconds a call, above 0.

    Returns:
        The reward, or, where it is a plain one, a :class:`TimeLimit` around it.
    """
    parts, inner = getattr(reward, "parts", None), getattr(reward, "reward", None)
    plain = isinstance(reward, Renamed) and not hasattr(
        reward.parts[0], "score_terms"
    )  # the name is to be in the message
    if hasattr(reward, "score_terms") and isinstance(parts, tuple) and not plain:
        reward.parts = tuple(limit_parts(part, seconds) for part in parts)
    elif hasattr(reward, "score_terms") and callable(inner):
        reward.reward = limit_parts(inner, seconds)
    else:
        return TimeLimit(reward, seconds)
    return reward
