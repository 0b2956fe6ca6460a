"""Where an agent's episodes come from: decoding by an engine, workers on Ray, conversations, or steps of an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.collect import Scoring, decode_episodes
from rlhf_gym.agents.common.collect_turns import collect_conversations, text_env_inside
from rlhf_gym.agents.common.metrics import PhaseSeconds
from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.ranks import Ranks
from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.agents.common.rollout_engine import RolloutEngine
from rlhf_gym.agents.common.rollout_workers import RolloutWorkers
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.lm.language_model import LanguageModel
from rlhf_gym.lm.sampling import Limits, Sampling, greedily


@dataclass(frozen=True)
class Order:
    """The episodes that a rollout needs.

    Attributes:
        seed: of the noise.
        first: number of the first episode, for the noise.
        per_slot: episodes per slot.
        group_size: slots in a row that get the same prompts.
        greedy: slots that take the most probable tokens.
        version: number of the weights.
    """

    seed: int
    first: int
    per_slot: int
    group_size: int
    greedy: frozenset[int]
    version: int


class EpisodeSource:
    """Generates an agent's episodes in the way that its settings and its environment allow.

    Args:
        engine: what generates responses; None for the built-in engine.
        workers: on Ray, that generate and score responses; None without them.
        collect: ``"auto"`` decodes whole responses where the environment allows it; ``"step"`` always steps it.
        greedy_first: True where the first slot of each group takes the most probable tokens.
    """

    def __init__(
        self, engine: RolloutEngine | None, workers: RolloutWorkers | None, collect: str, *, greedy_first: bool
    ) -> None:
        self.engine, self.workers, self.collect, self.greedy_first = engine, workers, collect, greedy_first

    def refuse(self, env: VecEnv, model: LanguageModel, limits: Limits, sampling: Sampling, processes: int) -> None:
        """Refuse, before anything starts, what the engine or the workers cannot do; end workers of another environment.

        Args:
            env: the environment.
            model: the model that learns.
            limits: on tokens.
            sampling: of tokens.
            processes: number of processes that learn together.

        Raises:
            ConfigError: names it.
        """
        if self.engine is not None:
            for one in (sampling, *([greedily(sampling)] if self.greedy_first else [])):
                self.engine.refuse(env, model, limits, one)
        if self.workers is not None:
            self.workers.refuse(env, processes, greedy_first=self.greedy_first)
            self.workers.close()

    def episodes(
        self, env: VecEnv, policy: LMPolicy, order: Order, scoring: Scoring, ranks: Ranks, seconds: PhaseSeconds,
        stepped: Callable[[int, int], list[Episode]],
    ) -> list[Episode]:  # fmt: skip
        """Generate whole episodes.

        Args:
            env: the environment.
            policy: generates the responses.
            order: the episodes.
            scoring: takes responses, and has them scored while others are generated.
            ranks: the processes that share them out.
            seconds: takes the time that the weights need to reach an engine.
            stepped: generates by stepping, from the number of the first episode and the episodes per slot.
        """
        seed, first, per_slot, group_size, greedy = (
            order.seed, order.first, order.per_slot, order.group_size, order.greedy,
        )  # fmt: skip
        if (talking := text_env_inside(env)) is not None:
            return collect_conversations(talking, policy, seed, first, per_slot, group_size=group_size, greedy=greedy)
        if self.workers is not None:
            assert isinstance(env, TokenVecEnv)
            return self.workers.collect(env, policy, seed, first, per_slot * env.num_envs, order.version)
        # Wrappers see steps only: what they wrap is stepped.
        if self.collect == "auto" and isinstance(env, TokenVecEnv) and env.append_only:
            if self.engine is not None:
                with seconds.phase("weights"):
                    ranks.from_main(partial(self.engine.give_weights, policy, env, order.version))
            return decode_episodes(
                env, policy, seed, first, per_slot, scoring, group_size=group_size, ranks=ranks,
                engine=None if self.engine is None else self.engine.engine, greedy=greedy,
            )  # fmt: skip
        # The slots of one environment cannot be stepped in several processes.
        return ranks.from_main(lambda: stepped(first, per_slot))

    @property
    def gives_values(self) -> bool:
        """True where the pass that generates gives the values of the weights that learn."""
        if self.workers is not None:
            return self.workers.max_staleness == 0
        return self.engine is None or self.engine.engine.gives_values

    def metrics(self, seconds: float) -> dict[str, float]:
        """The metrics of the engine and of the workers over an iteration that took so many seconds."""
        out: dict[str, float] = {}
        if self.engine is not None:
            out |= self.engine.engine.metrics()
        if self.workers is not None:
            out |= self.workers.metrics(seconds)
        return out

    def close(self) -> None:
        """End what generates outside of this process: an engine, workers on Ray."""
        if self.engine is not None:
            self.engine.engine.close()
        if self.workers is not None:
            self.workers.close()
