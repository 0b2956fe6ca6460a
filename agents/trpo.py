"""Trust-region policy optimisation over tokens (Schulman et al. 2015): natural gradient steps of bounded KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf_gym.agents.common.forward import episode_batches, episode_log_probs, pack_episodes
from rlhf_gym.agents.common.losses import token_weights
from rlhf_gym.agents.common.metrics import check_finite
from rlhf_gym.agents.common.rollout import Rollout, unpack_masks
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import (
    ActorCriticSettings,
    CollectSettings,
    EpochSettings,
    ValueClipSettings,
)
from rlhf_gym.agents.ppo import PPO
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.log_probs import masked_logits
from rlhf_gym.lm.sampling import behaviour_log_probs
from rlhf_gym.lm.sequences import response_positions

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import TRPOKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class TRPOSettings(ActorCriticSettings, EpochSettings, CollectSettings, ValueClipSettings):
    """The settings of TRPO: those of an actor and a critic, and of the natural step."""

    max_kl: float = setting(
        0.03,
        "largest KL between old and new policy per iteration, in nats per token; `on_kl_limit: back_off` halves it",
        above=0, source="Schulman et al. 2015",
    )  # fmt: skip
    cg_steps: int = setting(
        10, "steps of conjugate gradient; each costs about three passes over the iteration's episodes", at_least=1
    )
    cg_damping: float = setting(0.1, "added to the diagonal of the Fisher matrix", at_least=0)
    sub_sampling_factor: int = setting(
        1,
        "the Fisher matrix is estimated from one in this many episodes; the gradient and the KL always use all of them",
        at_least=1, source="Schulman et al. 2015, appendix C.1",
    )  # fmt: skip
    line_search_steps: int = setting(10, "sizes of the step that are tried, each half of the one before", at_least=1)
    n_epochs: int = setting(4, "passes of the value function over an iteration's episodes")
    batch_size: int | None = setting(16, "whole episodes per minibatch of the value function; None takes all of them")
    learning_rate: float | Schedule = setting(3e-4, "learning rate of the value function (AdamW)")
    max_grad_norm: float = setting(1.0, "the norm that gradients of the value function are clipped to")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision != "float32":
            raise ConfigError(
                "TRPO computes in float32, since it differentiates twice and compares small steps; got "
                f"precision={self.precision!r}"
            )


class TRPO(PPO):
    """TRPO: one step per iteration along ``F^-1 g``, scaled so that the policy moves by at most ``max_kl``.

    ``g`` is the gradient of the surrogate ``mean(ratio * A)`` and ``F`` the Fisher matrix, the Hessian of the exact KL
    ``KL(old || new)`` over the whole vocabulary, mean over tokens (Schulman et al. 2015, equations 14 and 17, appendix C).
    Conjugate gradient solves ``(F + damping) x = g``; the step is ``sqrt(2 max_kl / x^T F x) x``, halved until the surrogate
    is better and the KL within its limit. If that never happens, the policy stays as it is.

    The value function is a network of its own, which Adam trains: the natural step moves the policy alone.

    Args:
        policy: ``"LMPolicy"``.
        env: as PPO's.
        settings: see :class:`TRPOSettings`. With ``top_k`` or ``top_p`` the KL is that within the old policy's set.

    Raises:
        ConfigError: as PPO.
    """

    Settings: ClassVar[type[AgentSettings]] = TRPOSettings

    max_kl: float
    cg_steps: int
    cg_damping: float
    sub_sampling_factor: int
    line_search_steps: int
    value_network = "separate"

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[TRPOKeywords],
        ) -> None: ...

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One step of the value function on a minibatch; the policy waits for :meth:`after_learning`.

        Args:
            rollout: the episodes, returns filled in.
            rows: the minibatch's.

        Returns:
            True: learning from this rollout always goes on.
        """
        self.value_update(rollout, rows)
        return True

    def coefficient(self, loss: str) -> float:
        """The weight of a loss in its step; the value function has steps of its own."""
        return 1.0 if loss == "value" else super().coefficient(loss)

    def after_learning(self, rollout: Rollout) -> None:
        """Take the policy's step, unless the value function warms up, then adapt the KL coefficient."""
        if not self.warming_up:
            self.where = f"iteration {self.iteration + 1}, policy step"
            self.policy_step(rollout)
        super().after_learning(rollout)

    def policy_step(self, rollout: Rollout) -> bool:
        """Move the policy along the natural gradient.

        Returns:
            False if no step was accepted; the policy is then as it was.
        """
        parameters = self.policy_parameters()
        before, gradient = self.surrogate(rollout, gradient=True)
        check_finite({"the policy's gradient is": gradient}, self.where)

        direction, curvature = self._natural_direction(rollout, gradient)
        metrics = {"loss/policy_avg": -before, "policy/accepted": 0.0, "policy/kl_step": 0.0, "policy/improvement": 0.0}
        if curvature <= 0 or not bool(direction.any()):  # no gradient: nothing to gain anywhere
            self.record(**metrics)
            return False
        radius = self.max_kl * self.kl_guard.rate
        step = (2 * radius / curvature) ** 0.5 * direction
        old = self.policy.language_model.frozen_copy()
        start = flatten([p.detach() for p in parameters])
        for halvings in range(self.line_search_steps):
            assign(parameters, start + 0.5**halvings * step)
            after, _ = self.surrogate(rollout)
            moved = self.mean_kl(rollout, old)
            if after > before and moved <= radius:  # False for NaN
                metrics |= {"policy/accepted": 1.0, "policy/kl_step": moved, "policy/improvement": after - before}
                self.record(**metrics, **{"policy/halvings": float(halvings), "train/approx_kl": moved})
                return True
        assign(parameters, start)
        self.record(**metrics)
        return False

    def _natural_direction(self, rollout: Rollout, gradient: Tensor) -> tuple[Tensor, float]:
        """``x`` of ``(F + damping) x = gradient``, ``[P]``, and ``x F x``; the graph that ``F`` may keep ends here."""
        fisher = self.fisher(rollout)
        direction = conjugate_gradient(lambda v: fisher(v) + self.cg_damping * v, gradient, self.cg_steps)
        return direction, float(direction @ fisher(direction))

    def policy_parameters(self) -> list[Tensor]:
        """The language model's weights that learn, each in its own shape; together they are the ``P`` of a vector ``[P]``."""
        return [p for p in self.policy.language_model.model.parameters() if p.requires_grad]

    def surrogate(self, rollout: Rollout, *, gradient: bool = False) -> tuple[float, Tensor]:
        """The mean of ``ratio * A``, less the KL where it is a loss; and its gradient, if asked for.

        Args:
            rollout: the episodes.
            gradient: also return the gradient.

        Returns:
            The mean, and the gradient ``[P]`` over the weights that learn; ``[0]`` if it was not asked for.
        """
        parameters = self.policy_parameters()
        weights = token_weights(
            torch.tensor(rollout.lengths), self.aggregation, constant_length=self.policy.limits.max_new_tokens
        )
        value, slope = 0.0, torch.zeros(sum(p.numel() for p in parameters) if gradient else 0, device=self.device)
        for rows in self._batches(rollout, range(len(rollout.episodes))):
            with torch.set_grad_enabled(gradient):
                logs, _ = episode_log_probs(
                    self.policy, self.policy.language_model, [rollout.episodes[i] for i in rows]
                )
                gain = torch.exp(logs - self.flat(rollout.log_probs, rows)) * self.flat(rollout.advantages, rows)
                for name, loss in self.kl_loss(rollout, rows, logs).items():
                    gain = gain - self.coefficient(name) * loss
                weight = torch.cat([weights[i].expand(rollout.lengths[i]) for i in rows]).to(
                    self.device, non_blocking=True
                )
                part = (gain * weight).sum()
            value += float(part.detach())
            if gradient:
                slope += flatten(torch.autograd.grad(part, parameters, materialize_grads=True))
        value = sum(self.ranks.gather(lambda: value))
        self.ranks.sum_tensors([slope])
        return value, slope

    def _batches(self, rollout: Rollout, rows: Sequence[int]) -> list[list[int]]:
        """This rank's share of some episodes, in batches of like length.

        Args:
            rollout: the episodes.
            rows: the places of those to share out.
        """
        own = self.ranks.share(rows, rollout.totals)
        return episode_batches(self.policy.language_model, rollout, own, self.tokens_per_batch)

    def fisher(self, rollout: Rollout) -> Callable[[Tensor], Tensor]:
        """``v -> F v``, the gradient of ``(grad KL) . v`` (the paper's appendix C.1, by differentiating twice).

        The first gradient is the same for every ``v``: where all episodes are one batch, its graph is kept for all products.

        Args:
            rollout: the episodes.

        Returns:
            a function of ``v``, ``[P]`` over the weights that learn, to ``F v``, ``[P]``.
        """
        seen = range(0, len(rollout.episodes), self.sub_sampling_factor)
        tokens = sum(rollout.lengths[i] for i in seen)
        batches = self._batches(rollout, seen)
        parameters = self.policy_parameters()
        kept = [self._kl_slope(rollout, rows, tokens) for rows in batches] if len(batches) == 1 else None

        def product(vector: Tensor) -> Tensor:
            out = torch.zeros_like(vector)
            for slope in kept or (self._kl_slope(rollout, rows, tokens) for rows in batches):
                with sdpa_kernel(SDPBackend.MATH):  # where activations are computed anew
                    along = torch.autograd.grad(
                        slope @ vector, parameters, retain_graph=kept is not None, materialize_grads=True
                    )
                out += flatten(along)
            self.ranks.gather(lambda: None)  # all are there
            self.ranks.sum_tensors([out])
            return out

        return product

    def _kl_slope(self, rollout: Rollout, rows: list[int], tokens: int) -> Tensor:
        """The gradient ``[P]`` of some episodes' KL to the policy as it is, per token of all: 0, with a graph of its slope."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            log_probs = self._distribution(rollout, self.policy.language_model, rows)
            kl = kl_divergences(log_probs.detach(), log_probs).sum() / tokens
            return flatten(torch.autograd.grad(kl, self.policy_parameters(), create_graph=True, materialize_grads=True))

    @torch.no_grad()
    def mean_kl(self, rollout: Rollout, old: LanguageModel) -> float:
        """``KL(old || policy)`` in nats per token, exact over the vocabulary, mean over the rollout's tokens.

        Args:
            rollout: the episodes.
            old: the policy before the step.
        """
        total = 0.0
        for rows in self._batches(rollout, range(len(rollout.episodes))):
            before = self._distribution(rollout, old, rows)
            # A token that leaves or enters a top-p set would make the KL infinite: it is measured within the old set.
            now = self._distribution(rollout, self.policy.language_model, rows, before > -torch.inf)
            total += float(kl_divergences(before, now).sum())
        return sum(self.ranks.gather(lambda: total)) / sum(rollout.lengths)

    def _distribution(
        self, rollout: Rollout, model: LanguageModel, rows: list[int], kept: Tensor | None = None
    ) -> Tensor:
        """Next-token log-probabilities ``[N, V]`` at the response tokens of some episodes, within ``kept`` if given.

        Dense, not in chunks: the exact KL needs the whole distribution, and the Fisher matrix differentiates it twice.
        """
        episodes = [rollout.episodes[i] for i in rows]
        batch, allowed = pack_episodes(self.policy, episodes), unpack_masks(episodes, model.vocab_size)
        allowed = None if allowed is None else allowed.to(self.device, non_blocking=True)
        logits = masked_logits(
            model, model.response_states(batch), response_positions(batch), self.policy.limits, allowed
        )
        if kept is None:
            return behaviour_log_probs(logits, self.sampling)
        return (logits.masked_fill(~kept, -torch.inf) / self.sampling.temperature).log_softmax(-1)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, steps: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve ``A x = b`` for a positive definite ``A`` (Hestenes and Stiefel 1952).

    Args:
        product: ``x -> A x``.
        target: ``b``, ``[P]``.
        steps: most steps; ``P`` of them give the exact solution, up to rounding.
        tolerance: stop once the residual's squared norm is this small relative to ``b``'s.

    Returns:
        ``[P]``; zeros for a target of zeros.
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, size = residual.clone(), residual @ residual
    enough = tolerance * size
    for _ in range(steps):
        if not bool(size > enough):
            break
        image = product(direction)
        alpha = size / (direction @ image)
        x = x + alpha * direction
        residual = residual - alpha * image
        size, last = residual @ residual, size
        direction = residual + size / last * direction
    return x


def kl_divergences(old: Tensor, new: Tensor) -> Tensor:
    """``KL(old || new)`` of each row: ``[N]`` from log-probabilities ``[N, V]``, -inf in both where a token is forbidden.

    Args:
        old: ``[N, V]``.
        new: ``[N, V]``.
    """
    forbidden = old == -torch.inf
    return (old.exp() * (old - new).masked_fill(forbidden, 0.0)).sum(-1)


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """The numbers of all tensors, one tensor after the other, as one vector ``[P]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def assign(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Write a vector back into the parameters, in place.

    Args:
        parameters: weights.
        vector: ``[P]``, as :func:`flatten` makes it.
    """
    parts = torch.split(vector, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part.view_as(parameter))
