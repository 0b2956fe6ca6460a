"""Supervised fine-tuning on given responses, in the form of the other agents: the baseline that every benchmark needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.collect import Scoring
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.common.given_responses import encoded_pairs, given_episode, is_prompt, place_in_pass
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting
from rlhf_gym.agents.common.shared_settings import EntropySettings, EpochSettings, LossSettings
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.chat_template import Messages
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import SFTKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class SFTSettings(EpochSettings, LossSettings, EntropySettings):
    """The settings of SFT."""

    data: Sequence[tuple[str | Messages, str]] = argument(
        help="pairs `(prompt, response)` of texts; a prompt may be chat messages, too. A response is learned with EOS at its "
        "end; one that is longer than the environment's length limit is cut, and has no EOS. They are not part of a "
        "checkpoint: give them to `load`, too"
    )
    n_epochs: int = setting(1, "passes over an iteration's pairs")
    batch_size: int | None = setting(16, "whole responses per minibatch; None takes all of them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("SFT needs data: a list of (prompt, response) texts, got none")
        for number, pair in enumerate(self.data):
            if isinstance(pair, str) or len(pair) != 2 or not is_prompt(pair[0]) or not isinstance(pair[1], str):
                raise ConfigError(
                    f"data[{number}] must be a pair (prompt, response) of texts, or of chat messages that end with the user's "
                    f"and a text; got {pair!r:.80}"
                )


class SFT(CriticFree):
    """The cross-entropy ``-log pi(y)`` of given responses, the mean over their tokens; prompts are not learned.

    An iteration takes the next ``n_episodes`` pairs in a random order, a new one for each pass over the data. A timestep is a
    token of a response. ``objective/kl`` compares policy and reference on the given responses, not on the policy's own.

    Args:
        policy: ``"LMPolicy"``.
        env: for its spaces and limits (and for ``EvalCallback``); it is not stepped.
        settings: see :class:`SFTSettings`.

    Raises:
        ConfigError: as PPO; also a pair that the environment's limits do not allow.
    """

    Settings: ClassVar[type[AgentSettings]] = SFTSettings

    data: Sequence[tuple[str | Messages, str]]

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[SFTKeywords],
        ) -> None: ...

    def generate(self, scoring: Scoring) -> list[Episode]:
        """Take the next pairs from the data as episodes."""
        numbers = range(self.episode_count, self.episode_count + self.n_episodes)
        return [self._episode(place_in_pass(number, len(self.data), self.seed or 0)) for number in numbers]

    def _check(self, env: VecEnv, model: LanguageModel) -> Limits:
        limits = super()._check(env, model)
        self._ids = encoded_pairs(self.data, model, limits)
        return limits

    def complete(self, rollout: Rollout) -> None:
        """Compute the policy's own log-probabilities, too: objective/kl and objective/entropy need them."""
        super().complete(rollout)
        rollout.log_probs = rollout_log_probs(self.policy, self.policy.language_model, rollout, self.tokens_per_batch)

    @torch.no_grad()
    def measure(self, data: Sequence[tuple[str | Messages, str]]) -> dict[str, float]:
        """The cross-entropy of given responses, in nats per token, without learning from them.

        Args:
            data: as the setting ``data``.

        Returns:
            ``loss`` of the policy, and ``reference_loss``.

        Raises:
            ConfigError: a response that the environment's limits do not allow.
        """
        model, limits = self.policy.language_model, self.policy.limits
        ids = encoded_pairs(data, model, limits)
        rollout = Rollout.of([given_episode(*pair, one, limits) for pair, one in zip(data, ids, strict=True)])
        tables = {"loss": model, "reference_loss": self.reference}
        return {
            name: -float(
                rollout_log_probs(self.policy, m, rollout, self.tokens_per_batch).double().sum() / sum(rollout.lengths)
            )
            for name, m in tables.items()
        }  # fmt: skip

    def _episode(self, place: int) -> Episode:
        (prompt, response), ids = self.data[place], self._ids[place]
        return given_episode(prompt, response, ids, self.policy.limits)

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Give every response the advantage 1: all are to be imitated.

        Args:
            rollout: the episodes.
            rewards: float32 ``[B, R]``, not used.

        Returns:
            float32 ``[B, 1]``, ones.
        """
        return torch.ones(len(rollout.episodes), 1)

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """Cross-entropy.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: None: there is no value head.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens (none here).
        """
        return {"policy": -log_probs}, {}
