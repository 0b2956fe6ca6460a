"""Direct preference optimisation on pairs that the policy generates as it learns (Rafailov et al. 2023; Guo et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.advantages import equal_groups
from rlhf_gym.agents.common.forward import episode_log_probs
from rlhf_gym.agents.common.losses import PairLoss
from rlhf_gym.agents.common.minibatch import Terms, add_gradients
from rlhf_gym.agents.common.preference_losses import preference_loss, response_sums
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, argument, setting
from rlhf_gym.agents.common.shared_settings import CollectSettings, EpochSettings, OverlongSettings, RolloutSettings
from rlhf_gym.agents.common.shares import sum_tables
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.errors import ConfigError
from rlhf_gym.feedback.queries import Judgement, Query, check_judgement
from rlhf_gym.lm.sequences import batches_by_length
from rlhf_gym.raters.base import Rater
from rlhf_gym.raters.function import RaterFunction, as_rater

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import OnlineDPOKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


def preferred(queries: Sequence[Query], rater: Rater) -> Tensor:
    """Have a rater judge pairs, and wait for it: float32 ``[P]``, 1 where the first is better, -1 the second, 0 neither.

    Of several judgements of a pair the majority counts; a correction replaces the judgement that it corrects; skipped pairs
    have no judgement.

    Args:
        queries: ``P`` pairs.
        rater: judges them.

    Raises:
        RaterError: the rater could not go on.
        FeedbackError: a judgement that does not fit its query.
    """
    by_id = {query.id: query for query in queries}
    answers: dict[str, Judgement] = {}
    for judgement in rater.collect(rater.submit(list(by_id.values()))) if by_id else ():
        if judgement.query_id in by_id:
            check_judgement(by_id[judgement.query_id], judgement)
            answers.pop(judgement.supersedes or "", None)
            answers[judgement.id] = judgement
    votes: dict[str, int] = defaultdict(int)
    for judgement in answers.values():
        if judgement.choice is not None:
            votes[judgement.query_id] += 1 if judgement.choice == 0 else -1
    return torch.sign(torch.tensor([float(votes[query.id]) for query in queries]))


@dataclass(frozen=True, kw_only=True)
class OnlineDPOSettings(RolloutSettings, CollectSettings, EpochSettings, OverlongSettings):
    """The settings of online DPO. The reference is part of the loss: there is no KL penalty."""

    beta: float = setting(
        0.1, "strength of the pull to the reference; a larger one stays nearer to it", above=0,
        source="Rafailov et al. 2023",
    )  # fmt: skip
    loss: PairLoss = setting("dpo", "the loss of a pair", source="ipo: Azar et al. 2023")
    label_smoothing: float = setting(
        0.0, "with `loss: dpo`: probability that the reward has a pair the wrong way round", at_least=0, below=0.5
    )
    rater: Rater | RaterFunction | None = argument(
        None,
        "a rater, or a function `(prompt, a, b) -> 0 | 1 | None`, that judges the pairs. The environment's reward is then "
        "reported only. The rater sees prompts and responses as text. It is not part of a checkpoint: give it to `load`, too",
    )
    n_epochs: int = setting(1, "passes over an iteration's pairs")
    batch_size: int | None = setting(16, "whole episodes per minibatch, an even number; None takes all of them")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size % 2:
            raise ConfigError(f"OnlineDPO learns from pairs: batch_size must be even, got {self.batch_size}")
        if self.n_episodes is not None and self.n_episodes % 2:
            raise ConfigError(f"OnlineDPO learns from pairs: n_episodes must be even, got {self.n_episodes}")
        if self.label_smoothing and self.loss != "dpo":
            raise ConfigError(
                f"label_smoothing ({self.label_smoothing}) belongs to loss='dpo': leave it at 0 with loss={self.loss!r}"
            )
        if self.rater is not None:
            object.__setattr__(self, "rater", as_rater(self.rater))

    @classmethod
    def needs_reference(cls, values: Mapping[str, Any]) -> bool:
        """True: implicit rewards are log-ratios to it.

        Args:
            values: of all settings, by name.
        """
        return True

    @classmethod
    def adapted_defaults(cls, given: Mapping[str, Any], num_envs: int | None) -> dict[str, Any]:
        """As of every agent; a minibatch is of whole pairs.

        Args:
            given: values by name, not yet checked.
            num_envs: the number of environments; None where it is not known.
        """
        adapted = super().adapted_defaults(given, num_envs)
        return {**adapted, "batch_size": max(2, adapted["batch_size"] // 2 * 2)} if "batch_size" in adapted else adapted


class OnlineDPO(CriticFree):
    """Online DPO: a reward or a rater says which of two responses to a prompt is better, and DPO's loss learns from that.

    Pairs of equal scores, and pairs that the rater ties or skips, are left out.

    Args:
        policy: ``"LMPolicy"``.
        env: as GRPO's; an even number of environments.
        settings: see :class:`OnlineDPOSettings`.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = OnlineDPOSettings

    group_size = 2
    beta: float
    loss: PairLoss
    label_smoothing: float
    rater: Rater | None

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[OnlineDPOKeywords],
        ) -> None: ...

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Give the better response of each pair +1 and the other -1; equal pairs are left out.

        Args:
            rollout: the episodes, pair after pair.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``, each 1, -1 or 0.
        """
        if self.rater is None:
            scores = rewards.sum(1).view(-1, 2)
            sign = torch.sign(scores[:, 0] - scores[:, 1]) * ~equal_groups(rewards, 2)
        else:
            sign = self._judged(rollout, self.rater)
        rollout.together = 2
        rollout.learn_from = [
            row for pair in torch.nonzero(sign).flatten().tolist() for row in (2 * pair, 2 * pair + 1)
        ]
        self.logger.record("groups/equal_share", (sign == 0).float().mean().item())
        return torch.stack([sign, -sign], dim=1).flatten()[:, None]

    def _judged(self, rollout: Rollout, rater: Rater) -> Tensor:
        """The rater's preference in each pair, as :func:`preferred` gives it; 0 for two responses of the same text."""
        decode = self.policy.language_model.tokenizer.decode
        prompts = [e.info.get("prompt", decode(e.prompt_ids)) for e in rollout.episodes[::2]]
        texts = [e.info.get("response", decode(e.response_ids)) for e in rollout.episodes]
        queries = {
            pair: Query(prompt=prompt, responses=(a, b), round=self.iteration + 1, index=pair)
            for pair, (prompt, a, b) in enumerate(zip(prompts, texts[::2], texts[1::2], strict=True))
            if a != b
        }
        sign = torch.zeros(len(prompts))
        sign[list(queries)] = self.ranks.from_main(lambda: preferred(list(queries.values()), rater))
        return sign

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on a minibatch of pairs.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the minibatch's, pair after pair.

        Returns:
            True: learning from this rollout always goes on.
        """
        longest = {first: 2 * max(rollout.totals[first], rollout.totals[first + 1]) for first in rows[::2]}
        sizes = [longest.get(row, 0) for row in range(len(rollout.episodes))]
        own = self.ranks.share(rows[::2], sizes)
        sized = [sizes[i] for i in own]
        found = self.gradient(
            lambda tokens: add_gradients(
                self._passes(rollout, own, len(longest), sized, tokens), self.scaler, self.where,
                what="the preference loss is",
            )
        )  # fmt: skip
        self.record(**sum_tables(found))
        self.step_optimizer()
        return True

    def _passes(
        self, rollout: Rollout, firsts: list[int], pairs_in_all: int, longest: list[int], tokens_per_batch: int
    ) -> Iterator[tuple[Tensor, Terms]]:
        """Pairs of a minibatch in micro-batches: the part of the minibatch's loss and metrics that each adds.

        Args:
            rollout: the episodes.
            firsts: the first episode of each pair.
            pairs_in_all: the minibatch's number of pairs.
            longest: tokens of each pair, padded.
            tokens_per_batch: padded tokens per pass.
        """
        for group in batches_by_length(longest, tokens_per_batch):
            pairs = [firsts[g] for g in group]
            micro = [row for first in pairs for row in (first, first + 1)]
            logs, _ = episode_log_probs(self.policy, self.policy.language_model, [rollout.episodes[i] for i in micro])
            ratios = logs - self.flat(rollout.reference_log_probs, micro)
            sums = response_sums(ratios, [rollout.lengths[i] for i in micro])
            sign = rollout.advantages[pairs, 0].to(self.device, non_blocking=True)
            margins = sign * (sums[0::2] - sums[1::2])
            losses = preference_loss(margins, self.beta, self.loss, label_smoothing=self.label_smoothing)
            total = losses.sum() / pairs_in_all
            chosen = torch.where(sign > 0, sums[0::2], sums[1::2]).detach()
            rejected = torch.where(sign > 0, sums[1::2], sums[0::2]).detach()
            yield total, {
                "train/loss": total.detach(), "rewards/chosen": self.beta * chosen.sum() / pairs_in_all,
                "rewards/rejected": self.beta * rejected.sum() / pairs_in_all,
                "rewards/margins": self.beta * margins.detach().sum() / pairs_in_all,
                "rewards/accuracies": (margins.detach() > 0).float().sum() / pairs_in_all,
            }  # fmt: skip
