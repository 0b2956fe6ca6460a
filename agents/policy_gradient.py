"""What every policy-gradient agent shares: the KL penalty, the shaped reward, a minibatch's losses, their figures."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_gym.agents.common.checkpoint import Checkpointed
from rlhf_gym.agents.common.kl import AdaptiveKL, Estimator, FixedKL, KLController, kl_estimate
from rlhf_gym.agents.common.kl_limit import Action, KLLimit
from rlhf_gym.agents.common.losses import Aggregation, token_weights
from rlhf_gym.agents.common.metrics import check_finite, ratio_metrics
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.scores import shape_scores
from rlhf_gym.agents.on_policy import TokenOnPolicyAlgorithm

Terms = dict[str, Tensor]


class PolicyGradient(Checkpointed, TokenOnPolicyAlgorithm):
    """Base of the agents that follow the gradient of a reward: write ``prepare`` (advantages) and ``losses``."""

    # For agents that do not have the setting.
    aggregation: Aggregation = "token"
    target_kl: float | None = None
    max_ratio: float = math.inf
    clip_scores: float | None = None
    missing_eos_penalty: float | None = None
    missing_eos_score: float | None = None
    kl_coef: float = 0.0
    kl_target: float | None = None
    kl_horizon: float = math.inf
    kl_estimator: Estimator = "k1"  # None until set up, where the setting is
    kl_in: str = "reward"
    kl_limit: float | None = None
    on_kl_limit: Action | None = None
    loss_kl_estimator: ClassVar[Estimator] = "k2"

    def _setup_model(self) -> None:
        self.kl_controller: KLController = FixedKL(self.kl_coef)
        if self.kl_target is not None:
            self.kl_controller = AdaptiveKL(self.kl_coef, self.kl_target, self.kl_horizon)
        self.kl_estimator = self.kl_estimator or ("k1" if self.kl_in == "reward" else self.loss_kl_estimator)
        self.kl_guard = KLLimit(self.kl_limit, self.on_kl_limit)
        super()._setup_model()

    def train(self) -> None:
        """Learn from the rollout, unless the policy that wrote it has run away (see :mod:`rlhf_gym.agents.common.kl_limit`).

        Nor is there anything to learn from a rollout all of whose rewards failed, and were to be skipped.
        """
        rollout = self.rollout
        assert rollout is not None
        any_scored = len(rollout.episodes) > 0
        within = any_scored and self.kl_guard.holds(
            response_kl(rollout), self.policy, f"iteration {self.iteration + 1}"
        )
        if self.kl_guard.nats is not None:
            self.logger.record("train/kl_back_offs", self.kl_guard.back_offs)
        if within:
            super().train()
            return
        self._update_learning_rate(self.policy.optimizer)
        self.policy.forget()
        self._statistics = {}
        self.finish(rollout)
        self.stopped = self.kl_guard.stopped

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for group in optimizer.param_groups:
                group["lr"] *= self.kl_guard.rate
                self.logger.record("train/learning_rate", group["lr"])

    def scores(self, rollout: Rollout) -> Tensor:
        """What the environment paid, with what the settings add and take off, token by token: float32 ``[B, R]``."""
        return shape_scores(
            rollout, clip=self.clip_scores, missing_eos_penalty=self.missing_eos_penalty,
            missing_eos_score=self.missing_eos_score,
        )  # fmt: skip

    def shaped_rewards(self, rollout: Rollout) -> Tensor:
        """Scores, and the KL penalty where it is part of the reward, token by token: float32 ``[B, R]``."""
        rewards = self.scores(rollout)
        penalty = torch.zeros_like(rewards)
        if self.kl_in == "reward":
            kl = kl_estimate(rollout.log_probs, rollout.reference_log_probs, self.kl_estimator)
            penalty = self.kl_controller.coef * kl * rollout.mask
        rewards = rewards - penalty
        self.logger.record("objective/rlhf_reward", rewards.sum(1).mean().item())
        self.logger.record("objective/non_score_reward", -penalty.sum(1).mean().item())
        self.logger.record("objective/kl_coef", self.kl_controller.coef)
        return rewards

    @abstractmethod
    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """A micro-batch's losses and figures.

        Args:
            rollout: the episodes, advantages filled in.
            rows: the micro-batch's episodes, whole.
            log_probs: ``[N]``, of their response tokens under the policy now, row after row.
            values: ``[N]``, likewise; None without a value head.

        Returns:
            Losses by name, ``[N]`` each, one of them ``"policy"``; and figures by name, summed over tokens.
        """

    def coefficient(self, loss: str) -> float:
        """What a loss counts in the total."""
        return {"policy": 1.0, "entropy": self.ent_coef, "kl": self.kl_controller.coef}[loss]

    def kl_loss(self, rollout: Rollout, rows: list[int], log_probs: Tensor) -> Terms:
        """The divergence as a loss by name, where it is one; else nothing."""
        if self.kl_in != "loss":
            return {}
        return {"kl": kl_estimate(log_probs, self.flat(rollout.reference_log_probs, rows), self.kl_estimator)}

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One optimizer step on one minibatch."""
        lengths = torch.tensor([rollout.lengths[i] for i in rows])
        # A micro-batch adds up what its tokens weigh in the whole minibatch, so how it is cut changes nothing.
        weights = token_weights(lengths, self.aggregation, constant_length=self.policy.limits.max_new_tokens)
        weight_of, share = dict(zip(rows, weights, strict=True)), 1 / int(lengths.sum())
        sums: Terms = {}
        for micro, log_probs, entropies, values in self.forward_minibatch(rollout, rows, entropy=self.ent_coef > 0):
            weight = torch.cat([weight_of[i].expand(rollout.lengths[i]) for i in micro]).to(self.device)
            terms, figures = self.losses(rollout, micro, log_probs, values)
            losses = {name: (loss * weight).sum() for name, loss in terms.items()}
            losses["entropy"] = -(entropies * weight).sum()
            check_finite({f"the {name} loss is": loss.detach() for name, loss in losses.items()}, self.where)
            total = torch.stack([losses[name] * self.coefficient(name) for name in losses]).sum()
            total.backward()  # type: ignore[no-untyped-call]
            figures |= ratio_metrics(log_probs, self.flat(rollout.log_probs, micro))
            figures["entropy"] = entropies.detach().sum()
            amounts = {name: amount * share for name, amount in figures.items()}
            amounts |= {f"{name} loss": loss.detach() for name, loss in losses.items()} | {"loss": total.detach()}
            sums = {name: sums.get(name, 0) + amount for name, amount in amounts.items()}
        # One transfer for all: each .item() would wait for the device.
        table = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        self.note(**{name: sign * table[key] for name, (sign, key) in FIGURES.items() if key in table})
        stop = self.target_kl is not None and table["k3"] > 1.5 * self.target_kl
        skip = table["ratio"] > self.max_ratio
        self.note(**{"policy/skipped_updates": float(stop or skip)})
        if stop or skip:
            self.policy.optimizer.zero_grad(set_to_none=True)
            return not stop
        self.step_optimizer()
        return True

    def after_learning(self, rollout: Rollout) -> None:
        """Adapt the KL coefficient to the divergence measured in this rollout."""
        self.kl_controller.update(response_kl(rollout), len(rollout.episodes))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold beyond weights to go on exactly."""
        # The controller moves only after learning, so this fits the state at a rollout's start, too.
        return {**super().state(), "kl_coef": self.kl_controller.coef, "kl_back_offs": self.kl_guard.back_offs}

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`."""
        super().restore(state)
        self.kl_controller.coef = float(state["kl_coef"])
        self.kl_guard.back_offs = int(state.get("kl_back_offs", 0))


def response_kl(rollout: Rollout) -> float:
    """The k1 estimate in nats per response, the mean over a rollout's responses."""
    return float(((rollout.log_probs - rollout.reference_log_probs) * rollout.mask).sum(1).mean())


# A minibatch's figures under TRL's names and stable-baselines3's, with their sign.
FIGURES: dict[str, tuple[int, str]] = {
    "loss/policy_avg": (1, "policy loss"), "loss/value_avg": (1, "value loss"), "loss/kl_avg": (1, "kl loss"),
    "policy/entropy_avg": (1, "entropy"), "policy/clipfrac_avg": (1, "clipped"), "policy/approxkl_avg": (1, "k2"),
    "val/clipfrac_avg": (1, "value clipped"), "val/ratio": (1, "ratio"), "train/loss": (1, "loss"),
    "train/policy_gradient_loss": (1, "policy loss"), "train/value_loss": (1, "value loss"),
    "train/entropy_loss": (-1, "entropy"), "train/clip_fraction": (1, "clipped"), "train/approx_kl": (1, "k3"),
}  # fmt: skip
