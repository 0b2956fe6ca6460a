"""What on-policy agents without a value function share: groups of responses, and a loss that a baseline alone steadies."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor

from rlhf_gym.agents.common.checkpoint import settings_of
from rlhf_gym.agents.common.kl import Estimator
from rlhf_gym.agents.common.kl_limit import Action
from rlhf_gym.agents.common.losses import Aggregation, clipped_policy_loss
from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.agents.common.scores import overlong_penalty
from rlhf_gym.agents.common.settings import check_settings, refuse_unknown
from rlhf_gym.agents.policy_gradient import PolicyGradient, Terms
from rlhf_gym.errors import ConfigError, TrainingError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.lora import Lora
from rlhf_gym.lm.sampling import Sampling


class CriticFree(PolicyGradient):
    """Base of the agents without a value function: a subclass says how rewards become advantages.

    Its constructor takes its own settings, and hands the others on; this is what they mean. Where the algorithms differ in a
    default, they say so.

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's; with groups, one whose slots can be given the same prompts (``make_sb3_env``).
        language_model: the model to train (in place), or its name.
        reference: the model KL is measured from, or its name; default a frozen copy of ``language_model``.
        lora: ``{"rank": 8, "alpha": 16, "targets": [...]}``, each of which may be left out (:class:`~rlhf_gym.lm.lora.Lora`):
            an adapter learns in the place of the model's weights, which are frozen in place and are the reference, too. It
            wants a learning rate some ten times as high. None: all weights learn.
        learning_rate: Adam's.
        learning_rate_decay: ``"constant"``, or ``"linear"`` to 0 at ``total_timesteps``.
        n_episodes: episodes an iteration, a multiple of the number of environments; default one for each.
        group_size: neighbouring slots that answer the same prompt; divides the number of environments.
        n_epochs: passes over an iteration's episodes; more than one needs a ``clip_range``.
        batch_size: whole episodes a minibatch; None is all of them, one optimizer step a pass.
        tokens_per_batch: padded tokens a micro-batch; changes memory and speed only.
        clip_range: the ratio is clipped at ``1 - clip_range`` (a number or a function of the remaining progress); None takes
            the plain policy gradient instead.
        clip_range_high: and at ``1 + clip_range_high``; default ``clip_range``.
        dual_clip: bound for negative advantages, above 1; None is off.
        ent_coef: weight of the entropy bonus.
        max_grad_norm: the gradient's largest norm.
        target_kl: stop an iteration's learning once the approximate KL between new and old policy passes 1.5 times this.
        max_ratio: skip an update whose mean ratio passes this.
        aggregation: how token losses are averaged: ``"token"``, ``"sequence"`` or ``"constant"``.
        kl_coef: weight of the KL penalty, per token.
        kl_target: wanted KL in nats per response; the coefficient then adapts. None keeps it fixed.
        kl_horizon: episodes over which the coefficient adapts.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``; None takes k1 in the reward and k2 in the loss.
        kl_in: ``"reward"`` or ``"loss"``.
        kl_limit: nats per response beyond which the policy must not go: a rollout beyond it is not learned from, and the
            weights of the last one within it come back. None is off, and keeps no copy of the weights.
        on_kl_limit: what then: ``"stop"`` (the default) ends training, ``"back_off"`` halves the learning rate and goes on
            (``train/kl_back_offs`` counts them; after eight, training ends).
        clip_scores: the score of a response is clipped to plus or minus this before learning; None is off.
        missing_eos_penalty: taken off the score of a response that did not end by itself.
        missing_eos_score: what such a response gets instead of its score.
        overlong_buffer: charge for the last so many tokens before the length limit (DAPO's soft overlong punishment);
            None is off.
        temperature: of sampling, learning and the reference alike.
        top_k: likewise.
        top_p: likewise.
        collect: ``"auto"`` decodes whole responses where the environment allows it, ``"step"`` always steps it.
        stats_window_size: episodes in ``rollout/ep_rew_mean``.
        tensorboard_log: folder for TensorBoard.
        verbose: 1 prints the logger's tables.
        seed: of everything random; None draws one.
        device: where models given by name are loaded.
        own: a subclass's own settings by name, to be checked and saved with the others.

    Raises:
        ConfigError: settings that contradict one another, by name and before any work starts.
    """

    min_group_size = 1
    needs_ratio = True  # False where a loss is right for samples of any policy: imitation, pairs

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
        group_size: int = 1,
        n_epochs: int = 1,
        batch_size: int | None = None,
        tokens_per_batch: int = 4096,
        clip_range: float | Schedule | None = None,
        clip_range_high: float | None = None,
        dual_clip: float | None = None,
        ent_coef: float = 0.0,
        max_grad_norm: float = 1.0,
        target_kl: float | None = None,
        max_ratio: float = 10.0,
        aggregation: Aggregation = "token",
        kl_coef: float = 0.15,
        kl_target: float | None = None,
        kl_horizon: float = 10_000,
        kl_estimator: Estimator | None = None,
        kl_in: str = "reward",
        kl_limit: float | None = None,
        on_kl_limit: Action | None = None,
        clip_scores: float | None = None,
        missing_eos_penalty: float | None = None,
        missing_eos_score: float | None = None,
        overlong_buffer: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        collect: str = "auto",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        own: Mapping[str, Any] | None = None,
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        arguments = dict(locals())
        refuse_unknown(type(self), arguments.pop("unknown"), arguments)
        arguments |= arguments.pop("own") or {}
        check_settings(arguments, optional=("batch_size", "clip_range"))
        self._check_critic_free(arguments)
        self.settings = settings_of(arguments)
        self.set_objective(
            kl_coef=kl_coef, kl_target=kl_target, kl_horizon=kl_horizon, kl_estimator=kl_estimator, kl_in=kl_in,
            ent_coef=ent_coef, aggregation=aggregation, target_kl=target_kl, max_ratio=max_ratio,
            clip_scores=clip_scores, missing_eos_penalty=missing_eos_penalty, missing_eos_score=missing_eos_score,
            kl_limit=kl_limit, on_kl_limit=on_kl_limit,
        )  # fmt: skip
        self.group_size = group_size
        self.clip_range = clip_range
        self.clip_range_high = clip_range_high
        self.dual_clip = dual_clip
        self.overlong_buffer = overlong_buffer
        super().__init__(
            policy, env, language_model=language_model, reference=reference, lora=lora, learning_rate=learning_rate,
            learning_rate_decay=learning_rate_decay, n_episodes=n_episodes, n_epochs=n_epochs, batch_size=batch_size,
            tokens_per_batch=tokens_per_batch, sampling=Sampling(temperature, top_k, top_p),
            max_grad_norm=max_grad_norm, collect=collect, seed=seed, device=device, verbose=verbose,
            tensorboard_log=tensorboard_log, stats_window_size=stats_window_size, _init_setup_model=False,
        )  # fmt: skip
        if _init_setup_model:
            self._setup_model()

    def _check_critic_free(self, settings: Mapping[str, Any]) -> None:
        size, name = settings["group_size"], type(self).__name__
        if size < self.min_group_size:
            raise ConfigError(
                f"{name} compares the responses to one prompt: group_size must be at least {self.min_group_size}, got {size}"
            )
        if settings["n_episodes"] is not None and settings["n_episodes"] % size:
            raise ConfigError(f"group_size ({size}) must divide n_episodes ({settings['n_episodes']})")
        if settings["clip_range"] is None:
            unclipped = [key for key in ("clip_range_high", "dual_clip") if settings[key] is not None]
            if settings["n_epochs"] > 1 and self.needs_ratio:
                unclipped.append("n_epochs above 1")
            if unclipped:
                raise ConfigError(
                    f"{name} without a clip_range cannot have {', '.join(unclipped)}; give it a clip_range"
                )

    def prepare(self, rollout: Rollout) -> None:
        """Shaped rewards, then advantages."""
        check_groups(rollout, self.group_size)
        rollout.advantages = self.advantages(rollout, self.shaped_rewards(rollout)) * rollout.mask

    def scores(self, rollout: Rollout) -> Tensor:
        """What the environment paid, less what is charged for length."""
        scores = super().scores(rollout)
        if self.overlong_buffer is not None:
            lengths = torch.tensor(rollout.lengths)
            limit = self.policy.limits.max_new_tokens
            penalty = overlong_penalty(lengths, limit, min(self.overlong_buffer, limit))
            scores[torch.arange(len(lengths)), lengths - 1] += penalty
        return scores

    def clip_now(self) -> float:
        """The clip range of this iteration."""
        assert self.clip_range is not None
        return self.clip_range(self._current_progress_remaining) if callable(self.clip_range) else self.clip_range

    @abstractmethod
    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Advantages of every token.

        Args:
            rollout: the episodes; groups are neighbours.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, R]``, or ``[B, 1]`` for one advantage a response; what stands at padding does not count.
        """

    def losses(
        self, rollout: Rollout, rows: list[int], log_probs: Tensor, values: Tensor | None
    ) -> tuple[Terms, Terms]:
        """The policy's loss, and the divergence where it is a loss."""
        advantages = self.flat(rollout.advantages, rows)
        if self.clip_range is None:
            return {"policy": -advantages * log_probs, **self.kl_loss(rollout, rows, log_probs)}, {}
        loss, clipped = clipped_policy_loss(
            log_probs, self.flat(rollout.log_probs, rows), advantages, clip_low=self.clip_now(),
            clip_high=self.clip_range_high, dual_clip=self.dual_clip,
        )  # fmt: skip
        return {"policy": loss, **self.kl_loss(rollout, rows, log_probs)}, {"clipped": clipped.sum()}


def check_groups(rollout: Rollout, size: int) -> None:
    """Each group of neighbours answers one prompt.

    Raises:
        TrainingError: one does not, since somebody has seeded the environment's slots one by one.
    """
    prompts = [e.prompt_ids for e in rollout.episodes]
    for first in range(0, len(prompts), size):
        if any(prompt != prompts[first] for prompt in prompts[first : first + size]):
            raise TrainingError(
                f"episodes {first} to {first + size - 1} should answer one prompt, and do not: seed the environment with "
                "env.seed(...) only, which keeps groups together"
            )
