"""Rollout workers in an agent's hands: prompts are drawn here, episodes are generated and scored by workers on Ray.

At ``max_staleness=0`` an iteration hands out its episodes and waits for them, and learns what one process would. Above, the
episodes of the iterations to come are under way while the agent learns.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.policy import LMPolicy
from rlhf_gym.agents.common.ray_actor import Replica
from rlhf_gym.agents.common.ray_packing import packed
from rlhf_gym.agents.common.ray_pool import RayPool
from rlhf_gym.agents.common.rollout import Episode
from rlhf_gym.agents.common.share_queue import ShareQueue, cut
from rlhf_gym.agents.common.slots import Rounds
from rlhf_gym.envs.sb3 import TokenVecEnv
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.engines.engine import ResponseSettings
from rlhf_gym.ray_connection import connect, load_ray
from rlhf_gym.rewards.adaptive import stateful_parts
from rlhf_gym.rewards.base import reward_name

PLACES = ("ray", "ray_workers", "ray_cpus", "ray_gpus")
"""Settings that say where and by how many workers episodes are generated, not what is learned."""


def workers_of(values: Mapping[str, Any]) -> RolloutWorkers | None:
    """The rollout workers that an agent's settings ask for; None for none. Nothing is started.

    Args:
        values: the agent's settings by name.
    """
    if values.get("ray") is None:
        return None
    return RolloutWorkers(
        values["ray"], values.get("ray_workers", 2), values.get("ray_cpus", 1.0), values.get("ray_gpus", 0.0),
        values.get("max_staleness", 0),
    )  # fmt: skip


def workers_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, of an agent's, that say where its workers run: they may change when training goes on.

    Args:
        values: the agent's settings by name, those that were given.
    """
    return {name: values[name] for name in PLACES if name in values}


def connect_workers(values: Mapping[str, Any], sent: Any) -> None:
    """Reach the cluster that an agent's workers will run on, before a model is loaded or anybody is asked.

    Args:
        values: the agent's settings by name.
        sent: what the workers will be sent, as far as it is there.

    Raises:
        ConfigError: the cluster is not there, or too small; or something of it cannot be sent.
    """
    if (workers := workers_of(values)) is not None:
        packed(sent, workers.connect())


class RolloutWorkers:
    """The workers of an agent.

    Args:
        address: ``local``, ``auto``, or a cluster's.
        workers: their number.
        cpus: CPUs of each.
        gpus: GPUs of each.
        max_staleness: iterations by which weights may be older than the latest.
    """

    def __init__(self, address: str, workers: int, cpus: float, gpus: float, max_staleness: int) -> None:
        self.address, self.workers, self.cpus, self.gpus = address, workers, cpus, gpus
        self.max_staleness = max_staleness
        self._queue = ShareQueue(1)
        self._pool: RayPool | None = None
        self._kept: list[tuple[int, int]] = []  # of a checkpoint: episodes that had been handed out
        self._kept_group = 1
        self._metrics: dict[str, float] = {}
        self._waited = 0.0

    def refuse(self, env: VecEnv, processes: int, *, greedy_first: bool) -> None:
        """Refuse, before anything starts, what workers cannot do.

        Args:
            env: the environment.
            processes: number of processes that learn together.
            greedy_first: whether the first response to each prompt is the most probable one.

        Raises:
            ConfigError: names it.
        """
        if greedy_first:
            raise ConfigError(
                f"ray={self.address!r}: workers on Ray sample all responses, and this agent's baseline is the most probable "
                "response: leave ray out, or take another agent, e.g. RLOO"
            )
        if processes > 1:
            raise ConfigError(
                f"ray={self.address!r}: workers on Ray feed one learner, and {processes} processes learn together: leave ray "
                "out, or start one process"
            )
        if not (isinstance(env, TokenVecEnv) and env.append_only):
            raise ConfigError(
                f"ray={self.address!r}: workers on Ray generate whole responses, and this environment must be stepped (it is a "
                "conversation, has masks or wrappers of its own, or a limit on steps): leave ray out"
            )
        if adaptive := stateful_parts(env.reward):
            raise ConfigError(
                f"ray={self.address!r}: the reward {reward_name(adaptive[0])!r} learns from the scores of all responses, which "
                "workers on Ray would not share: leave ray out, or take a reward without a state"
            )

    def connect(self) -> Any:
        """Reach Ray, and see that the workers fit in; returns the library.

        Raises:
            ConfigError: Ray is not installed or not there, or has too few CPUs or GPUs.
        """
        ray = load_ray("without it, responses are generated in this process")
        if not ray.is_initialized():
            connect(self.address, ray)
        there = ray.cluster_resources()
        for name, each in (("CPU", self.cpus), ("GPU", self.gpus)):
            if each * self.workers > there.get(name, 0.0):
                raise ConfigError(
                    f"ray={self.address!r}: {self.workers} workers of {each:g} {name}s each do not fit into the cluster, which "
                    f"has {there.get(name, 0.0):g}: take fewer ray_workers, or a smaller ray_{name.lower()}s"
                )
        return ray

    # ------------------------------------------------------------------------------------------------ a rollout

    def collect(
        self, env: TokenVecEnv, policy: LMPolicy, seed: int, first_episode: int, count: int, version: int
    ) -> list[Episode]:
        """Have episodes generated and scored, and take as many as an iteration learns from.

        Args:
            env: draws the prompts; none of its slots is stepped.
            policy: its weights generate from now on.
            seed: of the noise.
            first_episode: the number of episodes that were taken so far.
            count: the number of episodes to take, a multiple of the environment's slots.
            version: number of the weights.

        Returns:
            In the order of their numbers.

        Raises:
            RlhfGymError: the reward has failed, or no worker is left.
        """
        head = policy.value_head if policy.values_from_trunk and not self.max_staleness else None
        settings = ResponseSettings(policy.limits, policy.sampling, tuple(env.stop))
        replica = Replica(env, policy.language_model, head, settings, seed)
        if self._pool is None:
            self._queue = ShareQueue(env.group_size)
            self._pool = RayPool(self.connect(), self.workers, self.cpus, self.gpus, replica, self._queue)
        self._pool.publish(replica, version)
        self._hand_out(env, seed, first_episode, count)
        began = time.perf_counter()
        episodes = self._queue.take(count, version - self.max_staleness, self._pool.check)
        self._waited += time.perf_counter() - began
        self._measure(episodes, version)
        return episodes

    def _hand_out(self, env: TokenVecEnv, seed: int, taken: int, count: int) -> None:
        """Hand out episodes until enough are on their way for this iteration, and as many later ones as may be stale."""
        parts = self.workers
        if self._kept and self._kept_group != env.group_size:
            raise ConfigError(
                f"the checkpoint has episodes under way in groups of {self._kept_group}, and group_size is {env.group_size} "
                f"now: load it with group_size={self._kept_group}"
            )
        kept, self._kept = self._kept, []
        for begin in range(0, len(kept), env.num_envs):
            numbers, prompts = zip(*kept[begin : begin + env.num_envs], strict=True)
            self._queue.put(cut(numbers, prompts, env.group_size, parts))
        under_way = len(self._queue.outstanding())
        rounds = Rounds(env, env.group_size, seed)
        while under_way < count * (1 + self.max_staleness):
            first = taken + under_way
            rounds.begin(first)
            drawn = env.hand_out_prompts()
            self._queue.put(cut(range(first, first + len(drawn)), drawn, env.group_size, parts))
            under_way += len(drawn)

    # ------------------------------------------------------------------------------------------------ metrics

    def _measure(self, episodes: list[Episode], version: int) -> None:
        ages = [version - episode.version for episode in episodes if episode.version is not None]
        waiting, ready = self._queue.depth()
        self._metrics |= {
            "ray/staleness": sum(ages) / len(ages), "ray/max_staleness": float(max(ages)),
            "ray/stale_episodes": float(sum(age > 0 for age in ages)),
            "ray/waiting_episodes": float(waiting), "ray/ready_episodes": float(ready),
        }  # fmt: skip

    def metrics(self, seconds: float) -> dict[str, float]:
        """Counts and rates since the last call, by the names that metrics are logged under.

        Args:
            seconds: of the iteration.
        """
        if self._pool is None:
            return {}
        own = {
            "ray/dropped_episodes": float(self._queue.dropped),
            "ray/learner_idle_share": self._waited / max(seconds, 1e-9),
        }
        self._queue.dropped, self._waited = 0, 0.0
        return self._metrics | own | self._pool.metrics()

    # ------------------------------------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON values: the episodes that were handed out and not taken, as number and prompt."""
        if self._kept:
            return {"group_size": self._kept_group, "episodes": self._kept}
        return {"group_size": self._queue.group_size, "episodes": self._queue.outstanding()}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Hand out again what was under way when :meth:`state` was taken."""
        self.close()
        if state is not None:
            self._kept = [(int(number), int(prompt)) for number, prompt in state["episodes"]]
            self._kept_group = int(state["group_size"])

    def close(self) -> None:
        """End the workers; what they have under way is lost."""
        if self._pool is not None:
            self._pool.close()
        self._pool, self._kept, self._queue = None, [], ShareQueue(1)


def warn_of_episodes(state: Mapping[str, Any] | None) -> None:
    """Say that episodes which workers had under way are left out where there are no workers any more.

    Args:
        state: a checkpoint's, of the workers.
    """
    if count := len((state or {}).get("episodes", ())):
        warnings.warn(
            f"the checkpoint has {count} episodes that workers on Ray had under way; without ray they are left out, and "
            "training goes on with the prompts after them", stacklevel=2,
        )  # fmt: skip
