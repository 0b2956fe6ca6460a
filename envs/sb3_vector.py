"""Any Gymnasium vector environment as stable-baselines3's `VecEnv`: no subprocesses, one step for all slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from rlhf_gym.envs.vector_api import slot_info
from rlhf_gym.envs.wrappers.base import find_attribute

_FINAL = ("final_obs", "_final_obs", "final_info", "_final_info")


class VectorVecEnv(VecEnv):
    """A Gymnasium vector environment, with any wrappers around it, as stable-baselines3's `VecEnv`.

    Episode statistics are reported as SB3's ``Monitor`` does (``info["episode"]``), so no monitor is needed. The infos of new
    episodes are in ``reset_infos``, as in SB3's own `VecEnv` classes.

    Args:
        env: a vector environment in same-step autoreset mode.

    Raises:
        ValueError: another autoreset mode.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        mode = env.metadata["autoreset_mode"]
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"a VecEnv starts the next episode in the step that ends one; the environment's autoreset mode is "
                f"{mode.name.lower()!r}, expected 'same_step': make the environment with autoreset_mode='same_step'"
            )
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.metadata["render_fps"] = env.metadata.get("render_fps", 10)  # of recorded videos
        self._actions: NDArray[Any] = np.zeros(env.num_envs, dtype=np.int64)
        self._returns: NDArray[np.float64] = np.zeros(env.num_envs)
        self._lengths: NDArray[np.int64] = np.zeros(env.num_envs, dtype=np.int64)

    def reset(self) -> VecEnvObs:
        """Start an episode in every slot."""
        seeds: Any = None if all(s is None for s in self._seeds) else self._seeds
        observations, infos = self.env.reset(seed=seeds, options=self._common_options())
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [slot_info(infos, slot) for slot in range(self.num_envs)]
        self._returns[:], self._lengths[:] = 0.0, 0
        return _batch(observations)

    def _common_options(self) -> dict[str, Any] | None:
        """The options of the next reset, which the slots share."""
        first = self._options[0]
        if any(options != first for options in self._options):
            raise ValueError(
                f"set_options: the {self.num_envs} slots are one environment, whose reset takes one dict of options"
            )
        return dict(first) or None

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the slots at the next reset, slot ``i`` with the ``i``-th number of the seed's own stream."""
        if seed is None:
            self._seeds = [None] * self.num_envs
        else:
            self._seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(self.num_envs)]
        return self._seeds

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions until :meth:`step_wait`.

        Args:
            actions: ``[N, ...]``, one for each slot.
        """
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Take one step in every slot."""
        observations, rewards, terminations, truncations, infos = self.env.step(self._actions)
        dones = terminations | truncations
        self._returns += rewards
        self._lengths += 1
        # After a step that ended episodes, what is not about their ends is about the slots as they are now, but for the
        # statistics of the episodes that ended, which RecordEpisodeStatistics leaves there.
        now = {key: value for key, value in infos.items() if key not in (*_FINAL, "episode", "_episode")}
        out: list[dict[str, Any]] = [
            slot_info(now, slot) if now else {} for slot in range(self.num_envs)
        ]  # mostly empty
        for slot in np.flatnonzero(dones):
            self.reset_infos[slot] = out[slot]
            info = slot_info(infos["final_info"], int(slot))
            info["terminal_observation"] = infos["final_obs"][slot]
            info["TimeLimit.truncated"] = bool(truncations[slot] and not terminations[slot])
            info["episode"] = self._episode(int(slot), float(rewards[slot]), info)
            out[slot] = info
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return _batch(observations), rewards.astype(np.float32), dones, out

    def _episode(self, slot: int, reward: float, info: dict[str, Any]) -> dict[str, float]:
        """The entry of ``Monitor`` for the episode that ended in this slot."""
        return {"r": float(self._returns[slot]), "l": int(self._lengths[slot]), "t": 0.0}

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the environment or of one inside it, once for each chosen slot.

        Args:
            attr_name: the attribute's name.
            indices: slots; None: all.
        """
        value = find_attribute(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the outermost environment; the slots share it.

        Args:
            attr_name: the attribute's name.
            value: the new value.
            indices: not used, as the slots share the attribute.
        """
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method; ``action_masks`` gives each slot its own row.

        Args:
            method_name: the method's name.
            method_args: arguments of the method.
            indices: slots; None: all.
            method_kwargs: keyword arguments of the method.
        """
        result = find_attribute(self.env, method_name)(*method_args, **method_kwargs)
        if method_name == "action_masks":
            return [result[i] for i in self._get_indices(indices)]
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No slot is wrapped by itself; but each does what ``Monitor`` does, so that nobody need warn that it is missing.

        Args:
            wrapper_class: a wrapper.
            indices: slots; None: all.
        """
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Each slot's picture, uint8 ``[height, width, 3]``; None before the first reset, and without pictures to render."""
        frames: Any = self.env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices


def _batch(observations: VecEnvObs) -> VecEnvObs:
    return dict(observations) if isinstance(observations, dict) else observations
