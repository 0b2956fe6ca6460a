"""The order of prompts in conversations that agents learn in, whose every episode is reset with a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.prompt_weights import WeightedDraws, prompt_draws
from rlhf_gym.envs.prompts import OTHER_ORDER, place_in_epochs
from rlhf_gym.envs.token_rules import PromptOrder
from rlhf_gym.errors import ConfigError
from rlhf_gym.tasks.samples import Prompt

_DRAW = 4  # of the entropy of these draws


class TalkPrompts:
    """The prompt that each episode of an agent's begins with.

    It follows from the agent's seed and the number of the episode (of the group, where several begin alike) alone, and with
    weights also from the outcomes so far: the number of slots, batches and checkpoints change nothing.

    Args:
        order: see :data:`~rlhf_gym.envs.token_rules.PromptOrder`.
        prompts: the environment's.
        difficulty_every: with the order ``difficulty``: iterations from one difficulty to the next; None goes by the scores.

    Attributes:
        order: as given.
        weights: of an order that outcomes change; None for the others.

    Raises:
        ConfigError: there is no such order; or one by difficulty, and a prompt has none.
    """

    def __init__(self, order: PromptOrder, prompts: Sequence[Prompt], difficulty_every: int | None = None) -> None:
        self.order, self._count = order, len(prompts)
        difficulties = [prompt.columns.get("difficulty") for prompt in prompts]
        draws = prompt_draws(order, 1, len(prompts), difficulties, difficulty_every)
        self.weights = draws if isinstance(draws, WeightedDraws) else None

    @classmethod
    def of(
        cls, env: gym.Env[Any, Any], order: PromptOrder | None = None, difficulty_every: int | None = None
    ) -> Self | None:
        """The order of an environment's prompts; None for one that has no prompts.

        Args:
            env: wrapped or not.
            order: None for the environment's own.
            difficulty_every: as of the class.

        Raises:
            ConfigError: as of the class; or an order other than epochs is wanted of an environment that has no prompts.
        """
        prompts, inside = prompts_inside(env), env.unwrapped
        if prompts is not None:
            own: PromptOrder = inside.prompt_order  # type: ignore[attr-defined]  # it has prompts
            return cls(order or own, prompts, difficulty_every)
        if order in (None, "epochs") and difficulty_every is None:
            return None
        raise ConfigError(
            f"{type(inside).__name__} draws its episodes itself and has no prompts to order (prompt_order={order!r}, "
            f"difficulty_every={difficulty_every}): leave them out, or give the environment prompts: a task (env.task), an "
            "attribute prompt_order, and reset(options={'prompt': number})"
        )

    def number(self, seed: int, episode: int) -> int:
        """The number of the prompt that an episode begins with.

        Args:
            seed: the agent's.
            episode: its number, or its group's.
        """
        if self.order == "epochs":
            return place_in_epochs(seed, episode, self._count)
        generator = np.random.default_rng(np.random.SeedSequence((seed, _DRAW, episode)))
        if self.weights is None:
            return int(generator.integers(self._count))
        return int(self.weights.chosen_by(np.array([generator.random()]))[0])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values."""
        return {"order": self.order, "memory": None if self.weights is None else self.weights.memory()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state`.

        Raises:
            ConfigError: it is of another order of prompts.
        """
        if state["order"] != self.order:
            raise ConfigError(OTHER_ORDER)
        if self.weights is not None:
            self.weights.remember(state["memory"])


def prompts_inside(env: gym.Env[Any, Any]) -> Sequence[Prompt] | None:
    """The prompts that an environment begins its episodes with; None where it has none to choose from.

    An environment has prompts if it has an attribute ``prompt_order`` and a ``task``, and if its ``reset`` takes
    ``options={"prompt": number}``.

    Args:
        env: wrapped or not.
    """
    inside = env.unwrapped
    if not hasattr(inside, "prompt_order"):
        return None
    prompts: Sequence[Prompt] = inside.task.prompts  # type: ignore[attr-defined]  # of those that have the other
    return prompts
