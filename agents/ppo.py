"""Proximal policy optimisation for language models (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from rlhf_gym.agents.advantages import gae, whiten
from rlhf_gym.agents.checkpoint import Checkpointed, settings_of
from rlhf_gym.agents.kl import ESTIMATORS, AdaptiveKL, Estimator, FixedKL, kl_estimate
from rlhf_gym.agents.losses import AGGREGATIONS, Aggregation, clipped_policy_loss, clipped_value_loss, token_weights
from rlhf_gym.agents.on_policy import TokenOnPolicyAlgorithm
from rlhf_gym.agents.policy import ValueNetwork
from rlhf_gym.agents.rollout import Rollout
from rlhf_gym.errors import ConfigError, TrainingError
from rlhf_gym.language_model import LanguageModel
from rlhf_gym.sampling import Sampling


class PPO(Checkpointed, TokenOnPolicyAlgorithm):
    """PPO with a per-token KL penalty to a frozen reference, as a stable-baselines3 algorithm. A timestep is a token.

    Args:
        policy: ``"LMPolicy"``.
        env: a :class:`~rlhf_gym.envs.TokenVecEnv` (fast), or any environment of token observations.
        language_model: the model to train (in place), or its name.
        reference: the model KL is measured from, or its name; default a frozen copy of ``language_model``.
        learning_rate: Adam's (epsilon 1e-5), a number or a function of the remaining progress (1 to 0).
        n_episodes: episodes an iteration, a multiple of the number of environments; default one for each.
        n_epochs: passes over an iteration's episodes.
        batch_size: whole episodes a minibatch.
        tokens_per_batch: padded tokens a micro-batch; gradients are accumulated, and do not depend on it.
        gamma: discount per token.
        gae_lambda: lambda of generalised advantage estimation.
        clip_range: the ratio is clipped at ``1 - clip_range`` ...
        clip_range_high: ... and at ``1 + clip_range_high``; default ``clip_range``.
        dual_clip: bound for negative advantages, above 1; None is off.
        clip_range_vf: the value is clipped this far around the rollout's; None is off.
        vf_coef: weight of the value loss.
        ent_coef: weight of the entropy bonus.
        max_grad_norm: the gradient's largest norm.
        target_kl: stop an iteration's learning once the approximate KL between new and old policy passes 1.5 times this.
        max_ratio: skip an update whose mean ratio passes this.
        whiten_advantages: to mean 0 and deviation 1 over all tokens of the iteration.
        whiten_rewards: to deviation 1, keeping the mean.
        aggregation: how token losses are averaged: ``"token"``, ``"sequence"`` or ``"constant"``.
        kl_coef: weight of the KL penalty, per token.
        kl_target: wanted KL in nats per response; the coefficient then adapts. None keeps it fixed.
        kl_horizon: episodes over which the coefficient adapts.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``.
        kl_in: ``"reward"`` (a constant for the update) or ``"loss"`` (through its gradient; k2's is the KL's own).
        missing_eos_penalty: taken off the score of a response that did not end by itself; None takes nothing.
        temperature: of sampling, learning and the reference alike.
        top_k: likewise.
        top_p: likewise.
        value_network: ``"shared"`` trunk or a ``"separate"`` network.
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
        env: GymEnv | None = None,
        *,
        language_model: LanguageModel | str = "embedded",
        reference: LanguageModel | str | None = None,
        learning_rate: float | Schedule = 1e-4,
        n_episodes: int | None = None,
        n_epochs: int = 4,
        batch_size: int = 16,
        tokens_per_batch: int = 4096,
        gamma: float = 1.0,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        clip_range_high: float | None = None,
        dual_clip: float | None = None,
        clip_range_vf: float | None = 0.2,
        vf_coef: float = 0.1,
        ent_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        max_ratio: float = 10.0,
        whiten_advantages: bool = True,
        whiten_rewards: bool = False,
        aggregation: Aggregation = "token",
        kl_coef: float = 0.05,
        kl_target: float | None = None,
        kl_horizon: int = 10_000,
        kl_estimator: Estimator = "k1",
        kl_in: str = "reward",
        missing_eos_penalty: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        value_network: ValueNetwork = "shared",
        collect: str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        self.settings = settings_of(locals())
        _check("clip_range", clip_range, clip_range > 0, "above 0")
        _check("dual_clip", dual_clip, dual_clip is None or dual_clip > 1, "above 1, or None")
        _check("gamma", gamma, 0 <= gamma <= 1, "in [0, 1]")
        _check("gae_lambda", gae_lambda, 0 <= gae_lambda <= 1, "in [0, 1]")
        _check("aggregation", aggregation, aggregation in AGGREGATIONS, f"one of {', '.join(AGGREGATIONS)}")
        _check("kl_estimator", kl_estimator, kl_estimator in ESTIMATORS, f"one of {', '.join(ESTIMATORS)}")
        _check("kl_in", kl_in, kl_in in ("reward", "loss"), "'reward' or 'loss'")
        _check("value_network", value_network, value_network in ("shared", "separate"), "'shared' or 'separate'")
        _check("target_kl", target_kl, target_kl is None or target_kl > 0, "above 0, or None")
        _check("vf_coef", vf_coef, vf_coef >= 0, "at least 0")
        self.value_network = value_network
        _check("kl_coef", kl_coef, kl_coef >= 0, "at least 0")
        _check("kl_target", kl_target, kl_target is None or kl_target > 0, "above 0 nats per response, or None")
        _check("kl_horizon", kl_horizon, kl_horizon >= 1, "at least 1 episode")
        if kl_target is not None and kl_coef == 0:
            raise ConfigError("kl_target needs a kl_coef above 0: the coefficient is multiplied, and 0 stays 0")
        self.kl_controller = FixedKL(kl_coef) if kl_target is None else AdaptiveKL(kl_coef, kl_target, kl_horizon)
        super().__init__(
            policy, env, language_model=language_model, reference=reference, learning_rate=learning_rate,
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
        self.ent_coef = ent_coef
        self.target_kl = target_kl
        self.max_ratio = max_ratio
        self.whiten_advantages = whiten_advantages
        self.whiten_rewards = whiten_rewards
        self.aggregation = aggregation
        self.kl_estimator = kl_estimator
        self.kl_in = kl_in
        self.missing_eos_penalty = missing_eos_penalty
        if _init_setup_model:
            self._setup_model()

    def prepare(self, rollout: Rollout) -> None:
        """KL penalty and score as per-token rewards, then advantages."""
        mask = rollout.mask
        penalty = kl_estimate(rollout.log_probs, rollout.reference_log_probs, self.kl_estimator) * mask
        rewards = rollout.rewards.clone()
        if self.missing_eos_penalty is not None:
            for row, episode in enumerate(rollout.episodes):
                if not episode.ended:
                    rewards[row, len(episode.response_ids) - 1] -= self.missing_eos_penalty
        if self.kl_in == "reward":
            rewards -= self.kl_controller.coef * penalty
        self.logger.record("objective/rlhf_reward", rewards.sum(1).mean().item())
        self.logger.record("objective/non_score_reward", (rewards - rollout.rewards).sum(1).mean().item())
        self.logger.record("objective/kl_coef", self.kl_controller.coef)
        if self.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        rollout.advantages, rollout.returns = gae(
            rewards, rollout.values, mask, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        spread = rollout.returns[mask].var(unbiased=False)
        residual = (rollout.returns - rollout.values)[mask].var(unbiased=False)
        self.logger.record("train/explained_variance", (1 - residual / (spread + 1e-8)).item())
        if self.whiten_advantages:
            rollout.advantages = whiten(rollout.advantages, mask)
        kl = ((rollout.log_probs - rollout.reference_log_probs) * mask).sum(1).mean().item()
        self.kl_controller.update(kl, len(rollout.episodes))

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on one minibatch."""
        lengths = torch.tensor([rollout.lengths[i] for i in rows])
        tokens = int(lengths.sum())
        limit = self.policy.limits.max_tokens
        weight_of = dict(zip(rows, token_weights(lengths, self.aggregation, constant_length=limit), strict=True))
        sums = dict.fromkeys(("policy", "value", "entropy", "clip", "value_clip", "kl", "ratio", "ratio_square"), 0.0)
        for micro, log_probs, entropies, values in self.forward_minibatch(rollout, rows):
            assert values is not None
            weights = torch.cat([weight_of[i].expand(rollout.lengths[i]) for i in micro]).to(self.device)
            old_log_probs = self.flat(rollout.log_probs, micro)
            policy_loss, clipped = clipped_policy_loss(
                log_probs, old_log_probs, self.flat(rollout.advantages, micro),
                clip_low=self.clip_range, clip_high=self.clip_range_high, dual_clip=self.dual_clip,
            )  # fmt: skip
            value_loss, value_clipped = clipped_value_loss(
                values, self.flat(rollout.values, micro), self.flat(rollout.returns, micro), self.clip_range_vf
            )
            loss = (policy_loss + self.vf_coef * value_loss - self.ent_coef * entropies) * weights
            if self.kl_in == "loss":
                reference = self.flat(rollout.reference_log_probs, micro)
                loss = loss + self.kl_controller.coef * kl_estimate(log_probs, reference, self.kl_estimator) * weights
            self._guard(policy=policy_loss, value=value_loss, entropy=entropies)
            loss.sum().backward()
            ratio = (log_probs.detach() - old_log_probs).exp()
            for name, amount in {
                "policy": (policy_loss * weights).sum(), "value": (value_loss * weights).sum(),
                "entropy": entropies.sum() / tokens, "clip": clipped.float().sum() / tokens,
                "value_clip": value_clipped.float().sum() / tokens,
                "kl": kl_estimate(old_log_probs, log_probs.detach(), "k3").sum() / tokens,
                "ratio": ratio.sum() / tokens, "ratio_square": ratio.square().sum() / tokens,
            }.items():  # fmt: skip
                sums[name] += float(amount.detach())
        self.note(
            **{
                "loss/policy_avg": sums["policy"], "loss/value_avg": sums["value"],
                "policy/entropy_avg": sums["entropy"], "policy/clipfrac_avg": sums["clip"],
                "policy/approxkl_avg": sums["kl"], "val/clipfrac_avg": sums["value_clip"], "val/ratio": sums["ratio"],
                "val/ratio_var": max(0.0, sums["ratio_square"] - sums["ratio"] ** 2),
                "train/policy_gradient_loss": sums["policy"], "train/value_loss": sums["value"],
                "train/entropy_loss": -sums["entropy"], "train/clip_fraction": sums["clip"], "train/approx_kl": sums["kl"],
            }
        )  # fmt: skip
        if sums["ratio"] > self.max_ratio:
            self.policy.optimizer.zero_grad(set_to_none=True)
            self.note(**{"policy/skipped_updates": 1.0})
            return True
        if self.target_kl is not None and sums["kl"] > 1.5 * self.target_kl:
            self.policy.optimizer.zero_grad(set_to_none=True)
            return False
        self.step_optimizer()
        return True

    def _guard(self, **losses: torch.Tensor) -> None:
        """Refuse losses that are not finite, by name."""
        for name, loss in losses.items():
            if not torch.isfinite(loss).all():
                raise TrainingError(
                    f"the {name} loss is not finite in iteration {self.iteration + 1} "
                    f"({int((~torch.isfinite(loss)).sum())} of {loss.numel()} tokens); the last checkpoint is untouched. "
                    "Lower the learning rate, or look at the rewards' scale."
                )

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond weights to go on exactly."""
        return {**super().state(), "kl_coef": self.kl_controller.coef}

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`."""
        super().restore(state)
        self.kl_controller.coef = float(state["kl_coef"])


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"{name} must be {expected}, got {value!r}")
