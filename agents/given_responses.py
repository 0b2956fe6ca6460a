"""Base of the agents that learn from responses which they are given: nothing is generated, no environment is stepped."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.collect import Scoring
from rlhf_gym.agents.common.forward import fill_log_probs
from rlhf_gym.agents.common.given_pairs import place_in_pass
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.errors import TextsTooLong
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.tasks.too_long import OnTooLong, TooLong


class GivenResponses(CriticFree):
    """An iteration takes the next ``n_episodes`` responses of the data in a random order, a new one for each pass over them.

    Args:
        policy: ``"LMPolicy"``.
        env: for its spaces and limits; it is not stepped.
        learning_rate: a setting.
        settings: the fields of the class's ``Settings``.
    """

    in_conversations: ClassVar[bool] = False

    on_too_long: OnTooLong
    _rows: Sequence[Any]  # the data as token ids

    @property
    def together(self) -> int:
        """Responses of one row of the data."""
        return 1

    @abstractmethod
    def encoded(self, model: LanguageModel, limits: Limits) -> tuple[Sequence[Any], list[TooLong]]:
        """The data as token ids, and what was done with rows that were too long.

        Args:
            model: its tokenizer encodes them.
            limits: the environment's.
        """

    def episodes_of(self, row: Any) -> list[Episode]:
        """A row of the encoded data as episodes, :attr:`together` of them."""
        episode: Episode = row.episode(self.policy.limits)
        return [episode]

    def _check(self, env: VecEnv, model: LanguageModel) -> Limits:
        limits = super()._check(env, model)
        self._rows, found = self.encoded(model, limits)
        for one in found:
            warnings.warn(str(one), TextsTooLong, stacklevel=2)
        return limits

    def generate(self, scoring: Scoring) -> list[Episode]:
        """Take the next rows of the data as episodes."""
        numbers = range(self.episode_count // self.together, (self.episode_count + self.n_episodes) // self.together)
        places = (place_in_pass(number, len(self._rows), self.seed or 0) for number in numbers)
        return [episode for place in places for episode in self.episodes_of(self._rows[place])]

    def complete(self, rollout: Rollout) -> None:
        """Compute the policy's own log-probabilities, too: objective/kl and objective/entropy need them."""
        super().complete(rollout)
        self.fill(rollout, ("log_probs",), lambda part, tokens: fill_log_probs(self.policy, part, tokens))

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Give every response the advantage 1: all are to be imitated.

        Args:
            rollout: the episodes.
            rewards: float32 ``[B, R]``, not used.

        Returns:
            float32 ``[B, 1]``, ones.
        """
        return torch.ones(len(rollout.episodes), 1)
