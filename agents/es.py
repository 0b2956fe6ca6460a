"""Evolution strategies (Salimans et al. 2017): no gradients, perturbed copies of the weights are compared by their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rlhf_gym.agents.common.collect import Scoring, decode_episodes
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.agents.common.rollout import Episode, Rollout
from rlhf_gym.agents.common.settings import AgentSettings, setting
from rlhf_gym.agents.common.shared_settings import GroupSettings, KLSettings, OverlongSettings, RolloutSettings
from rlhf_gym.agents.critic_free import CriticFree
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.decoding import Generation
from rlhf_gym.lm.engines.builtin_engine import BuiltinEngine
from rlhf_gym.lm.engines.engine import ResponseSettings
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits

if TYPE_CHECKING:
    from typing import Unpack

    from rlhf_gym.agents.common.keywords import ESKeywords
    from rlhf_gym.agents.common.policy import LMPolicy


@dataclass(frozen=True, kw_only=True)
class ESSettings(RolloutSettings, KLSettings, OverlongSettings, GroupSettings):
    """The settings of ES."""

    group_size: int = setting(
        16,
        "number of perturbed copies of the weights, two for each direction; a group is as many slots that answer the same "
        "prompt, each by another copy. It must divide the number of environments; the default adapts to that number",
        at_least=2,
    )
    sigma: float = setting(
        0.05,
        "standard deviation of the noise that is added to each weight. The default suits small networks; for large pretrained "
        "models Qiu et al. take 0.001",
        above=0,
        source="Salimans et al. 2017",
    )
    fitness: Literal["ranks", "z_scores"] = setting(
        "ranks",
        "what of the copies' mean scores counts: ranks takes their ranks, from -1/2 to 1/2, equal scores in the middle of "
        "theirs; z_scores their distances from the mean in standard deviations",
        source="ranks: Salimans et al. 2017; z_scores: Qiu et al. 2025",
    )
    learning_rate: float | Schedule = setting(0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size % 2:
            raise ConfigError(
                f"group_size ({self.group_size}) must be even, since every direction is tried forwards and backwards: give "
                "an even one that divides the number of environments"
            )
        if self.batch_size is not None:
            raise ConfigError(
                f"ES takes one step an iteration, from all its episodes: leave batch_size ({self.batch_size}) out"
            )
        if self.kl_in == "loss":
            raise ConfigError("ES differentiates nothing: give kl_in='reward', or leave it out")
        if self.precision == "fp16":
            raise ConfigError("ES has no loss that could be scaled for fp16: give precision 'bf16' or 'float32'")


class ES(CriticFree):
    """Moves the weights towards those perturbed copies of them whose responses score best.

    With directions ``e_j`` of standard normal noise, ``j = 1..m``, mirrored, and the shaped mean scores ``F`` of the copies,
    Adam follows ``1 / (2 m sigma) sum_j (F(w + sigma e_j) - F(w - sigma e_j)) e_j`` (Salimans et al. 2017, section 2; of
    language models Qiu et al. 2025). All copies answer the same prompts. Noise is drawn anew from its seed where it is needed,
    not stored; with ``lora`` only the adapter is perturbed. Metrics of the rollout, ``objective/kl`` too, are the copies'.

    Args:
        policy: ``"LMPolicy"``.
        env: of :func:`~rlhf_gym.envs.sb3.make_sb3_env`, so that whole responses can be decoded.
        settings: see :class:`ESSettings`.

    Raises:
        ConfigError: as PPO; also an environment that must be stepped, or several processes.
    """

    Settings: ClassVar[type[AgentSettings]] = ESSettings
    in_conversations: ClassVar[bool] = False

    sigma: float
    fitness: Literal["ranks", "z_scores"]

    if TYPE_CHECKING:

        def __init__(
            self,
            policy: str | type[LMPolicy] = "LMPolicy",
            env: GymEnv | str | None = None,
            learning_rate: float | Schedule = ...,
            **settings: Unpack[ESKeywords],
        ) -> None: ...

    def _check(self, env: VecEnv, model: LanguageModel) -> Limits:
        if not (isinstance(env, TokenVecEnv) and env.append_only):
            raise ConfigError(
                "ES decodes the responses of each perturbed copy whole, and this environment must be stepped token by token "
                "(it has masks or wrappers of its own, or a limit on steps): give make_sb3_env(...)"
            )
        check_alone(self.ranks)
        return super()._check(env, model)

    @property
    def _weights(self) -> list[Tensor]:
        """The weights that learn, each in its own shape ``[...]``."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def noise(self, direction: int) -> Iterator[Tensor]:
        """Standard normal noise of one direction of this iteration, for one weight ``[...]`` after the other."""
        assert self.seed is not None
        seed = np.random.SeedSequence((self.seed, 3, self.iteration, direction)).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        for weight in self._weights:
            yield torch.randn(weight.shape, generator=generator).to(weight.device, weight.dtype)

    @contextmanager
    def perturbed(self, copy: int) -> Iterator[None]:
        """Within it, the weights are those of a copy: ``w + sigma e_j`` of number ``2 j``, ``w - sigma e_j`` of ``2 j + 1``."""
        weights = self._weights
        before = [weight.detach().clone() for weight in weights]  # adding and subtracting would leave rounding errors
        try:
            with torch.no_grad():
                for weight, noise in zip(weights, self.noise(copy // 2), strict=True):
                    weight.add_(noise, alpha=self.sigma if copy % 2 == 0 else -self.sigma)
            yield
        finally:
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)

    def generate(self, scoring: Scoring) -> list[Episode]:
        """Generate ``n_episodes`` episodes, in each group one by each copy of the weights."""
        env = self._vec_env
        assert isinstance(env, TokenVecEnv)
        assert self.seed is not None
        engine = _EngineOfCopies(self)
        return decode_episodes(
            env, self.policy, self.seed, self.episode_count, self.n_episodes // env.num_envs, scoring,
            group_size=self.group_size, engine=engine,
        )  # fmt: skip

    def advantages(self, rollout: Rollout, rewards: Tensor) -> Tensor:
        """Compare the copies: the advantage of a response is the shaped mean score of the copy that wrote it.

        Args:
            rollout: the episodes, group after group.
            rewards: float32 ``[B, R]``, shaped, 0 at padding.

        Returns:
            float32 ``[B, 1]``.
        """
        scores = rewards.sum(1).view(-1, self.group_size).mean(0)
        self.logger.record("groups/copies_std", scores.std(correction=0).item())
        return shaped_fitness(scores, self.fitness).repeat(len(rewards) // self.group_size)[:, None]

    def update(self, rollout: Rollout, rows: list[int]) -> bool:
        """One step of the optimizer along the estimate.

        Args:
            rollout: the episodes, advantages filled in.
            rows: all of them.

        Returns:
            True: learning from this rollout always goes on.
        """
        weights = self._weights
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        for direction, (forwards, backwards) in enumerate(
            rollout.advantages[: self.group_size, 0].view(-1, 2).tolist()
        ):
            share = (backwards - forwards) / (self.group_size * self.sigma)  # the optimizer descends
            for weight, noise in zip(weights, self.noise(direction), strict=True):
                assert weight.grad is not None
                weight.grad.add_(noise, alpha=share)
        self.step_optimizer()
        return True


class _EngineOfCopies(BuiltinEngine):
    """The built-in engine; the ``k``-th response of each group is drawn by the ``k``-th copy of the weights."""

    def __init__(self, agent: ES) -> None:
        super().__init__()
        self.agent = agent
        self.load_weights(agent.policy.language_model, 0)

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: ResponseSettings, *, seed: int, episodes: Sequence[int],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Generation]:  # fmt: skip
        size, found = self.agent.group_size, dict[int, Generation]()
        for copy in range(size):
            own = range(copy, len(prompts), size)
            with self.agent.perturbed(copy):
                responses = super().generate(
                    [prompts[i] for i in own], settings, seed=seed, episodes=[episodes[i] for i in own],
                    on_progress=on_progress,
                )  # fmt: skip
            found |= dict(zip(own, responses, strict=True))
        return [found[i] for i in range(len(prompts))]


def check_alone(ranks: Ranks) -> None:
    """Refuse several processes.

    Args:
        ranks: those that learn together.

    Raises:
        ConfigError: there are several.
    """
    if ranks.size > 1:
        raise ConfigError(f"ES learns in one process, and {ranks.size} learn together: start one")


def shaped_fitness(scores: Tensor, how: Literal["ranks", "z_scores"]) -> Tensor:
    """What of the copies' scores counts, ``[n]`` of mean 0; zeros where all scores are equal.

    Args:
        scores: ``[n]``, ``n`` at least 2.
        how: ``"ranks"`` (Salimans et al. 2017) or ``"z_scores"`` (Qiu et al. 2025).
    """
    if how == "z_scores":
        return (scores - scores.mean()) / scores.std(correction=0).clamp_min(1e-8)
    lower, not_higher = (scores[:, None] > scores).sum(1), (scores[:, None] >= scores).sum(1)
    return ((lower + not_higher - 1) / 2) / (len(scores) - 1) - 0.5
