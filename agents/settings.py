"""What every algorithm on token sequences can be told, checked before any work starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, Self

from rlhf_gym.agents.kl import ESTIMATORS, AdaptiveKL, Estimator, FixedKL, KLController
from rlhf_gym.agents.losses import AGGREGATIONS, Aggregation
from rlhf_gym.errors import ConfigError
from rlhf_gym.sampling import Sampling

Schedule = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hyper-parameters that all algorithms share. Defaults suit models of 1 to 10 million parameters.

    Attributes:
        learning_rate: Adam's; a float, or a function of the progress remaining (1 to 0). For models of 100 million parameters
            and more, 1e-5 to 3e-6.
        learning_rate_decay: ``"constant"``, or ``"linear"`` to 0 at ``total_timesteps``.
        n_episodes: responses per rollout.
        batch_size: responses per minibatch (one step of the optimiser each).
        n_epochs: passes over a rollout.
        micro_batch_tokens: at most this many padded tokens go through the model at once; the gradient of a minibatch does
            not depend on it, memory and speed do.
        max_grad_norm: the gradient is scaled down to this norm.
        target_kl: stop learning from a rollout when the new policy's divergence from the one that wrote it passes 1.5 times
            this many nats per token; None never stops.
        ratio_threshold: skip a minibatch whose mean ratio is above this (TRL uses 10); it has run away from its samples.
        gamma: discount.
        ent_coef: price of entropy, per token, in the loss.
        kl_coef: price of a nat of divergence from the reference; the first one, if ``kl_target`` is given.
        kl_target: nats per response to keep to by adapting the coefficient; None keeps the coefficient.
        kl_horizon: episodes over which it adapts; see :class:`~rlhf_gym.agents.kl.AdaptiveKL`.
        kl_in: ``"reward"``: each token's reward is less ``kl_coef`` times its estimate, a constant to the gradient;
            ``"loss"``: the estimate is differentiated.
        kl_estimator: ``"k1"``, ``"k2"`` or ``"k3"``; see :mod:`rlhf_gym.agents.kl` for which is right where. None takes
            k1 in the reward and k2 in the loss, whose gradients are those of the divergence.
        loss_aggregation: ``"token"``, ``"sequence"`` or ``"constant"`` (over the length limit); see
            :func:`~rlhf_gym.agents.losses.token_weights`.
        temperature: of sampling; divides the logits in learning and in the reference too.
        top_k: see :class:`~rlhf_gym.sampling.Sampling`; in learning and in the reference too.
        top_p: likewise.
        missing_eos_penalty: taken off the score of a response that the length limit cut.
        missing_eos_score: replaces that score.
        clip_scores: scores are clipped to plus or minus this before learning.
        collection: ``"fast"`` decodes whole responses, ``"step"`` steps the environment token by token, ``"auto"`` takes the
            fast path where the environment offers it. Same seeds, same trajectories.

    Raises:
        ConfigError: a value out of range, or two that contradict each other; the message names them.
    """

    learning_rate: float | Schedule = 1e-4
    learning_rate_decay: Literal["constant", "linear"] = "constant"
    n_episodes: int = 64
    batch_size: int = 16
    n_epochs: int = 4
    micro_batch_tokens: int = 8192
    max_grad_norm: float = 1.0
    target_kl: float | None = None
    ratio_threshold: float = 10.0
    gamma: float = 1.0
    ent_coef: float = 0.0
    kl_coef: float = 0.05
    kl_target: float | None = None
    kl_horizon: float = 10_000
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: Estimator | None = None
    loss_aggregation: Aggregation = "token"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    missing_eos_penalty: float | None = None
    missing_eos_score: float | None = None
    clip_scores: float | None = None
    collection: Literal["auto", "fast", "step"] = "auto"

    def __post_init__(self) -> None:
        self._whole("n_episodes", "batch_size", "n_epochs", "micro_batch_tokens")
        self._above_zero("max_grad_norm", "ratio_threshold", "kl_horizon", "target_kl", "kl_target", "clip_scores")
        self._at_least_zero("ent_coef", "kl_coef", "missing_eos_penalty")
        self._fraction("gamma")
        self._one_of("learning_rate_decay", "constant", "linear")
        self._one_of("kl_in", "reward", "loss")
        self._one_of("kl_estimator", None, *ESTIMATORS)
        self._one_of("loss_aggregation", *AGGREGATIONS)
        self._one_of("collection", "auto", "fast", "step")
        if not callable(self.learning_rate):
            self._above_zero("learning_rate")
        elif self.learning_rate_decay != "constant":
            raise ConfigError("learning_rate is a schedule already; leave learning_rate_decay at 'constant'")
        if self.batch_size > self.n_episodes:
            raise ConfigError(
                f"batch_size ({self.batch_size} responses per minibatch) must not be larger than n_episodes "
                f"({self.n_episodes} responses per rollout)"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ConfigError("kl_target adapts kl_coef by factors, and kl_coef is 0: start it above 0, e.g. 0.15")
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ConfigError(
                "kl_in='loss' with kl_estimator='k1' holds nothing back (the gradient of k1 has mean 0); take 'k2', whose "
                "gradient is the divergence's, or 'k3'"
            )
        if self.missing_eos_penalty is not None and self.missing_eos_score is not None:
            raise ConfigError("missing_eos_penalty and missing_eos_score are alternatives; give one of them")
        if self.missing_eos_score is not None and not math.isfinite(self.missing_eos_score):
            raise ConfigError(f"missing_eos_score must be finite, got {self.missing_eos_score}")
        _ = self.sampling  # checks temperature, top_k and top_p

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn, in collecting, in learning and in the reference."""
        return Sampling(self.temperature, self.top_k, self.top_p)

    @property
    def estimator(self) -> Estimator:
        """The KL estimator in use."""
        return self.kl_estimator or ("k1" if self.kl_in == "reward" else "k2")

    def kl_controller(self) -> KLController:
        """A new controller of the KL coefficient."""
        if self.kl_target is None:
            return FixedKL(self.kl_coef)
        return AdaptiveKL(self.kl_coef, self.kl_target, self.kl_horizon)

    @classmethod
    def build(cls, settings: Self | None, options: dict[str, Any]) -> Self:
        """Settings with some of them given by name.

        Raises:
            ConfigError: no setting of that name (says the nearest), or a value that does not fit.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise ConfigError(f"there is no setting {name!r}; {hint}expected one of {', '.join(known)}")
        if settings is None:
            return cls(**options)
        if not isinstance(settings, cls):
            raise ConfigError(f"settings must be {cls.__name__}, got {type(settings).__name__}")
        return replace(settings, **options)

    def _number(self, name: str) -> float | None:
        value = getattr(self, name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{name} must be a finite number, got {value!r}")
        return value

    def _whole(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")

    def _above_zero(self, *names: str) -> None:
        for name in names:
            if (value := self._number(name)) is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, got {value}")

    def _at_least_zero(self, *names: str) -> None:
        for name in names:
            if (value := self._number(name)) is not None and value < 0:
                raise ConfigError(f"{name} must be 0 or more, got {value}")

    def _fraction(self, *names: str) -> None:
        for name in names:
            if (value := self._number(name)) is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {value}")

    def _one_of(self, name: str, *allowed: str | None) -> None:
        if getattr(self, name) not in allowed:
            shown = ", ".join(repr(a) for a in allowed)
            raise ConfigError(f"{name} must be one of {shown}; got {getattr(self, name)!r}")
