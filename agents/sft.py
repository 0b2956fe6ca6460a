"""Supervised fine-tuning on given responses, in the form of the other agents: the baseline that every benchmark needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv
from torch import Tensor

from rlhf_gym.agents.common.collect import Scoring
from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting
from rlhf_gym.agents.common.shared_settings import EntropySettings, EpochSettings, LossSettings
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.errors import ConfigError

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import SFTKeywords


@dataclass(frozen=True, kw_only=True)
class SFTSettings(EpochSettings, LossSettings, EntropySettings):
    """The settings of SFT."""

    data: Sequence[tuple[str, str]] = argument(
        help="`(prompt, response)` texts; a response ends with EOS after the tokens of its text, and is cut at the "
        "environment's length limit, without EOS then. Not part of a checkpoint: give it to `load`, too"
    )
    n_epochs: int = setting(1, "passes over an iteration's pairs")
    batch_size: int | None = setting(16, "whole responses a minibatch; None is all of them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("SFT needs data: a list of (prompt, response) texts, got none")
        for number, pair in enumerate(self.data):
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise ConfigError(f"data[{number}] must be a pair (prompt, response) of texts, got {pair!r:.80}")


class SFT(CriticFree):
    """``-log pi(y)`` of given responses, the mean over their tokens; prompts are read, not learned.

    An iteration takes the next ``n_episodes`` pairs in a random order that is drawn anew for each pass over the data. A
    timestep is a token of a response. ``objective/kl`` compares policy and reference on the given responses, not on the
    policy's own.

    Args:
        policy: ``"LMPolicy"``.
        env: for its spaces and limits (and for ``EvalCallback``); it is not stepped.
        settings: see :class:`SFTSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = SFTSettings

    data: Sequence[tuple[str, str]]

    if TYPE_CHECKING:

        def __init__(
            self, policy: str = "LMPolicy", env: GymEnv | str | None = None, **settings: Unpack[SFTKeywords]
        ) -> None: ...

    def generate(self, scoring: Scoring) -> list[Episode]:
        """Take the next pairs from the data as episodes."""
        places = range(self.episode_count, self.episode_count + self.n_episodes)
        return [self._episode(*self.data[self._place(place)]) for place in places]

    def complete(self, rollout: Rollout) -> None:
        """Compute the policy's own log-probabilities, too, of which objective/kl and objective/entropy are made."""
        super().complete(rollout)
        rollout.log_probs = rollout_log_probs(self.policy, self.policy.language_model, rollout, self.tokens_per_batch)

    def _place(self, number: int) -> int:
        """Which pair is the ``number``-th to be learned: each once a pass, in an order of the pass's own."""
        turn, place = divmod(number, len(self.data))
        order = np.random.default_rng(np.random.SeedSequence((self.seed or 0, 2, turn))).permutation(len(self.data))
        return int(order[place])

    def _episode(self, prompt: str, response: str) -> Episode:
        model, limits = self.policy.language_model, self.policy.limits
        ids = [*model.tokenizer.encode(response), limits.eos_id]
        ended = len(ids) <= limits.max_new_tokens
        ids = ids[: limits.max_new_tokens]
        zeros = [0.0] * len(ids)
        info = {"prompt": prompt, "response": response, "ended": ended, "response_length": len(ids)}
        return Episode(model.tokenizer.encode_prompt(prompt), ids, zeros, zeros, list(zeros), ended, info)

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
