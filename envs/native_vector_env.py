"""The base of the vector environments that step their slots by themselves."""

from __future__ import annotations

from typing import Any

from gymnasium.core import ActType, ObsType
from gymnasium.spaces import Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlhf_gym.envs.rendering import RENDER_MODES, check_render_mode
from rlhf_gym.envs.vector_api import as_autoreset_mode


class NativeVectorEnv(VectorEnv[ObsType, ActType, NDArray[Any]]):
    """A vector environment that steps its slots by itself: its spaces, and how it starts new episodes and is rendered.

    Args:
        num_envs: ``N``, checked by :func:`~rlhf_gym.envs.vector_api.check_num_envs`.
        observation_space: of one slot.
        action_space: of one slot.
        autoreset_mode: how the next episode starts.
        max_episode_steps: a limit on an episode's steps; None for none.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``; None renders nothing.
        render_fps: frames a second of recorded videos.

    Raises:
        ValueError: an unknown autoreset mode.
        UnsupportedMode: an unknown render mode.
    """

    def __init__(
        self,
        num_envs: int,
        observation_space: Space[Any],
        action_space: Space[Any],
        autoreset_mode: AutoresetMode | str,
        *,
        max_episode_steps: int | None,
        render_mode: str | None,
        render_fps: int,
    ) -> None:
        check_render_mode(render_mode)
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.autoreset_mode = mode = as_autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": list(RENDER_MODES), "render_fps": render_fps, "autoreset_mode": mode}
