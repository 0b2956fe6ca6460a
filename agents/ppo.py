"""Proximal policy optimisation for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from rlhf_gym.agents.common.advantages import gae, whiten
from rlhf_gym.agents.common.checkpoint import settings_of
from rlhf_gym.agents.common.kl import Estimator
from rlhf_gym.agents.common.kl_limit import Action
from rlhf_gym.agents.common.losses import Aggregation, clipped_policy_loss, clipped_value_loss
from rlhf_gym.agents.common.policy import ValueNetwork
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.settings import check_settings, refuse_unknown
from rlhf_gym.agents.policy_gradient import PolicyGradient
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.sampling import Sampling
from rlhf_gym.reward_model import RewardModel


class PPO(PolicyGradient):
    """PPO with a per-token KL penalty to a frozen reference, as a stable-baselines3 algorithm. A timestep is a token.

    Args:
        policy: ``"LMPolicy"``.
        env: a :class:`~rlhf_gym.envs.TokenVecEnv` (fast), or any environment of token observations.
        language_model: the model to train (in place), or its name.
        reference: the model KL is measured from, or its name; default a frozen copy of ``language_model``.
        lora: ``{"rank": 8, "alpha": 16, "targets": [...]}``, each of which may be left out (:class:`~rlhf_gym.lm.lora.Lora`):
            an adapter learns in the place of the model's weights, which are frozen in place and are the reference, too. It
            wants a learning rate some ten times as high. None: all weights learn.
        learning_rate: Adam's (epsilon 1e-5), a number or a function of the remaining progress (1 to 0). The default suits
            models of 1 to 10 million parameters; take 1e-5 to 3e-6 from 100 million on.
        learning_rate_decay: ``"constant"``, or ``"linear"`` to 0 at ``total_timesteps``.
        n_episodes: episodes an iteration, a multiple of the number of environments; default one for each.
        n_epochs: passes over an iteration's episodes.
        batch_size: whole episodes a minibatch; None is all of them.
        tokens_per_batch: padded tokens a micro-batch; gradients are accumulated, and do not depend on it.
        gamma: discount per token.
        gae_lambda: lambda of generalised advantage estimation.
        clip_range: the ratio is clipped at ``1 - clip_range`` (a number, or a function of the remaining progress) ...
        clip_range_high: ... and at ``1 + clip_range_high``; default ``clip_range``.
        dual_clip: bound for negative advantages, above 1; None is off.
        clip_range_vf: the value is clipped this far around the rollout's; None is off.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy bonus; above 0, entropies are computed exactly, which costs some time.
        max_grad_norm: the gradient's largest norm.
        target_kl: stop an iteration's learning once the approximate KL between new and old policy passes 1.5 times this.
        max_ratio: skip an update whose mean ratio passes this.
        normalize_advantage: to mean 0 and deviation 1 over all tokens of the iteration.
        whiten_rewards: to deviation 1, keeping the mean.
        aggregation: how token losses are averaged: ``"token"``, ``"sequence"`` or ``"constant"``.
        kl_coef: weight of the KL penalty, per token.
        kl_target: wanted KL in nats per response; the coefficient then adapts. None keeps it fixed.
        kl_horizon: episodes over which the coefficient adapts.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``; None takes k1 in the reward and k2 in the loss, whose gradients are
            the divergence's own (see :mod:`rlhf_gym.agents.common.kl`).
        kl_in: ``"reward"`` (a constant for the update) or ``"loss"`` (through its gradient).
        kl_limit: nats per response beyond which the policy must not go: a rollout beyond it is not learned from, and the
            weights of the last one within it come back. None is off, and keeps no copy of the weights.
        on_kl_limit: what then: ``"stop"`` (the default) ends training, ``"back_off"`` halves the learning rate and goes on
            (``train/kl_back_offs`` counts them; after eight, training ends).
        clip_scores: the score of a response is clipped to plus or minus this before learning; None is off.
        missing_eos_penalty: taken off the score of a response that did not end by itself; None takes nothing.
        missing_eos_score: what such a response gets instead of its score; None leaves it.
        temperature: of sampling, learning and the reference alike.
        top_k: likewise.
        top_p: likewise.
        value_network: ``"shared"`` trunk or a ``"separate"`` network.
        value_start: a reward model, or its folder, whose trunk a separate value network starts from (its head starts near
            zero all the same). It must be fitted on a model built as the policy, with the same tokenizer. None starts from the
            policy.
        collect: ``"auto"`` decodes whole responses where the environment allows it, ``"step"`` always steps it.
        stats_window_size: episodes in ``rollout/ep_rew_mean``.
        tensorboard_log: folder for TensorBoard.
        verbose: 1 prints the logger's tables.
        seed: of everything random; None draws one.
        device: where models given by name are loaded.

    Raises:
        ConfigError: settings that contradict one another, by name and before any work starts.
    """

    def __init__(
        self,
        policy: str = "LMPolicy",
        env: GymEnv | str | None = None,
        *,
        language_model: LanguageModel | str = "embedded",
        reference: LanguageModel | str | None = None,
        lora: Lora | Mapping[str, Any] | None = None,
        learning_rate: float | Schedule = 1e-4,
        learning_rate_decay: str = "constant",
        n_episodes: int | None = None,
        n_epochs: int = 2,
        batch_size: int | None = 16,
        tokens_per_batch: int = 4096,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_high: float | None = None,
        dual_clip: float | None = None,
        clip_range_vf: float | None = 0.2,
        vf_coef: float = 0.1,
        ent_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        max_ratio: float = 10.0,
        normalize_advantage: bool = True,
        whiten_rewards: bool = False,
        aggregation: Aggregation = "token",
        kl_coef: float = 0.15,
        kl_target: float | None = None,
        kl_horizon: int = 10_000,
        kl_estimator: Estimator | None = None,
        kl_in: str = "reward",
        kl_limit: float | None = None,
        on_kl_limit: Action | None = None,
        clip_scores: float | None = None,
        missing_eos_penalty: float | None = None,
        missing_eos_score: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        value_network: ValueNetwork = "shared",
        value_start: RewardModel | str | Path | None = None,
        collect: str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = dict(locals())
        refuse_unknown(type(self), arguments.pop("unknown"), arguments)
        check_settings(arguments, optional=("batch_size",))
        self.settings = settings_of(arguments)
        self.value_network = value_network
        self.value_start = value_start
        self.set_objective(
            kl_coef=kl_coef, kl_target=kl_target, kl_horizon=kl_horizon, kl_estimator=kl_estimator, kl_in=kl_in,
            ent_coef=ent_coef, aggregation=aggregation, target_kl=target_kl, max_ratio=max_ratio,
            clip_scores=clip_scores, missing_eos_penalty=missing_eos_penalty, missing_eos_score=missing_eos_score,
            kl_limit=kl_limit, on_kl_limit=on_kl_limit,
        )  # fmt: skip
        super().__init__(
            policy, env, language_model=language_model, reference=reference, lora=lora, learning_rate=learning_rate,
            learning_rate_decay=learning_rate_decay,
            n_episodes=n_episodes, n_epochs=n_epochs, batch_size=batch_size, tokens_per_batch=tokens_per_batch,
            sampling=Sampling(temperature, top_k, top_p), max_grad_norm=max_grad_norm, collect=collect, seed=seed,
            device=device, verbose=verbose, tensorboard_log=tensorboard_log, stats_window_size=stats_window_size,
            _init_setup_model=False,
        )  # fmt: skip
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.clip_range = clip_range
        self.clip_range_high = clip_range_high
        self.dual_clip = dual_clip
        self.clip_range_vf = clip_range_vf
        self.vf_coef = vf_coef
        self.normalize_advantage = normalize_advantage
        self.whiten_rewards = whiten_rewards
        if _init_setup_model:
            self._setup_model()

    def prepare(self, rollout: Rollout) -> None:
        """KL penalty and score as per-token rewards, then advantages."""
        mask = rollout.mask
        rewards = self.shaped_rewards(rollout)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        rollout.advantages, rollout.returns = gae(
            rewards, rollout.values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda, bootstrap=rollout.bootstrap
        )
        values, returns = rollout.values[mask].numpy(), rollout.returns[mask].numpy()
        self.logger.record("train/explained_variance", float(explained_variance(values, returns)))
        if self.normalize_advantage:
            rollout.advantages = whiten(rollout.advantages, mask)

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Clipped policy and value losses, and the divergence where it is a loss."""
        assert values is not None
        clip = self.clip_range(self._current_progress_remaining) if callable(self.clip_range) else self.clip_range
        policy_loss, clipped = clipped_policy_loss(
            log_probs, self.flat(rollout.log_probs, rows), self.flat(rollout.advantages, rows),
            clip_low=clip, clip_high=self.clip_range_high, dual_clip=self.dual_clip,
        )  # fmt: skip
        value_loss, value_clipped = clipped_value_loss(
            values, self.flat(rollout.values, rows), self.flat(rollout.returns, rows), self.clip_range_vf
        )
        losses = {"policy": policy_loss, "value": value_loss, **self.kl_loss(rollout, rows, log_probs)}
        return losses, {"clipped": clipped.sum(), "value clipped": value_clipped.sum()}

    def coefficient(self, loss: str) -> float:
        """What a loss counts in the total."""
        return self.vf_coef if loss == "value" else super().coefficient(loss)
