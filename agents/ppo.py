"""Proximal policy optimisation for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from rlhf_gym.agents.common.advantages import gae, length_adaptive_lambda, returns_to_go, whiten
from rlhf_gym.agents.common.algorithm import TokenAlgorithm
from rlhf_gym.agents.common.forward import episode_batches, pack_episodes
from rlhf_gym.agents.common.losses import Clipped, clipped_value_loss, token_weights
from rlhf_gym.agents.common.metrics import check_finite
from rlhf_gym.agents.common.minibatch import Terms
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import (
    ActorCriticSettings,
    CollectSettings,
    EntropySettings,
    MismatchSettings,
    TokenClipSettings,
    ValueClipSettings,
    ValueLossSettings,
)

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import PPOKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


MISMATCH = 0.05
"""Up to this ratio of its mean size to that of the log-probabilities, the log-ratio to the reference may be the mismatch of two
passes alone, in bfloat16 too."""


@dataclass(frozen=True, kw_only=True)
class PPOSettings(
    ActorCriticSettings,
    MismatchSettings,
    TokenClipSettings,
    EntropySettings,
    CollectSettings,
    ValueClipSettings,
    ValueLossSettings,
):
    """The settings of PPO."""

    n_epochs: int = setting(2)
    clip_range: float | Schedule = setting(0.2, "the ratio is clipped at `1 - clip_range`")


class PPO(TokenAlgorithm):
    """PPO with a per-token KL penalty, measured from a frozen reference; a stable-baselines3 algorithm. A timestep is a token.

    Args:
        policy: ``"LMPolicy"``.
        env: a :class:`~rlhf_gym.envs.TokenVecEnv` (fast), or any environment of token observations.
        settings: see :class:`PPOSettings`, and the table in docs/algorithms.md.

    Raises:
        ConfigError: an unknown setting, one out of range, or settings that contradict one another; before any work starts.
    """

    Settings: ClassVar[type[AgentSettings]] = PPOSettings

    clip_range: float | Schedule
    clip_range_vf: float | None
    normalize_advantage: bool
    whiten_rewards: bool
    gae_lambda_alpha: float | None
    value_gae_lambda: float | None
    value_warmup: int
    scale_returns: bool

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[PPOKeywords],
        ) -> None: ...

    def prepare(self, rollout: Rollout) -> None:
        """Compute each token's reward, from score and KL penalty, and generalised advantages."""
        mask = rollout.mask
        rewards = self.shaped_rewards(rollout)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        bootstrap, gamma = rollout.bootstrap, self.discount(rollout, self.gamma)
        head = self.policy.value_head
        assert head is not None
        if self.scale_returns and (head.seen > 0 or self._pays(rollout)):
            factor = head.measure(returns_to_go(rewards, mask, gamma=gamma)[mask])
            rollout.values, bootstrap = factor * rollout.values, factor * bootstrap
        lambdas = self.discount(rollout, self.gae_lambda)
        if self.gae_lambda_alpha is not None:
            lambdas = length_adaptive_lambda(mask.sum(1), self.gae_lambda_alpha)
        estimate = partial(gae, rewards, rollout.values, mask, gamma=gamma, bootstrap=bootstrap)
        rollout.advantages, rollout.returns = estimate(gae_lambda=lambdas)
        if self.gae_lambda_alpha is not None or self.value_gae_lambda is not None:
            targets = self.gae_lambda if self.value_gae_lambda is None else self.value_gae_lambda
            _, rollout.returns = estimate(gae_lambda=self.discount(rollout, targets))
        values, returns = rollout.values[mask].numpy(), rollout.returns[mask].numpy()
        self.logger.record("train/explained_variance", float(explained_variance(values, returns)))
        if self.normalize_advantage:
            rollout.advantages = whiten(rollout.advantages, mask)

    def _pays(self, rollout: Rollout) -> bool:
        """True where a rollout's rewards are more than rounding: a score, or a KL penalty above :data:`MISMATCH`."""
        if self.scores(rollout).any():
            return True
        if self.kl_in != "reward" or not rollout.has_reference:
            return False
        log_ratio = (rollout.log_probs - rollout.reference_log_probs)[rollout.mask]
        return bool(log_ratio.abs().mean() > MISMATCH * rollout.log_probs[rollout.mask].abs().mean())

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The clipped policy and value losses, and the KL where it is a loss.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: ``[N]``, the value head's, likewise.

        Returns:
            Losses by name, ``[N]`` each; and metrics by name, summed over tokens.
        """
        assert values is not None
        policy_loss, clipped = self.ratio_loss(rollout, rows, log_probs)
        value_loss, value_clipped = self.value_loss(rollout, rows, values)
        losses = {"policy": policy_loss, "value": value_loss, **self.kl_loss(rollout, rows, log_probs)}
        return losses, {"clipped": clipped.sum(), "value clipped": value_clipped.sum()}

    def value_loss(self, rollout: Rollout, rows: list[int], values: Tensor) -> Clipped:
        """The clipped error of the values, in units of the returns where ``scale_returns`` is on.

        Args:
            rollout: the episodes, returns filled in.
            rows: the micro-batch's episodes, whole.
            values: ``[N]``, of their response tokens now, row after row.
        """
        assert self.policy.value_head is not None
        unit = self.policy.value_head.unit
        old, returns = self.flat(rollout.values, rows), self.flat(rollout.returns, rows)
        return clipped_value_loss(values / unit, old / unit, returns / unit, self.clip_range_vf)

    @property
    def warming_up(self) -> bool:
        """True in the first ``value_warmup`` iterations, in which only the value function learns."""
        return self.iteration < self.value_warmup

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on one minibatch; during the warm-up, of the value function alone.

        Args:
            rollout: the episodes, advantages and returns filled in.
            rows: the minibatch's episodes.

        Returns:
            False ends learning from this rollout.
        """
        if not self.warming_up:
            return super().update(rollout, rows)
        self.value_update(rollout, rows)
        return True

    def value_update(self, rollout: Rollout, rows: list[int]) -> None:
        """One optimizer step of the value function's own weights on a minibatch; no other weight gets a gradient.

        Args:
            rollout: the episodes, returns filled in.
            rows: the minibatch's episodes.
        """
        own = self.ranks.share(rows, rollout.totals)
        found = self.gradient(lambda tokens: self._value_gradient(rollout, rows, own, tokens))
        loss, clipped = (sum(amounts) for amounts in zip(*found, strict=True))
        self.record(**{"loss/value_avg": loss, "train/value_loss": loss, "val/clipfrac_avg": clipped})
        self.step_optimizer()

    def _value_gradient(
        self, rollout: Rollout, rows: list[int], own: list[int], tokens_per_batch: int
    ) -> tuple[float, float]:
        """Add up the gradient of the value loss over micro-batches; returns the loss, and the share of clipped tokens.

        Args:
            rollout: the episodes.
            rows: the minibatch's episodes.
            own: the part of them whose gradient is computed; the parts' results add up.
            tokens_per_batch: padded tokens per pass.
        """
        policy = self.policy
        lengths = torch.tensor([rollout.lengths[i] for i in rows])
        weights = token_weights(lengths, self.aggregation, constant_length=policy.limits.max_new_tokens)
        parts: list[Tensor] = []
        weight_of = dict(zip(rows, weights, strict=True))
        for micro in episode_batches(policy.value_model, rollout, own, tokens_per_batch):
            batch = pack_episodes(policy, [rollout.episodes[i] for i in micro])
            with torch.set_grad_enabled(policy.value_trunk is not None):  # a shared trunk is the policy's
                hidden = policy.value_model.response_states(batch)
            loss, clipped = self.value_loss(rollout, micro, policy.values(hidden))
            weight = torch.cat([weight_of[i].expand(rollout.lengths[i]) for i in micro]).to(loss.device)
            mean = (loss * weight).sum()
            check_finite({"the value loss is": mean.detach()}, self.where)
            self.scaler.scale(mean * self.coefficient("value")).backward()  # type: ignore[no-untyped-call]
            parts.append(torch.stack([mean.detach(), clipped.sum()]))
        # One transfer for all; the sums are of Python's numbers, so that they do not depend on the device.
        total, clips = (
            (sum(column) for column in zip(*torch.stack(parts).tolist(), strict=True)) if parts else (0.0, 0.0)
        )
        return total, clips / int(lengths.sum())

    def after_learning(self, rollout: Rollout) -> None:
        """Adapt the KL coefficient, once the policy learns."""
        if not self.warming_up:
            super().after_learning(rollout)

    def coefficient(self, loss: str) -> float:
        """The weight of a loss in the total."""
        return self.vf_coef if loss == "value" else super().coefficient(loss)
