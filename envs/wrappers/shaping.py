"""Shaping by a potential, a reward for every token: for one environment and for many.

It goes directly around a token environment, inside the wrappers that change observations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes
from rlhf_gym.envs.token_rows import Slots
from rlhf_gym.envs.vector_api import reset_mask
from rlhf_gym.envs.wrappers.base import VectorTokenWrapper, episodes_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.base import as_term, score

Floats = NDArray[np.float64]


class Potential:
    """Scores unfinished responses, as a reward scores finished ones.

    Args:
        function: any reward, ``function(prompts, responses, **columns) -> floats``.
        episodes: those of the environment.
    """

    def __init__(self, function: Callable[..., Any], episodes: Episodes) -> None:
        self.function = as_term(function)
        self.episodes = episodes

    def now(self, slots: Slots) -> Floats:
        """The potentials of the responses so far in these slots, float64 ``[n]``."""
        responses = [self.episodes.response(int(slot)) for slot in slots]
        return self._of(responses, self.episodes.prompt_index[slots])

    def last(self, observations: list[dict[str, Any]], prompt_index: NDArray[np.int64]) -> Floats:
        """The potentials of ended episodes whose slots hold the next ones already, float64 ``[n]``.

        Args:
            observations: the last observation of each episode.
            prompt_index: int64 ``[n]``, the numbers of the episodes' prompts.
        """
        decode = self.episodes.tokenizer.decode
        responses = [decode(o["ids"][o["prompt_length"][0] : o["length"][0]].tolist()) for o in observations]
        return self._of(responses, prompt_index)

    def _of(self, responses: list[str], prompt_index: NDArray[np.int64]) -> Floats:
        prompts = self.episodes.prompts
        return score(self.function, prompts.texts(prompt_index), responses, prompts.columns(prompt_index)).values


class PotentialShaping(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Reward each token by its change of a potential: ``r + gamma * phi(s') - phi(s)``, with ``phi = 0`` once terminated.

    Ng, Harada and Russell 1999: which policies are optimal does not change, for learners that discount by the same ``gamma``;
    the discounted sum of what is added is ``-phi(first state)`` whatever the policy does. A truncated episode keeps the
    potential of its last state, as its value does.

    It costs one call of the potential a step, on the text so far, and decoding that text: time that grows with its length.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`, possibly with a time limit.
        potential: any reward, called on unfinished responses.
        gamma: the learner's discount.

    Raises:
        ConfigError: ``gamma`` outside (0, 1], or not a token environment.
    """

    def __init__(self, env: gym.Env[Any, Any], potential: Callable[..., Any], gamma: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, potential=potential, gamma=gamma)
        gym.Wrapper.__init__(self, env)
        self.gamma = _checked_gamma(gamma)
        self._potential = Potential(potential, episodes_of(env, "PotentialShaping"))
        self._before = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        result = self.env.reset(seed=seed, options=options)
        self._before = self._now()
        return result

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = 0.0 if terminated else self._now()
        shaped = float(reward) + self.gamma * after - self._before
        self._before = after
        return observation, shaped, terminated, truncated, info

    def _now(self) -> float:
        return float(self._potential.now(np.zeros(1, dtype=np.intp))[0])


class VectorPotentialShaping(VectorTokenWrapper):
    """:class:`PotentialShaping` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`; one call a step for all.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`, directly.
        potential: any reward, called on unfinished responses.
        gamma: the learner's discount, in (0, 1].

    Raises:
        ConfigError: ``gamma`` outside (0, 1], or observations without token ids.
    """

    def __init__(
        self, env: gym.vector.VectorEnv[Any, Any, Any], potential: Callable[..., Any], gamma: float = 1.0
    ) -> None:
        super().__init__(env)
        _needs_ids(env, "VectorPotentialShaping")
        self.gamma = _checked_gamma(gamma)
        self._potential = Potential(potential, episodes_of(env, "VectorPotentialShaping"))
        self._before: Floats = np.zeros(env.num_envs)
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        fresh = np.flatnonzero(
            reset_mask(options, self.num_envs)
        )  # before: some wrappers take the mask out of the options
        result = self.env.reset(seed=seed, options=options)
        self._before[fresh] = self._potential.now(fresh)
        self._ended[fresh] = False
        return result

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every slot and add the change of the potential; a next-step restart has reward 0.

        Args:
            actions: int ``[N]``, token ids.

        Returns:
            Observations, rewards ``[N]``, terminations ``[N]``, truncations ``[N]``, and infos.
        """
        mode = self.env.metadata["autoreset_mode"]
        same_step = mode == AutoresetMode.SAME_STEP
        prompt_index = self._potential.episodes.prompt_index.copy()
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        restarted = self._ended if mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._ended)
        ended = terminations | truncations
        cut = truncations & ~terminations
        after = np.zeros(self.num_envs)
        seen = np.flatnonzero(~terminations & ~(cut & same_step))
        after[seen] = self._potential.now(seen)
        if same_step and cut.any():
            slots = np.flatnonzero(cut)
            after[slots] = self._potential.last([infos["final_obs"][slot] for slot in slots], prompt_index[slots])
        shaped = rewards + np.where(restarted, 0.0, self.gamma * after - self._before)
        self._before = after
        if same_step and ended.any():
            self._before[ended] = self._potential.now(np.flatnonzero(ended))
        self._ended = ended
        return observations, shaped, terminations, truncations, infos


def _checked_gamma(gamma: float) -> float:
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma <= 1:
        raise ConfigError(f"gamma must lie in (0, 1], got {gamma!r}")
    return float(gamma)


def _needs_ids(env: gym.vector.VectorEnv[Any, Any, Any], wrapper: str) -> None:
    space = env.single_observation_space
    if not isinstance(space, gym.spaces.Dict) or "ids" not in space.spaces or space["ids"].dtype != np.int64:
        raise ConfigError(f"{wrapper} reads token ids, got observations of {space}; put it inside other wrappers")
