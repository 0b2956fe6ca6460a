"""Curricula: prompts drawn by weights that follow from how the policy has done on them, or from their difficulty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from rlhf_gym.envs.prompts import OTHER_ORDER, EpochDraws, PromptDraws
from rlhf_gym.envs.token_rows import Slots
from rlhf_gym.envs.token_rules import WEIGHTED, PromptOrder
from rlhf_gym.errors import ConfigError

STALE = 0.1
"""The share of draws that go by age alone, so that no prompt is forgotten."""
KEPT = 0.5
"""The weight of what was known of a prompt when it is answered again."""
RAISE_AT = 0.8
"""The mean score at the hardest difficulty from which on the next one joins."""
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
        order: one of :data:`~rlhf_gym.envs.token_rules.WEIGHTED`; of ``difficulty`` there is :class:`LevelDraws`.
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
        return self.chosen_by(self._last[slots])

    @property
    def has_drawn(self) -> NDArray[np.bool_]:
        """bool ``[N]``, True for the slots that have drawn a prompt since the environment was made."""
        drawn: NDArray[np.bool_] = ~np.isnan(self._last)
        return drawn

    def last_by_new_weights(self, slots: Slots) -> NDArray[np.int64]:
        """int64 ``[n]``: the prompts that the last numbers drawn for these slots choose now; all of them have drawn one."""
        return self.chosen_by(self._last[slots])

    def chosen_by(self, drawn: NDArray[np.float64]) -> NDArray[np.int64]:
        """int64 ``[n]``: the prompts that numbers in 0..1 choose, float64 ``[n]``."""
        found = np.searchsorted(self._upto, drawn * self._upto[-1], side="right")
        numbers: NDArray[np.int64] = np.minimum(found, self.num_prompts - 1).astype(np.int64)
        return numbers

    def memory(self) -> dict[str, Any]:
        """What is known of the prompts, as JSON values."""
        known = {name: [None if np.isnan(v) else v for v in getattr(self, name).tolist()] for name in _PARTS}
        return {"iterations": self.iterations, **known}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Restore :meth:`memory`.

        Raises:
            ConfigError: it is of another order of prompts.
        """
        if not set(_PARTS) <= set(memory):
            raise ConfigError(OTHER_ORDER)
        self.iterations = memory["iterations"]
        for name in _PARTS:
            values = [np.nan if value is None else value for value in memory[name]]
            getattr(self, name)[:] = values
        self._upto = np.cumsum(self.probabilities)


def _shares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights over their sum; all the same where that is 0."""
    total = weights.sum()
    return weights / total if total > 0 else np.full(len(weights), 1 / len(weights))


class LevelDraws(WeightedDraws):
    """Draws evenly from the prompts up to a difficulty, which begins with the easiest and rises with training.

    The next difficulty joins when the mean score of the responses at the hardest one so far (a moving average over iterations,
    as of other weights) reaches :data:`RAISE_AT`; or, with ``every``, after each so many iterations. Easier prompts stay.

    Args:
        num_slots: ``N``.
        difficulties: ``P`` numbers, of each prompt; larger is harder.
        every: iterations from one difficulty to the next; None goes by the scores, which must lie from 0 to 1.

    Attributes:
        level: place of the hardest difficulty in the order of all different ones, from 0.
        rate: the mean score at that difficulty; NaN before the first.
    """

    def __init__(self, num_slots: int, difficulties: Sequence[float], every: int | None) -> None:
        self._levels: NDArray[np.int64] = np.unique(np.asarray(difficulties), return_inverse=True)[1].astype(np.int64)
        self.every, self.level, self.rate = every, 0, float("nan")
        super().__init__("difficulty", num_slots, len(difficulties))

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """float64 ``[P]``, of each prompt at the next draw."""
        return _shares((self._levels <= self.level).astype(np.float64))

    def note(self, prompts: Sequence[int], scores: Sequence[float], advantages: Sequence[float]) -> None:
        """Take in an iteration's responses; where the difficulty rises, the next draws know it.

        Args:
            prompts: the number of each response's prompt.
            scores: of each response.
            advantages: not used.

        Raises:
            ConfigError: the difficulty is to rise with the scores, and one lies outside 0 to 1.
        """
        self.iterations += 1
        last = int(self._levels.max())
        if self.every is not None:
            self.level = min(self.iterations // self.every, last)
        else:
            score = np.asarray(scores)
            if len(score) and not (score.min() >= 0 and score.max() <= 1):
                raise ConfigError(
                    f"prompt_order='difficulty' takes scores from 0 (failed) to 1 (solved), got {score.min():g} to "
                    f"{score.max():g}: give such a reward, or difficulty_every=N, which raises it every N iterations"
                )
            hardest = score[self._levels[np.asarray(prompts, dtype=np.int64)] == self.level]
            if len(hardest):
                now = float(hardest.mean())
                self.rate = now if np.isnan(self.rate) else KEPT * self.rate + (1 - KEPT) * now
            if self.rate >= RAISE_AT and self.level < last:
                self.level, self.rate = self.level + 1, float("nan")
        self._upto = np.cumsum(self.probabilities)

    def memory(self) -> dict[str, Any]:
        """How far the difficulty has risen, as JSON values."""
        return {"iterations": self.iterations, "level": self.level, "rate": None if np.isnan(self.rate) else self.rate}

    def remember(self, memory: Mapping[str, Any]) -> None:
        """Restore :meth:`memory`.

        Raises:
            ConfigError: it is of another order of prompts.
        """
        if "level" not in memory:
            raise ConfigError(OTHER_ORDER)
        self.iterations, self.level = memory["iterations"], memory["level"]
        self.rate = float("nan") if memory["rate"] is None else memory["rate"]
        self._upto = np.cumsum(self.probabilities)


def plain_draws(order: str, num_slots: int, num_prompts: int) -> PromptDraws | EpochDraws:
    """The draws of slots whose environment is never told how responses have done.

    Args:
        order: ``"epochs"`` or ``"random"``.
        num_slots: ``N``.
        num_prompts: ``P``.

    Raises:
        ConfigError: another order.
    """
    if order not in ("random", "epochs"):
        raise ConfigError(
            f"prompt_order must be random or epochs here, got {order!r}: curricula are of the token level, and of "
            "conversations that agents learn in (wrap_text_env)"
        )
    return prompt_draws(order, num_slots, num_prompts)


def checked_difficulties(difficulties: Sequence[Any]) -> list[float]:
    """The prompts' difficulties, of which each must be a number.

    Raises:
        ConfigError: a prompt has none.
    """
    numbers = [float(one) for one in difficulties if isinstance(one, int | float) and math.isfinite(one)]
    if len(numbers) < len(difficulties):
        raise ConfigError(
            f"prompt_order='difficulty' needs a number in the column difficulty of every prompt, and "
            f"{len(difficulties) - len(numbers)} of {len(difficulties)} have none: give it in the file of prompts, or take a "
            "symbol task with several difficulties, whose options are e.g. easiest 1 and difficulty 4"
        )
    return numbers


def prompt_draws(
    order: str, num_slots: int, num_prompts: int, difficulties: Sequence[Any] | None = None, every: int | None = None
) -> PromptDraws | EpochDraws:
    """The draws of slots, in one of the orders of :data:`~rlhf_gym.envs.token_rules.PromptOrder`.

    Args:
        order: its name.
        num_slots: ``N``.
        num_prompts: ``P``.
        difficulties: the prompts' column ``difficulty``; None where they have none.
        every: with the order ``difficulty``: iterations from one difficulty to the next; None goes by the scores.

    Raises:
        ConfigError: there is no such order; or one by difficulty, and a prompt has none.
    """
    if order not in get_args(PromptOrder):
        raise ConfigError(f"prompt_order must be one of {', '.join(get_args(PromptOrder))}, got {order!r}")
    if every is not None and (order != "difficulty" or every < 1):
        raise ConfigError(
            f"difficulty_every ({every}) must be at least 1, and goes with prompt_order='difficulty', not {order!r}"
        )
    if order == "difficulty":
        numbers = checked_difficulties([None] * num_prompts if difficulties is None else difficulties)
        return LevelDraws(num_slots, numbers, every)
    if order in WEIGHTED:
        return WeightedDraws(order, num_slots, num_prompts)
    return (EpochDraws if order == "epochs" else PromptDraws)(num_slots, num_prompts)
