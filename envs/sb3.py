"""Token environments as stable-baselines3's `VecEnv`, with a fast path for whole responses.

Agents may take the fast path where a step only appends a token (``append_only`` is True): a reset gives the prompts, the agent
generates whole responses by itself, :meth:`TokenVecEnv.end_episodes` stores them, and :meth:`TokenVecEnv.score_ended` scores
them all with one call. Stepping token by token gives the same episodes, only slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlhf_gym.envs.sb3_vector import VectorVecEnv
from rlhf_gym.envs.scoring import EndedEpisodes
from rlhf_gym.envs.token_vector_env import TokenVectorEnv
from rlhf_gym.envs.vector_api import row_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.rewards.base import TermReward


class TokenVecEnv(VectorVecEnv):
    """A :class:`TokenVectorEnv` as stable-baselines3's `VecEnv`.

    Args:
        env: a vector environment in same-step autoreset mode.

    Attributes:
        group_size: the number of slots in a row that get the same prompts; see :meth:`set_group_size`.
    """

    env: TokenVectorEnv

    def __init__(self, env: TokenVectorEnv) -> None:
        super().__init__(env)
        self.group_size = 1
        self._last_seed: int | None = None

    @property
    def max_new_tokens(self) -> int:
        """The task's length limit."""
        return self.env.episodes.task.max_new_tokens

    @property
    def min_new_tokens(self) -> int:
        """EOS is not allowed before this many tokens."""
        return self.env.episodes.task.min_new_tokens

    @property
    def suppress_tokens(self) -> tuple[int, ...]:
        """Ids that are never allowed."""
        return self.env.episodes.suppress_tokens

    @property
    def eos_id(self) -> int:
        """The id that ends a response."""
        return self.env.episodes.tokenizer.eos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a response, ``eos_id`` first."""
        return self.env.episodes.eos_ids

    @property
    def pad_id(self) -> int:
        """The id that fills unused places."""
        return self.env.episodes.tokenizer.pad_id

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end a response."""
        return self.env.episodes.task.stop

    @property
    def reward(self) -> TermReward:
        """The reward that scores episodes."""
        return self.env.episodes.reward

    @property
    def reward_seconds(self) -> float:
        """Seconds that calls of the reward have taken so far."""
        return self.env.episodes.reward_seconds

    @property
    def append_only(self) -> bool:
        """True if agents may take the fast path: a step only appends a token."""
        return self.env.max_episode_steps is None and self.fixed_masks

    @property
    def fixed_masks(self) -> bool:
        """True if ``suppress_tokens`` and ``min_new_tokens`` are all of the action masks."""
        return self.env.episodes.masks.fixed

    def hand_out_prompts(self) -> list[int]:
        """The numbers of the prompts that a reset gave the slots, whose episodes are generated and scored elsewhere."""
        self.env.episodes.running[:] = False
        numbers: list[int] = self.env.episodes.prompt_index.tolist()
        return numbers

    def place_prompts(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Begin episodes that another environment has handed out.

        Args:
            numbers: of the prompts in the task, for as many slots, the first ones.

        Returns:
            The observations of all slots: ``ids [N, L]``, ``length [N, 1]``, ``prompt_length [N, 1]``.
        """
        episodes = self.env.episodes
        episodes.begin_all(np.arange(len(numbers)), np.asarray(numbers, dtype=np.int64))
        return episodes.observe()

    def end_episodes(self, slots: Sequence[int], responses: Sequence[Sequence[int]]) -> EndedEpisodes:
        """Store whole responses and leave the scoring to :meth:`score_ended`.

        Args:
            slots: where a reset began episodes.
            responses: ids of each response, EOS included where it was generated.
        """
        episodes = self.env.episodes
        for slot, response in zip(slots, responses, strict=True):
            start = int(episodes.prompt_length[slot])
            episodes.ids[slot, start : start + len(response)] = response
            episodes.length[slot] = start + len(response)
            episodes.running[slot] = False
        return episodes.read_ended(np.asarray(slots, dtype=np.intp))

    def score_ended(self, ended: EndedEpisodes) -> tuple[NDArray[np.float32], list[dict[str, Any]]]:
        """Score what :meth:`end_episodes` returned, with one call of the reward.

        The slots' next episodes may begin before that, and it may run in another thread
        (:mod:`rlhf_gym.rewards.service.overlap`). Adaptive rewards need batches in the order in which they were generated.

        Args:
            ended: the episodes.

        Returns:
            float32 rewards ``[n]``, and the infos of the ending steps.
        """
        scored, columns = self.env.episodes.score_ended(ended)
        infos = [row_of(columns, i) for i in range(len(scored.values))]
        for i, info in enumerate(infos):
            info["episode"] = {"r": float(scored.values[i]), "l": info["response_length"], "t": 0.0}
        return scored.values.astype(np.float32), infos

    def state(self) -> dict[str, Any]:
        """The state that a checkpoint keeps, as JSON values: random numbers, running episodes, an adaptive reward's state."""
        return self.env.state()

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a :meth:`state`, taken from an environment of the same task and number of slots."""
        self.env.restore(state)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the slots at the next reset, group ``i`` of slots with the ``i``-th number of the seed's own stream."""
        if seed is None and self.group_size > 1:
            seed = int(np.random.SeedSequence().generate_state(1)[0])  # slots seeded one by one would break the groups
        self._last_seed = seed
        if seed is None:
            return super().seed(None)
        self._seeds = group_seeds(seed, self.num_envs, self.group_size, self.env.token_rules.prompt_order)
        self.env.share_prompts(*group_shares(self.num_envs, self.group_size))
        return self._seeds

    def set_group_size(self, size: int) -> None:
        """Give every ``size`` slots in a row the same prompts, from the next reset on, for agents that compare responses.

        The slots of a group share one stream of random numbers; each draws one prompt an episode from it, so the ``k``-th
        episodes of a group have the same prompt, in whatever order they end.

        Raises:
            ConfigError: ``size`` does not divide the number of slots.
        """
        if size < 1 or self.num_envs % size:
            raise ConfigError(
                f"group_size ({size}) must divide the number of environments ({self.num_envs}): a group is "
                "that many slots in a row with the same prompt"
            )
        if size != self.group_size:
            self.group_size = size
            self.seed(self._last_seed)

    def _episode(self, slot: int, reward: float, info: dict[str, Any]) -> dict[str, float]:
        # From the last observation, which a checkpoint restores; the reward comes at the end only.
        final_obs = info["terminal_observation"]
        return {"r": reward, "l": int(final_obs["length"][0] - final_obs["prompt_length"][0]), "t": 0.0}


def group_seeds(seed: int, num_envs: int, group_size: int, prompt_order: str) -> list[int | None]:
    """The slots' seeds: one for each group, or where prompts come in epochs one for all, which the groups share.

    Args:
        seed: group ``i`` of slots gets the ``i``-th number of its stream.
        num_envs: the number of slots.
        group_size: slots in a group.
        prompt_order: see :data:`~rlhf_gym.envs.token_rules.PromptOrder`.
    """
    groups = np.random.SeedSequence(seed).generate_state(num_envs // group_size)
    if prompt_order == "epochs":
        groups = groups[:1].repeat(len(groups))
    return [int(s) for s in np.repeat(groups, group_size)]


def group_shares(num_envs: int, group_size: int) -> tuple[list[int], int]:
    """The part of each slot in an epoch of prompts, and the number of parts: a group is one part.

    Args:
        num_envs: the number of slots.
        group_size: slots in a group.
    """
    return [slot // group_size for slot in range(num_envs)], num_envs // group_size


def make_sb3_env(num_envs: int = 1, *, seed: int | None = None, **options: Any) -> TokenVecEnv:
    """A :class:`TokenVecEnv` in one call.

    Args:
        num_envs: the number of slots.
        seed: of the slots, at the first reset; None: the slots are not seeded.
        options: as of :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.

    Raises:
        TaskError, ConfigError: the task, the tokenizer or the mask cannot be used, with the reason.
    """
    env = TokenVecEnv(TokenVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options))
    if seed is not None:
        env.seed(seed)
    return env
