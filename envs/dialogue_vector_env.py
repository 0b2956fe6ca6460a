"""Conversations and tool environments, many at once: the other sides answer at the same time, one call scores all messages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from rlhf_gym.envs.conversation_env import ConversationEnv
from rlhf_gym.envs.dialogue_env import DialogueEnv, score_steps
from rlhf_gym.envs.native_vector_env import NativeVectorEnv
from rlhf_gym.envs.prompt_weights import plain_draws
from rlhf_gym.envs.prompts import slot_seeds
from rlhf_gym.envs.side_by_side import side_by_side
from rlhf_gym.envs.token_rows import Mask, Slots
from rlhf_gym.envs.tool_env import ToolEnv
from rlhf_gym.envs.vector_api import check_num_envs, chosen_prompt, note_seed, reset_mask
from rlhf_gym.tasks import Task


class DialogueVectorEnv(NativeVectorEnv[Any, Any]):
    """``N`` slots of one environment, which share its task, user, tools and reward.

    Observations and actions are those of the single environment, batched as Gymnasium does it: a tuple of ``N`` texts, or
    ``Dict(ids int64 [N, L], length int64 [N, 1])`` and ``int64 [N, T]``. Users and tools of all slots work at the same time, in
    threads; all messages of a step are scored by one call of the reward.

    Args:
        num_envs: ``N``.
        env: the environment of the first slot, and the model of the others.
        autoreset_mode: ``next_step`` (the step after an episode's last ignores the action and returns the next prompt),
            ``same_step`` (the step returns the next prompt, with ``final_obs`` and ``final_info``) or ``disabled``
            (``reset(options={"reset_mask": ...})``).
        max_episode_steps: truncate an episode that has not ended after so many messages.

    Raises:
        ValueError: ``num_envs`` below 1, or an unknown autoreset mode.
    """

    def __init__(
        self,
        num_envs: int,
        env: DialogueEnv,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        check_num_envs(num_envs)
        self.envs = [env, *(env.twin() for _ in range(num_envs - 1))]
        super().__init__(
            num_envs, env.observation_space, env.action_space, autoreset_mode, max_episode_steps=max_episode_steps,
            render_mode=env.render_mode, render_fps=1,
        )  # fmt: skip
        self._draws = plain_draws(env.prompt_order, num_envs, len(env.task.prompts))
        self._over: Mask = np.zeros(num_envs, dtype=np.bool_)  # their episode has ended

    @property
    def task(self) -> Task:
        """The task."""
        return self.envs[0].task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw prompts in all slots, or in those where ``options["reset_mask"]`` is True.

        Args:
            seed: ``s`` gives slot ``i`` random numbers of its own, and the ``i``-th part of each epoch of prompts; a list gives
                each slot what a single environment would have with that seed; None goes on with the random numbers there are.
            options: ``reset_mask``, bool ``[N]``; ``prompt``, the number of the task's prompt that these slots get, in the
                place of one that is drawn.

        Raises:
            ValueError: a list that has not one seed a slot, or a mask of another shape.
            ConfigError: there is no such prompt.
        """
        mask = reset_mask(options, self.num_envs)
        seeds = slot_seeds(seed, self.num_envs)
        note_seed(self, seed)
        self._draws.seed(seed, mask)
        for slot in np.flatnonzero(mask).tolist():
            if (given := seeds[slot]) is not None:
                self.envs[slot].seed_slot(*given)
        infos = self._begin({}, np.flatnonzero(mask), chosen_prompt(options, len(self.task.prompts)))
        return self._observe(), infos

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """Write a message in every slot; in next-step mode, slots whose episode has ended get their next prompt instead.

        If a user, a tool or the reward fails, every conversation is still where it was.

        Args:
            actions: ``N`` messages, as the action space has them: texts, or rows of token ids.

        Returns:
            Observations, rewards ``[N]``, terminations ``[N]``, truncations ``[N]``, and infos.

        Raises:
            ResetNeeded: a slot has no running episode.
            InvalidAction: an action is outside the action space.
            TaskError: a user or a tool failed.
            RewardError: the reward failed.
        """
        if len(actions) != self.num_envs:
            raise gym.error.InvalidAction(f"expected {self.num_envs} messages, one a slot; got {len(actions)}")
        restarted = self._over.copy() if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros_like(self._over)
        slots = np.flatnonzero(~restarted).tolist()
        # Every action is read before anything begins: a wrong one costs nobody's answer.
        texts = [self.envs[slot].read(actions[slot]) for slot in slots]
        steps = side_by_side([partial(self.envs[slot].prepare, text) for slot, text in zip(slots, texts, strict=True)])
        scores = score_steps(self.envs[0].reward, steps)
        rewards = np.zeros(self.num_envs)
        terminations, truncations = np.zeros_like(self._over), np.zeros_like(self._over)
        infos: dict[str, Any] = {}
        final_obs = np.full(self.num_envs, None, dtype=object)
        final_info: dict[str, Any] = {}
        for slot, step, (reward, scored) in zip(slots, steps, scores, strict=True):
            env = self.envs[slot]
            observation, rewards[slot], terminations[slot], _, info = env.commit(step, reward, scored)
            truncations[slot] = self.max_episode_steps is not None and env.turn >= self.max_episode_steps
            self._over[slot] = terminations[slot] or truncations[slot]
            if self._over[slot] and self.autoreset_mode == AutoresetMode.SAME_STEP:
                final_obs[slot] = observation
                final_info = self._add_info(final_info, info, slot)
                restarted[slot] = True
            else:
                infos = self._add_info(infos, info, slot)
        if final_info:
            infos |= {"final_obs": final_obs, "_final_obs": restarted.copy()}
            infos |= {"final_info": final_info, "_final_info": restarted.copy()}
        infos = self._begin(infos, np.flatnonzero(restarted))
        return self._observe(), rewards, terminations, truncations, infos

    def _begin(self, infos: dict[str, Any], slots: Slots, prompt: int | None = None) -> dict[str, Any]:
        """Begin episodes.

        Args:
            infos: takes what the episodes say of themselves.
            slots: int64 ``[n]``.
            prompt: the number of their prompt; None draws one for each.
        """
        numbers = self._draws.take(slots) if prompt is None else np.full(len(slots), prompt)
        for slot, number in zip(slots.tolist(), numbers.tolist(), strict=True):
            infos = self._add_info(infos, self.envs[slot].reset(options={"prompt": number})[1], slot)
        self._over[slots] = False
        return infos

    def render(self) -> tuple[Any, ...] | None:
        """Every slot's conversation; None before the first reset, and where each step has printed it (``human``)."""
        shown = tuple(env.render() for env in self.envs)
        return None if any(one is None for one in shown) else shown

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments' user.

        Args:
            kwargs: not used.
        """
        self.envs[0].close()

    def _observe(self) -> Any:
        observations = [env.observe() for env in self.envs]
        empty: Any = create_empty_array(self.single_observation_space, self.num_envs)
        return concatenate(self.single_observation_space, observations, empty)


class ConversationVectorEnv(DialogueVectorEnv):
    """Many conversations at once; see :class:`~rlhf_gym.envs.conversation_env.ConversationEnv` for the options.

    Args:
        num_envs: ``N``.
        task: a task or the name of one.
        autoreset_mode: see :class:`DialogueVectorEnv`.
        max_episode_steps: truncate an episode that has not ended after so many answers.
        options: of the single environment.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "sentiment",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        check_num_envs(num_envs)
        env = ConversationEnv(task, **options)
        super().__init__(num_envs, env, autoreset_mode=autoreset_mode, max_episode_steps=max_episode_steps)


class ToolVectorEnv(DialogueVectorEnv):
    """Many tool environments at once; see :class:`~rlhf_gym.envs.tool_env.ToolEnv` for the options.

    Args:
        num_envs: ``N``.
        task: a task or the name of one.
        autoreset_mode: see :class:`DialogueVectorEnv`.
        max_episode_steps: truncate an episode that has not ended after so many messages.
        options: of the single environment.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "calculation",
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        **options: Any,
    ) -> None:
        check_num_envs(num_envs)
        env = ToolEnv(task, **options)
        super().__init__(num_envs, env, autoreset_mode=autoreset_mode, max_episode_steps=max_episode_steps)
