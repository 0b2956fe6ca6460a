"""Text generation as a natively batched `gymnasium.vector.VectorEnv`: one NumPy step for all environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes, Ids, Mask, slot_generator
from rlhf_gym.tasks import Task
from rlhf_gym.tokenizer import Tokenizer

Floats = NDArray[np.float64]


class TokenVectorEnv(gym.vector.VectorEnv[dict[str, Ids], Ids, NDArray[Any]]):
    """Many :class:`~rlhf_gym.envs.token_env.TokenEnv` in one, step for step the same for the same seeds and actions.

    All episodes that end in the same step are scored by one call of the reward. A seed of ``s`` gives slot ``i`` the stream
    ``SeedSequence((s, i))``; a list gives each slot what a single environment would have with that seed.

    Args:
        num_envs: ``N``.
        task: a task or the name of one.
        tokenizer: a tokenizer or a model's name.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        autoreset_mode: ``next_step`` (the step after the end ignores the action and returns the new episode's first
            observation), ``same_step`` (the ending step returns it, with ``final_obs`` and ``final_info``) or ``disabled``
            (``reset(options={"reset_mask": ...})`` starts episodes).
        max_episode_steps: truncate an episode, unscored, after this many tokens (the registration's time limit).
        render_mode: ``"ansi"``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "sentiment",
        tokenizer: Tokenizer | str = "embedded",
        *,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = num_envs
        self.episodes = Episodes(num_envs, task, tokenizer, reward, task_options)
        self.single_observation_space = self.episodes.observation_space()
        self.single_action_space = gym.spaces.Discrete(self.episodes.tokenizer.vocab_size)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = as_autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": ["ansi"], "render_fps": 10, "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps = max_episode_steps
        self.render_mode = render_mode
        self.generators = [slot_generator(None, 0)] * num_envs
        self.seeded = False
        self._ended: Mask = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Ids], dict[str, Any]]:
        """Start episodes in all slots, or in those where ``options["reset_mask"]`` is True."""
        mask = self._reset_mask(options)
        self._seed(seed, mask)
        for slot in np.flatnonzero(mask):
            self.episodes.begin(int(slot), self.generators[slot])
        self._ended = self._ended & ~mask
        return self.episodes.observe(), {}

    def _reset_mask(self, options: dict[str, Any] | None) -> Mask:
        """The slots to reset; the caller's ``options`` are left as they are."""
        mask = (options or {}).get("reset_mask")
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            shown = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"options['reset_mask'] must be a bool array of shape ({self.num_envs},), got {shown}")
        if not mask.any():
            raise ValueError("options['reset_mask'] must be True somewhere; it is False for every environment")
        return mask

    def _seed(self, seed: int | Sequence[int | None] | None, mask: Mask) -> None:
        if isinstance(seed, int | np.integer):
            fresh = [slot_generator(int(seed), slot) for slot in range(self.num_envs)]
        elif seed is None:
            if self.seeded:
                return
            fresh = [slot_generator(None, slot) for slot in range(self.num_envs)]
        else:
            if len(seed) != self.num_envs:
                raise ValueError(f"got {len(seed)} seeds for {self.num_envs} environments; expected one each")
            pairs = zip(seed, self.generators, strict=True)
            fresh = [g if s is None and self.seeded else slot_generator(s, 0) for s, g in pairs]
        self.generators = [
            new if chosen else old for new, old, chosen in zip(fresh, self.generators, mask, strict=True)
        ]
        self.seeded = True

    def step(
        self, actions: Ids, *, waiting: Mask | None = None
    ) -> tuple[dict[str, Ids], Floats, Mask, Mask, dict[str, Any]]:
        """Write one token in every slot.

        Args:
            actions: int64 ``[N]``.
            waiting: bool ``[N]``, slots to leave as they are in this step.
        """
        actions = np.asarray(actions, dtype=np.int64)
        if actions.shape != (self.num_envs,):
            raise gym.error.InvalidAction(f"expected {self.num_envs} token ids, got an array of shape {actions.shape}")
        if self.autoreset_mode == AutoresetMode.NEXT_STEP:
            restarted = np.flatnonzero(self._ended)
            slots = np.flatnonzero(~self._ended)
        else:
            restarted = np.zeros(0, dtype=np.intp)
            slots = np.arange(self.num_envs)
        if waiting is not None:
            slots = slots[~waiting[slots]]
        self.episodes.check_actions(actions, slots)
        for slot in restarted:
            self.episodes.begin(int(slot), self.generators[slot])
        ended = self.episodes.write(actions, slots)
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        terminations[ended] = True
        infos: dict[str, Any] = {}
        if len(ended):
            scored, ended_infos = self.episodes.score([int(s) for s in ended])
            rewards[ended] = scored.values
            for slot, info in zip(ended, ended_infos, strict=True):
                infos = self._add_info(infos, info, int(slot))
        truncations = self._truncate(slots)
        self._ended = terminations | truncations
        if self.autoreset_mode == AutoresetMode.SAME_STEP and self._ended.any():
            infos = self._restart(infos)
        return self.episodes.observe(), rewards, terminations, truncations, infos

    def _truncate(self, slots: NDArray[np.intp]) -> Mask:
        """Time limit: slots that have written ``max_episode_steps`` tokens, terminated or not, as TimeLimit has it."""
        truncations = np.zeros(self.num_envs, dtype=np.bool_)
        if self.max_episode_steps is not None:
            written = self.episodes.length - self.episodes.prompt_length
            truncations[slots] = written[slots] >= self.max_episode_steps
            self.episodes.running[truncations] = False
        return truncations

    def _restart(self, infos: dict[str, Any]) -> dict[str, Any]:
        """Same-step autoreset: keep the final observations and infos, start the next episodes."""
        final: dict[str, Any] = {}
        for slot in np.flatnonzero(self._ended):
            final = self._add_info(final, {"final_obs": self.episodes.observe_one(int(slot))}, int(slot))
            self.episodes.begin(int(slot), self.generators[slot])
        final["final_info"] = infos
        final["_final_info"] = self._ended.copy()
        return final

    def next_episode(self, slot: int) -> Ids:
        """Start the slot's next episode, unless one has just started; returns the prompt's ids (agents' fast path)."""
        episodes = self.episodes
        if episodes.running[slot] and episodes.length[slot] == episodes.prompt_length[slot]:
            return episodes.ids[slot, : episodes.length[slot]]
        return episodes.begin(slot, self.generators[slot])

    def action_masks(self) -> Mask:
        """bool ``[N, V]``, True where a token may be written now."""
        return self.episodes.action_masks()

    def render(self) -> tuple[str, ...] | None:
        """Prompt and response so far of every slot."""
        if self.render_mode is None:
            return None
        decode = self.episodes.tokenizer.decode
        starts = zip(self.episodes.ids, self.episodes.prompt_length, strict=True)
        prompts = [decode(ids[:n].tolist()) for ids, n in starts]
        return tuple(f"{prompt} │{self.episodes.response(i)}" for i, prompt in enumerate(prompts))


def as_autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    """The mode by its name (``"same_step"``, which JSON can carry) or as it is."""
    if isinstance(mode, AutoresetMode):
        return mode
    known = {m.name.lower(): m for m in AutoresetMode}
    if mode not in known:
        raise ValueError(f"autoreset_mode {mode!r} is not known; expected one of {', '.join(known)}")
    return known[mode]
