"""Curricula: prompts drawn by weights that follow from how the policy has done on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.prompts import EpochDraws, PromptDraws
from rlhf_gym.envs.token_rows import Slots
from rlhf_gym.envs.token_rules import WEIGHTED, PromptOrder
from rlhf_gym.errors import ConfigError

STALE = 0.1
"""The share of draws that go by age alone, so that no prompt is forgotten."""
KEPT = 0.5
"""The weight of what was known of a prompt when it is answered again."""
_PARTS = ("success", "advantage", "drawn_at")


class WeightedDraws(PromptDraws):
    """Draws by weights, in the form of prioritised level replay: ``P = (1 - rho) P_weight + rho P_age`` (Jiang et al. 2021).

    ``rho`` is :data:`STALE`, and ``P_age`` is in proportion to the iterations since a prompt was answered. The weight of a
    prompt is, by ``order``:

    - ``success_rate``: ``p (1 - p)`` for a success rate ``p``, highest where half of the responses succeed (Tzannetos et al.
      2023; Foster and Foerster 2025). A prompt that was not answered yet counts as ``p = 1/2``.
    - ``advantage``: the mean size of its tokens' advantages. A prompt that was not answered yet counts as the highest one.
    - ``age``: ``P = P_age``.

    ``p`` and advantages are moving averages over the iterations that answered the prompt. Slots with the same seed draw the
    same prompts. A slot draws one number for each of its prompts; where an episode has its prompt already and has not begun
    when outcomes are noted, that number chooses anew.

    Args:
        order: one of :data:`~rlhf_gym.envs.token_rules.WEIGHTED`.
        num_slots: ``N``.
        num_prompts: ``P``.
    """

    def __init__(self, order: str, num_slots: int, num_prompts: int) -> None:
        super().__init__(num_slots, num_prompts)
        self.order, self.iterations = order, 0
        self.success = np.full(num_prompts, np.nan)
        self.advantage = np.full(num_prompts, np.nan)
        self.drawn_at = np.zeros(num_prompts, dtype=np.int64)
        self._upto = np.cumsum(self.probabilities)
        self._last = np.full(num_slots, np.nan)  # the number that each slot has drawn last

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """float64 ``[P]``, of each prompt at the next draw."""
        age = _shares((self.iterations - self.drawn_at).astype(np.float64))
        if self.order == "age":
            return age
        if self.order == "success_rate":
            rate = np.where(np.isnan(self.success), 0.5, self.success)
            weight = rate * (1 - rate)
        else:
            unknown = np.isnan(self.advantage)
            highest = float(np.max(self.advantage, where=~unknown, initial=0.0)) or 1.0
            weight = np.where(unknown, highest, self.advantage)
        return (1 - STALE) * _shares(weight) + STALE * age

    def note(self, prompts: Sequence[int], scores: Sequence[float], advantages: Sequence[float]) -> None:
        """Take in an iteration's responses; the next draws are by the new weights.

        Args:
            prompts: the number of each response's prompt.
            scores: of each response.
            advantages: the mean size of each response's advantages.

        Raises:
            ConfigError: prompts are to be drawn by success rate, and a score lies outside 0 to 1.
        """
        number, score, size = np.asarray(prompts, dtype=np.int64), np.asarray(scores), np.asarray(advantages)
        if self.order == "success_rate" and len(score) and not (score.min() >= 0 and score.max() <= 1):
            raise ConfigError(
                f"prompt_order='success_rate' takes scores from 0 (failed) to 1 (solved), got {score.min():g} to "
                f"{score.max():g}: give such a reward, or prompt_order='advantage'"
            )
        self.iterations += 1
        answers = np.bincount(number, minlength=self.num_prompts)
        chosen = answers > 0
        for known, values in ((self.success, score), (self.advantage, size)):
            now = np.bincount(number, weights=values, minlength=self.num_prompts)[chosen] / answers[chosen]
            before = np.where(np.isnan(known[chosen]), now, known[chosen])
            known[chosen] = KEPT * before + (1 - KEPT) * now
        self.drawn_at[chosen] = self.iterations
        self._upto = np.cumsum(self.probabilities)

    def take(self, slots: Slots) -> NDArray[np.int64]:
        """int64 ``[n]``: the number of the next prompt of each of these slots; no slot may be named twice."""
        self._last[slots] = [self._generators[slot].random() for slot in slots.tolist()]
        return self._at(self._last[slots])

    @property
    def has_drawn(self) -> NDArray[np.bool_]:
        """bool ``[N]``, True for the slots that have drawn a prompt since the environment was made."""
        drawn: NDArray[np.bool_] = ~np.isnan(self._last)
        return drawn

    def last_by_new_weights(self, slots: Slots) -> NDArray[np.int64]:
        """int64 ``[n]``: the prompts that the last numbers drawn for these slots choose now; all of them have drawn one."""
        return self._at(self._last[slots])

    def _at(self, drawn: NDArray[np.float64]) -> NDArray[np.int64]:
        """int64 ``[n]``: the prompts that numbers in 0..1 choose, float64 ``[n]``."""
        found = np.searchsorted(self._upto, drawn * self._upto[-1], side="right")
        numbers: NDArray[np.int64] = np.minimum(found, self.num_prompts - 1).astype(np.int64)
        return numbers

    def memory(self) -> dict[str, Any]:
        """What is known of the prompts, as JSON values."""
        known = {name: [None if np.isnan(v) else v for v in getattr(self, name).tolist()] for name in _PARTS}
        return {"iterations": self.iterations, **known}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Restore :meth:`memory`."""
        self.iterations = memory["iterations"]
        for name in _PARTS:
            values = [np.nan if value is None else value for value in memory[name]]
            getattr(self, name)[:] = values
        self._upto = np.cumsum(self.probabilities)


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights over their sum; all the same where that is 0."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


def prompt_draws(order: str, num_slots: int, num_prompts: int) -> PromptDraws | EpochDraws:
    """The draws of slots, in one of the orders of :data:`~rlhf_gym.envs.token_rules.PromptOrder`.

    Args:
        order: its name.
        num_slots: ``N``.
        num_prompts: ``P``.

    Raises:
        ConfigError: there is no such order.
    """
    if order not in get_args(PromptOrder):
        raise ConfigError(f"prompt_order must be one of {', '.join(get_args(PromptOrder))}, got {order!r}")
    if order in WEIGHTED:
        return WeightedDraws(order, num_slots, num_prompts)
    return (EpochDraws if order == "epochs" else PromptDraws)(num_slots, num_prompts)
