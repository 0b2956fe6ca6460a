"""The turn level for many episodes at once: the responses of all slots are scored by one call of the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlhf_gym.envs.episodes import Episodes, Ids, Mask, Slots, skipped_column
from rlhf_gym.envs.infos import stack_infos, stack_observations
from rlhf_gym.envs.prompt_draws import PromptDraws
from rlhf_gym.envs.prompt_table import column_names, columns_of
from rlhf_gym.envs.text_space import AnyText
from rlhf_gym.envs.token_vector_env import as_autoreset_mode
from rlhf_gym.envs.turn_env import as_text_action, built, characters, needed_reward, read_ids
from rlhf_gym.envs.vector_resets import reset_mask
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.rewards.base import ScoredBatch, score
from rlhf_gym.tasks import Task


class TurnVectorEnv(gym.vector.VectorEnv[Any, Any, NDArray[Any]]):
    """Many :class:`~rlhf_gym.envs.turn_env.TurnEnv` in one, step for step the same for the same seeds and actions.

    Observations and actions are those of the single environment, batched as Gymnasium does it: a tuple of ``N`` texts, or
    ``Dict(ids int64 [N, L], ...)`` and ``int64 [N, T]``.

    Args:
        num_envs: ``N``.
        task: a task or the name of one.
        tokenizer: as for the token level; only the form ``"tokens"`` uses it.
        form: ``"text"`` or ``"tokens"``.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest response as a text; None allows 16 a token of the task's limit.
        max_prompt_tokens: refuse longer prompts, in the form ``"tokens"``.
        autoreset_mode: ``next_step`` (the step after a response ignores the action and returns the next prompt), ``same_step``
            (the step returns the next prompt, with ``final_obs`` and ``final_info``) or ``disabled``
            (``reset(options={"reset_mask": ...})``).
        max_episode_steps: a time limit of 1 also truncates every episode; longer ones are never met.
    """

    def __init__(
        self,
        num_envs: int = 1,
        task: Task | str = "sentiment",
        tokenizer: Tokenizer | str | None = None,
        *,
        form: Literal["text", "tokens"] = "text",
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_characters: int | None = None,
        max_prompt_tokens: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
        self.num_envs = num_envs
        self._slots: _Slots
        if form == "tokens":
            if max_characters is not None:
                raise ConfigError("max_characters belongs to the form 'text'; the task's max_new_tokens limits tokens")
            self._slots = _TokenSlots(Episodes(num_envs, task, tokenizer, reward, task_options, max_prompt_tokens))
        elif form == "text":
            self._slots = _TextSlots(num_envs, built(task, task_options), reward, max_characters)
        else:
            raise ConfigError(f"form must be 'text' or 'tokens', got {form!r}")
        self.single_observation_space, self.single_action_space = self._slots.spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset_mode = as_autoreset_mode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.max_episode_steps = max_episode_steps
        self._draws = PromptDraws(num_envs, len(self.task.prompts))
        self._running: Mask = np.zeros(num_envs, dtype=np.bool_)
        self._started: Mask = np.zeros(num_envs, dtype=np.bool_)

    @property
    def task(self) -> Task:
        """The task."""
        return self._slots.task

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw prompts in all slots, or in those where ``options["reset_mask"]`` is True."""
        mask = reset_mask(options, self.num_envs)
        self._draws.seed(seed, mask)
        slots = np.flatnonzero(mask)
        prompts = self._begin(slots)
        return self._slots.observe(), stack_infos({"prompt": prompts}, slots, self.num_envs)

    def step(self, actions: Any) -> tuple[Any, NDArray[np.float64], Mask, Mask, dict[str, Any]]:
        """Answer every prompt; in next-step mode, slots that answered in the last step get their next prompt instead."""
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
        read = self._slots.read(actions, slots)
        rewards = np.zeros(self.num_envs)
        infos: dict[str, Any] = {}
        if len(slots):
            scored, columns = self._slots.answer(read, slots)
            rewards[slots] = scored.values
            infos = stack_infos(columns, slots, self.num_envs)
            self._running[slots] = False
        terminations = ~waiting
        truncations = terminations & (self.max_episode_steps == 1)
        restarted = np.flatnonzero(waiting)
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            final = self._slots.final(slots, self.num_envs)
            infos = {
                "final_obs": final,
                "_final_obs": terminations.copy(),
                "final_info": infos,
                "_final_info": terminations.copy(),
            }
            restarted = slots
        if len(restarted):
            fresh = stack_infos({"prompt": self._begin(restarted)}, restarted, self.num_envs)
            if "prompt" in infos:  # of other slots
                infos["prompt"][restarted] = fresh["prompt"][restarted]
                infos["_prompt"] |= fresh["_prompt"]
            else:
                infos |= fresh
        return self._slots.observe(), rewards, terminations, truncations, infos

    def _begin(self, slots: Slots) -> list[str]:
        self._running[slots] = self._started[slots] = True
        return self._slots.begin(slots, self._draws.take(slots))


class _Slots(Protocol):
    """What actions and observations look like."""

    task: Task

    def spaces(self) -> tuple[gym.spaces.Space[Any], gym.spaces.Space[Any]]: ...

    def begin(self, slots: Slots, index: Ids) -> list[str]: ...

    def read(self, actions: Any, slots: Slots) -> Any: ...

    def answer(self, read: Any, slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]: ...

    def observe(self) -> Any: ...

    def final(self, slots: Slots, num_envs: int) -> NDArray[np.object_]: ...


class _TextSlots:
    """Texts in, texts out."""

    def __init__(
        self, num_slots: int, task: Task, reward: Callable[..., Any] | None, max_characters: int | None
    ) -> None:
        self.task = task
        self.reward = needed_reward(task, reward)
        self.max_characters = characters(task, max_characters)
        self.columns = column_names(task.prompts)
        self.prompts = [task.prompts[0]] * num_slots
        self.shown = [""] * num_slots

    def spaces(self) -> tuple[AnyText, AnyText]:
        longest = max(len(p.text) for p in self.task.prompts)
        return AnyText(longest + self.max_characters), AnyText(self.max_characters)

    def begin(self, slots: Slots, index: Ids) -> list[str]:
        for slot, i in zip(slots.tolist(), index.tolist(), strict=True):
            self.prompts[slot] = self.task.prompts[i]
            self.shown[slot] = self.prompts[slot].text
        return [self.prompts[slot].text for slot in slots.tolist()]

    def read(self, actions: Any, slots: Slots) -> list[str]:
        if isinstance(actions, str) or not isinstance(actions, Sequence) or len(actions) != len(self.shown):
            shown = f"{len(actions)} of them" if isinstance(actions, list | tuple) else type(actions).__name__
            raise gym.error.InvalidAction(f"expected a list of {len(self.shown)} responses, got {shown}")
        return [self.task.cut(as_text_action(actions[slot], self.max_characters)) for slot in slots.tolist()]

    def answer(self, read: list[str], slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        prompts = [self.prompts[slot] for slot in slots.tolist()]
        texts = [prompt.text for prompt in prompts]
        scored = score(self.reward, texts, read, columns_of(prompts, self.columns), may_skip=True)
        for slot, response in zip(slots.tolist(), read, strict=True):
            self.shown[slot] = self.prompts[slot].text + response
        return scored, {"prompt": texts, "response": read, "reward_terms": scored.terms, **skipped_column(scored)}

    def observe(self) -> tuple[str, ...]:
        return tuple(self.shown)

    def final(self, slots: Slots, num_envs: int) -> NDArray[np.object_]:
        out = np.full(num_envs, None, dtype=object)
        for slot in slots.tolist():
            out[slot] = self.shown[slot]
        return out


class _TokenSlots:
    """Token ids in, token ids out: episodes of the token level, each written in one go."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self.task = episodes.task

    def spaces(self) -> tuple[gym.spaces.Dict, gym.spaces.MultiDiscrete]:
        size = self.episodes.tokenizer.vocab_size
        actions = gym.spaces.MultiDiscrete(np.full(self.task.max_new_tokens, size, dtype=np.int64))
        return self.episodes.observation_space(), actions

    def begin(self, slots: Slots, index: Ids) -> list[str]:
        self.episodes.begin_all(slots, index)
        return [self.task.prompts[i].text for i in index.tolist()]

    def read(self, actions: Any, slots: Slots) -> Ids:
        """int64 ``[n, T]``: the responses, each with EOS after its end."""
        count, limit, tokenizer = len(self.episodes.length), self.task.max_new_tokens, self.episodes.tokenizer
        if len(actions) != count:
            raise gym.error.InvalidAction(f"expected {count} rows of token ids, got {len(actions)}")
        out: Ids = np.full((len(slots), limit), tokenizer.eos_id, dtype=np.int64)
        for row, slot in enumerate(slots.tolist()):
            ids = read_ids(actions[slot], limit, tokenizer)
            out[row, : len(ids)] = ids
        return out

    def answer(self, read: Ids, slots: Slots) -> tuple[ScoredBatch, dict[str, Any]]:
        every: Ids = np.zeros((len(self.episodes.length), read.shape[1]), dtype=np.int64)
        every[slots] = read
        for column in every.T:
            live = slots[self.episodes.running[slots]]
            if not len(live):
                break
            self.episodes.write(column, live)
        return self.episodes.score_columns(slots)

    def observe(self) -> dict[str, Ids]:
        return self.episodes.observe()

    def final(self, slots: Slots, num_envs: int) -> NDArray[np.object_]:
        return stack_observations(self.episodes.observe(slots), slots, num_envs)
