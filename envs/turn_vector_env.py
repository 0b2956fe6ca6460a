"""The turn level for many episodes at once: the responses of all slots are scored by one call of the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes
from rlhf_gym.envs.native_vector_env import NativeVectorEnv
from rlhf_gym.envs.prompt_weights import plain_draws
from rlhf_gym.envs.rendering import Painter, turn_frame, turn_line
from rlhf_gym.envs.task_parts import as_task
from rlhf_gym.envs.token_rows import Mask, Slots
from rlhf_gym.envs.turn_formats import TextFormat, TokensFormat, TurnFormat
from rlhf_gym.envs.turn_spaces import check_format
from rlhf_gym.envs.vector_api import (
    check_num_envs,
    chosen_prompt,
    note_seed,
    reset_mask,
    stack_infos,
)
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.tasks import Task


class Turn(NamedTuple):
    """A turn as it is rendered: a prompt, and once it is answered a response and its reward."""

    prompt: str = ""
    response: str = ""
    reward: float | None = None


class TurnVectorEnv(NativeVectorEnv[Any, Any]):
    """Many episodes of one prompt, one response, one step; :class:`~rlhf_gym.envs.turn_env.TurnEnv` is one slot of it.

    Observations and actions are those of the single environment, batched as Gymnasium does it: a tuple of ``N`` texts, or
    ``Dict(ids int64 [N, L], ...)`` and ``int64 [N, T]``.

    Args:
        num_envs: ``N``.
        task: a task or the name of one.
        tokenizer: as for the token level; only the format ``"tokens"`` uses it.
        format: ``"text"`` or ``"tokens"``.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest response as a text; None allows 16 a token of the task's limit.
        max_prompt_tokens: refuse longer prompts, in the format ``"tokens"``.
        prompt_order: as for the token level; curricula are for agents that learn there.
        autoreset_mode: ``next_step`` (the step after a response ignores the action and returns the next prompt), ``same_step``
            (the step returns the next prompt, with ``final_obs`` and ``final_info``) or ``disabled``
            (``reset(options={"reset_mask": ...})``).
        max_episode_steps: a time limit of 1 also truncates every episode; longer ones are never met.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``, of every slot. In same-step mode the last response is shown,
            not the prompt that follows it.

    Raises:
        TaskError, ConfigError: the task, the tokenizer or the format cannot be used, with the reason.
        ValueError: ``num_envs`` below 1, or an unknown autoreset mode.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "sentiment",
        tokenizer: AnyTokenizer | str | None = None,
        *,
        format: Literal["text", "tokens"] = "text",  # noqa: A002 - what Gymnasium's users write
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_characters: int | None = None,
        max_prompt_tokens: int | None = None,
        prompt_order: Literal["random", "epochs"] = "epochs",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_num_envs(num_envs)
        check_format(format)
        self.format: TurnFormat
        if format == "text":
            self.format = TextFormat(num_envs, as_task(task, task_options), reward, max_characters)
        elif max_characters is not None:
            raise ConfigError("max_characters belongs to the format 'text'; the task's max_new_tokens limits tokens")
        else:
            self.format = TokensFormat(Episodes(num_envs, task, tokenizer, reward, task_options, max_prompt_tokens))
        observations, actions = self.format.spaces()
        super().__init__(
            num_envs, observations, actions, autoreset_mode, max_episode_steps=max_episode_steps,
            render_mode=render_mode, render_fps=1,
        )  # fmt: skip
        self._painter = Painter()
        self._turns = [Turn()] * num_envs
        self.prompt_order = prompt_order
        self._draws = plain_draws(prompt_order, num_envs, len(self.task.prompts))
        self._running: Mask = np.zeros(num_envs, dtype=np.bool_)
        self._started: Mask = np.zeros(num_envs, dtype=np.bool_)

    @property
    def task(self) -> Task:
        """The task."""
        return self.format.task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw prompts in all slots, or in those where ``options["reset_mask"]`` is True.

        Args:
            seed: ``s`` gives slot ``i`` the stream ``SeedSequence((s, i))``; a list gives each slot what a single environment
                would have with that seed; None goes on with the random numbers there are.
            options: ``reset_mask``, bool ``[N]``; ``prompt``, the number of the task's prompt that these slots get, in the
                place of one that is drawn.

        Raises:
            ValueError: a list that has not one seed a slot, or a mask of another shape.
            ConfigError: there is no such prompt.
        """
        mask = reset_mask(options, self.num_envs)
        note_seed(self, seed)
        self._draws.seed(seed, mask)
        slots = np.flatnonzero(mask)
        prompts = self._begin(slots, chosen_prompt(options, len(self.task.prompts)))
        self._show(slots, prompts)
        if self.render_mode == "human":
            self.render()
        return self.format.observe(), stack_infos({"prompt": prompts}, slots, self.num_envs)

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """Answer every prompt; in next-step mode, slots that answered in the last step get their next prompt instead.

        Args:
            actions: ``N`` responses, as the action space has them: texts, or rows of token ids.

        Returns:
            Observations, rewards ``[N]``, terminations ``[N]``, truncations ``[N]``, and infos.

        Raises:
            ResetNeeded: a slot has no running episode.
            InvalidAction: an action is outside the action space.
            RewardError: the reward failed; the same prompts still wait for responses.
        """
        resting = self._started & ~self._running
        waiting = resting if self.autoreset_mode == AutoresetMode.NEXT_STEP else np.zeros_like(resting)
        slots = np.flatnonzero(~waiting)
        stuck = slots[~self._running[slots]]
        if len(stuck):
            never = not self._started[stuck[0]]
            raise gym.error.ResetNeeded(
                f"step() in slot {stuck[0]}, where {'no episode was started' if never else 'the episode has ended'}: call "
                "reset()"
            )
        read = self.format.read(actions, slots)
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        if len(slots):
            scored, columns = self.format.answer(read, slots)
            rewards[slots] = scored.values
            infos = stack_infos(columns, slots, self.num_envs)
            self._running[slots] = False
            self._show(slots, columns["prompt"], columns["response"], scored.values.tolist())
        terminations = ~waiting
        truncations = terminations & (self.max_episode_steps == 1)
        restarted = np.flatnonzero(waiting)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            final = self.format.final(slots)
            infos = {
                "final_obs": final,
                "_final_obs": terminations.copy(),
                "final_info": infos,
                "_final_info": terminations.copy(),
            }
            restarted = slots
        if len(restarted):
            prompts = self._begin(restarted)
            if self.autoreset_mode != AutoresetMode.SAME_STEP:
                self._show(restarted, prompts)
            fresh = stack_infos({"prompt": prompts}, restarted, self.num_envs)
            if "prompt" in infos:  # those of the slots that answered in this step
                infos["prompt"][restarted] = fresh["prompt"][restarted]
                infos["_prompt"] |= fresh["_prompt"]
            else:
                infos |= fresh
        if self.render_mode == "human":
            self.render()
        return self.format.observe(), rewards, terminations, truncations, infos

    def render(self) -> tuple[Any, ...] | None:
        """Every slot's prompt, response and reward: texts (``ansi``), frames (``rgb_array``), or None, printed (``human``)."""
        if self.render_mode is None or not self._started.all():
            return None
        if self.render_mode == "rgb_array":
            return tuple(turn_frame(t.prompt, t.response, t.reward, self._painter) for t in self._turns)
        lines = tuple(turn_line(t.prompt, t.response, t.reward) for t in self._turns)
        if self.render_mode == "ansi":
            return lines
        print("\n".join(lines))
        return None

    def _show(
        self, slots: Slots, prompts: Sequence[str], responses: Sequence[str] = (), rewards: Sequence[float] = ()
    ) -> None:
        """Keep what is rendered of these slots."""
        if self.render_mode is None:
            return
        answered = zip(responses, rewards, strict=True) if responses else (("", None) for _ in prompts)
        for slot, prompt, (response, reward) in zip(slots.tolist(), prompts, answered, strict=True):
            self._turns[slot] = Turn(prompt, response, reward)
            if reward is not None:
                self._painter.note(slot, reward)

    def _begin(self, slots: Slots, prompt: int | None = None) -> list[str]:
        self._running[slots] = self._started[slots] = True
        return self.format.begin(slots, self._draws.take(slots) if prompt is None else np.full(len(slots), prompt))
