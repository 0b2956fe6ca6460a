"""Supervised fine-tuning on given responses, in the form of the other agents: the baseline that every benchmark needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.forward import rollout_log_probs
from rlhf_gym.agents.common.given_pairs import EncodedPair, Pair, encoded_pairs, is_prompt
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting
from rlhf_gym.agents.common.shared_settings import EntropySettings, EpochSettings, LossSettings
from rlhf_gym.agents.given_responses import GivenResponses
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.tasks.too_long import TooLong

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import SFTKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class SFTSettings(EpochSettings, LossSettings, EntropySettings):
    """The settings of SFT."""

    data: Sequence[Pair | EncodedPair] = argument(
        help="pairs `(prompt, response)` of texts; a prompt may be chat messages, too. A response is learned with EOS at its "
        "end; one that is longer than the environment's length limit is cut, and has no EOS. They are not part of a "
        "checkpoint: give them to `load`, too"
    )
    on_too_long: Literal["refuse", "skip", "truncate"] = setting(
        "refuse",
        "if a pair exceeds the model's context: refuse it; skip it; or truncate its prompt at the beginning, its response at "
        "the end. They are counted before anything is learned",
    )
    n_epochs: int = setting(1, "passes over an iteration's pairs")
    batch_size: int | None = setting(16, "whole responses per minibatch; None takes all of them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ConfigError("SFT needs data: a list of (prompt, response) texts, got none")
        for number, pair in enumerate(self.data):
            if isinstance(pair, EncodedPair):
                continue
            if isinstance(pair, str) or len(pair) != 2 or not is_prompt(pair[0]) or not isinstance(pair[1], str):
                raise ConfigError(
                    f"data[{number}] must be a pair (prompt, response) of texts, or of chat messages that end with the user's, "
                    f"each with a text as content (or parts that are all texts), and a text; got {pair!r:.80}"
                )


class SFT(GivenResponses):
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

    data: Sequence[Pair | EncodedPair]

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[SFTKeywords],
        ) -> None: ...

    def encoded(self, model: LanguageModel, limits: Limits) -> tuple[list[EncodedPair], list[TooLong]]:
        """The pairs as token ids, and what was done with those that were too long.

        Args:
            model: its tokenizer encodes them.
            limits: the environment's.
        """
        return encoded_pairs(self.data, model, limits, self.on_too_long)

    @torch.no_grad()
    def measure(self, data: Sequence[Pair | EncodedPair], model: LanguageModel | None = None) -> dict[str, float]:
        """The cross-entropy of given responses, in nats per token, as ``loss``, without learning from them.

        Args:
            data: as the setting ``data``.
            model: the language model to measure; None takes the policy's.

        Raises:
            ConfigError: a response that the environment's limits do not allow.
            ModelError: a pair that does not fit in the model's context and is to be refused.
        """
        model, limits = model or self.policy.language_model, self.policy.limits
        pairs, _ = encoded_pairs(data, model, limits, self.on_too_long)
        rollout = Rollout.of([pair.episode(limits) for pair in pairs])
        log_probs = self.within_memory(lambda tokens: rollout_log_probs(self.policy, model, rollout, tokens))
        return {"loss": -float(log_probs.double().sum() / sum(rollout.lengths))}

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
