"""The vector environment as a stable-baselines3 `VecEnv`, with the fast path that agents may take.

The fast path, for environments that only append tokens (``append_only`` is True): :meth:`TokenVecEnv.begin_episodes` gives
the prompts that a reset would give, the agent decodes whole responses by itself, and :meth:`TokenVecEnv.finish_episodes`
scores them all with one call. Stepping token by token gives the same episodes, only slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rlhf_gym.envs.episodes import Ids, Mask
from rlhf_gym.envs.token_vector_env import TokenVectorEnv
from rlhf_gym.rewards.adaptive import restore_reward, reward_state

WAIT = -1
"""The action that leaves a slot as it is: for agents that collect the same number of episodes in every slot."""


class TokenVecEnv(VecEnv):
    """A :class:`TokenVectorEnv` as stable-baselines3 wants it; an action of :data:`WAIT` leaves a slot as it is.

    Args:
        env: a vector environment in same-step autoreset mode.
    """

    def __init__(self, env: TokenVectorEnv) -> None:
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"a VecEnv starts the next episode in the step that ends one; the environment's autoreset mode is "
                f"{env.autoreset_mode.name.lower()!r}, expected 'same_step'"
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: Ids = np.zeros(env.num_envs, dtype=np.int64)
        self._returns = np.zeros(env.num_envs)

    @property
    def max_response_tokens(self) -> int:
        """The task's length limit."""
        return self.env.episodes.task.max_response_tokens

    @property
    def min_response_tokens(self) -> int:
        """EOS is not allowed before this many tokens."""
        return self.env.episodes.task.min_response_tokens

    @property
    def banned(self) -> tuple[int, ...]:
        """Ids that may never be written."""
        return self.env.episodes.banned

    @property
    def eos_id(self) -> int:
        """The id that ends a response."""
        return self.env.episodes.tokenizer.eos_id

    @property
    def pad_id(self) -> int:
        """The id that fills unused places."""
        return self.env.episodes.tokenizer.pad_id

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a response."""
        return self.env.episodes.task.stop

    @property
    def append_only(self) -> bool:
        """Whether agents may take the fast path: nothing happens in a step but that a token is appended."""
        return self.env.max_episode_steps is None

    def begin_episodes(self, slots: Sequence[int]) -> list[Ids]:
        """The prompts' ids of each slot's next episode, drawing exactly what stepping would draw.

        An episode that a reset has started and nobody has written to yet is that next episode.
        """
        if not self.env.seeded:
            self.reset()
        return [self.env.next_episode(slot).copy() for slot in slots]

    def finish_episodes(
        self, slots: Sequence[int], responses: Sequence[Sequence[int]]
    ) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
        """Write whole responses and score them with one call of the reward.

        Args:
            slots: where :meth:`begin_episodes` started the episodes.
            responses: ids of each response, EOS included where it was written.

        Returns:
            float32 rewards, and the infos of the ending steps.
        """
        episodes = self.env.episodes
        for slot, response in zip(slots, responses, strict=True):
            start = int(episodes.prompt_length[slot])
            episodes.ids[slot, start : start + len(response)] = response
            episodes.length[slot] = start + len(response)
            episodes.running[slot] = False
        scored, infos = episodes.score(slots)
        for i, info in enumerate(infos):
            info["episode"] = {"r": float(scored.values[i]), "l": info["response_length"], "t": 0.0}
        return scored.values.astype(np.float32), infos

    def state(self) -> dict[str, Any]:
        """Random state, running episodes and what the reward has learnt, as JSON values: what a checkpoint needs."""
        episodes = self.env.episodes
        return {
            "generators": [g.bit_generator.state for g in self.env.generators] if self.env.seeded else [],
            "ids": episodes.ids.tolist(),
            "prompt_length": episodes.prompt_length.tolist(),
            "length": episodes.length.tolist(),
            "prompt_index": episodes.prompt_index.tolist(),
            "running": episodes.running.tolist(),
            "reward": reward_state(episodes.reward),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state`, for an environment of the same task and number of slots."""
        self.env.reset()
        for generator, saved in zip(self.env.generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        for name in ("ids", "prompt_length", "length", "prompt_index", "running"):
            array = getattr(self.env.episodes, name)
            array[...] = np.array(state[name], dtype=array.dtype)
        restore_reward(self.env.episodes.reward, state["reward"])

    def reset(self) -> VecEnvObs:
        """Start an episode in every slot."""
        seeds: Any = None if all(s is None for s in self._seeds) else self._seeds
        observations, _ = self.env.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return dict(observations)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the slots at the next reset, slot ``i`` with the ``i``-th number of the seed's own stream."""
        if seed is None:
            self._seeds = [None] * self.num_envs
        else:
            self._seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(self.num_envs)]
        return self._seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Take note of the actions."""
        self._actions = np.asarray(actions, dtype=np.int64)

    def step_wait(self) -> VecEnvStepReturn:
        """Write one token in every slot."""
        observations, rewards, terminations, truncations, infos = self.env.step(
            self._actions, waiting=self._actions == WAIT
        )
        dones = terminations | truncations
        out: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for slot in np.flatnonzero(dones):
            final_obs = infos["final_obs"][slot]
            info = one_info(infos["final_info"], int(slot))
            info["terminal_observation"] = final_obs
            info["TimeLimit.truncated"] = bool(truncations[slot] and not terminations[slot])
            length = int(final_obs["length"][0] - final_obs["prompt_length"][0])
            info["episode"] = {"r": float(rewards[slot]), "l": length, "t": 0.0}
            out[slot] = info
        return dict(observations), rewards.astype(np.float32), dones, out

    def close(self) -> None:
        """Nothing is held open."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the environment, once for each slot asked for."""
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the environment; the slots share it."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method; ``action_masks`` gives each slot its own row."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        if method_name == "action_masks":
            masks: Mask = result
            return [masks[i] for i in self._get_indices(indices)]
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No slot is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices


def one_info(infos: dict[str, Any], slot: int) -> dict[str, Any]:
    """One slot's part of a vector environment's infos."""
    out: dict[str, Any] = {}
    for key, value in infos.items():
        if not key.startswith("_") and infos["_" + key][slot]:
            out[key] = one_info(value, slot) if isinstance(value, dict) else value[slot]
    return out


def make_sb3_env(num_envs: int = 1, *, seed: int | None = None, **options: Any) -> TokenVecEnv:
    """A :class:`TokenVecEnv` in one call; ``options`` are :class:`TokenVectorEnv`'s."""
    env = TokenVecEnv(TokenVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options))
    if seed is not None:
        env.seed(seed)
    return env
