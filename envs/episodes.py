"""The token-level MDP itself, for any number of slots at once: what both the single and the vector environment step.

A slot holds one episode: the prompt's ids and the ids written so far in one padded row. A step writes one id in place, so its
cost depends neither on the length already written nor on the number of steps taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlhf_gym.errors import TaskError
from rlhf_gym.rewards.base import ScoredBatch, score
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tokenizer import Tokenizer, load_tokenizer

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Episodes:
    """``N`` slots of one task.

    Args:
        num_slots: ``N``.
        task: a task or the name of one.
        tokenizer: a tokenizer or the name of a model.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_prompt_tokens: longest prompt allowed; None takes the task's longest.

    Attributes:
        ids: int64 ``[N, L]``, prompt and response, padded on the right; ``L`` is the longest prompt plus the longest response.
        prompt_length: int64 ``[N]``.
        length: int64 ``[N]``, prompt and response so far.
        running: bool ``[N]``, False before the first reset and after the end.

    Raises:
        TaskError: no reward, or a prompt longer than allowed.
    """

    def __init__(
        self,
        num_slots: int,
        task: Task | str,
        tokenizer: Tokenizer | str,
        reward: Callable[..., Any] | None = None,
        task_options: dict[str, Any] | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.task = load_task(task, **(task_options or {})) if isinstance(task, str) else task
        self.tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        chosen = reward or self.task.reward
        if chosen is None:
            raise TaskError(f"task {self.task.name!r} has no reward of its own; give the environment one: reward=...")
        self.reward: Callable[..., Any] = chosen
        if self.tokenizer.eos_id == self.tokenizer.pad_id:
            raise TaskError(
                f"the tokenizer {self.tokenizer.name!r} uses id {self.tokenizer.eos_id} both for EOS and for padding; the "
                "end of a response could not be told from padding. Give it a pad token of its own."
            )
        self.prompt_ids = [np.array(self.tokenizer.encode_prompt(p.text), dtype=np.int64) for p in self.task.prompts]
        longest = max(range(len(self.prompt_ids)), key=lambda i: len(self.prompt_ids[i]))
        if max_prompt_tokens is not None and len(self.prompt_ids[longest]) > max_prompt_tokens:
            raise TaskError(
                f"prompt {longest} of task {self.task.name!r} has {len(self.prompt_ids[longest])} tokens, more than the "
                f"{max_prompt_tokens} that leave room for a response; shorten it or leave it out"
            )
        self.max_prompt_tokens = max_prompt_tokens or len(self.prompt_ids[longest])
        self.capacity = self.max_prompt_tokens + self.task.max_response_tokens
        self.banned = (self.tokenizer.pad_id,)
        self.ids: Ids = np.full((num_slots, self.capacity), self.tokenizer.pad_id, dtype=np.int64)
        self.prompt_length: Ids = np.zeros(num_slots, dtype=np.int64)
        self.length: Ids = np.zeros(num_slots, dtype=np.int64)
        self.prompt_index: Ids = np.zeros(num_slots, dtype=np.int64)
        self.running: Mask = np.zeros(num_slots, dtype=np.bool_)

    def observation_space(self) -> gym.spaces.Dict:
        """One slot's observation: its row of ids, how many of them are written, and how many of those are the prompt."""
        high = self.tokenizer.vocab_size - 1
        return gym.spaces.Dict(
            {
                "ids": gym.spaces.Box(0, high, (self.capacity,), np.int64),
                "length": gym.spaces.Box(0, self.capacity, (1,), np.int64),
                "prompt_length": gym.spaces.Box(0, self.max_prompt_tokens, (1,), np.int64),
            }
        )

    def observe(self) -> dict[str, Ids]:
        """A copy of all slots' observations, batched."""
        return {
            "ids": self.ids.copy(),
            "length": self.length[:, None].copy(),
            "prompt_length": self.prompt_length[:, None].copy(),
        }

    def observe_one(self, slot: int) -> dict[str, Ids]:
        """A copy of one slot's observation."""
        return {
            "ids": self.ids[slot].copy(),
            "length": self.length[slot : slot + 1].copy(),
            "prompt_length": self.prompt_length[slot : slot + 1].copy(),
        }

    def begin(self, slot: int, rng: np.random.Generator) -> Ids:
        """Draw a prompt and start an episode with it; returns the prompt's ids."""
        index = int(rng.integers(len(self.prompt_ids)))
        prompt = self.prompt_ids[index]
        self.ids[slot] = self.tokenizer.pad_id
        self.ids[slot, : len(prompt)] = prompt
        self.prompt_index[slot] = index
        self.prompt_length[slot] = self.length[slot] = len(prompt)
        self.running[slot] = True
        return prompt

    def check_actions(self, actions: Ids, slots: NDArray[np.intp]) -> None:
        """Refuse ids outside the vocabulary, and steps of slots without a running episode."""
        if not self.running[slots].all():
            stuck = int(slots[int(np.argmin(self.running[slots]))])
            never = self.length[stuck] == 0
            raise gym.error.ResetNeeded(
                f"step() in slot {stuck}, where {'no episode was started' if never else 'the episode has ended'}: call reset()"
            )
        taken = actions[slots]
        if len(taken) and (taken.min() < 0 or taken.max() >= self.tokenizer.vocab_size):
            wrong = int(slots[int(np.argmax((taken < 0) | (taken >= self.tokenizer.vocab_size)))])
            raise gym.error.InvalidAction(
                f"action {int(actions[wrong])} in slot {wrong} is not a token id; expected 0..{self.tokenizer.vocab_size - 1}"
            )

    def write(self, actions: Ids, slots: NDArray[np.intp]) -> NDArray[np.intp]:
        """Append one id in each of these slots; returns the slots whose episode that ended."""
        taken = actions[slots]
        self.ids[slots, self.length[slots]] = taken
        self.length[slots] += 1
        written = self.length[slots] - self.prompt_length[slots]
        ends = (taken == self.tokenizer.eos_id) | (written >= self.task.max_response_tokens)
        if self.task.stop:
            for i in np.flatnonzero(~ends):
                ends[i] = self._stopped(self.response(int(slots[i])))
        ended: NDArray[np.intp] = slots[ends]
        self.running[ended] = False
        return ended

    def response(self, slot: int) -> str:
        """The response so far, as the model wrote it."""
        return self.tokenizer.decode(self.ids[slot, self.prompt_length[slot] : self.length[slot]].tolist())

    def _stopped(self, text: str) -> bool:
        return any(s in text for s in self.task.stop)

    def _cut(self, text: str) -> str:
        places = [place for place in (text.find(s) for s in self.task.stop) if place >= 0]
        return text[: min(places)] if places else text

    def score(self, slots: Sequence[int]) -> tuple[ScoredBatch, list[dict[str, Any]]]:
        """Score the episodes in these slots with one call of the reward.

        Returns:
            The scores, and for each slot what ``info`` says of its episode: ``prompt``, ``response``, ``ended`` (by EOS or
            a stop sequence rather than at the length limit), ``response_length`` in tokens, and ``reward_terms``.
        """
        raw = [self.response(s) for s in slots]
        responses = [self._cut(text) for text in raw]
        prompts = [self.task.prompts[self.prompt_index[s]] for s in slots]
        names = list(dict.fromkeys(name for p in prompts for name in p.columns))
        columns = {name: [p.columns.get(name) for p in prompts] for name in names}
        scored = score(self.reward, [p.text for p in prompts], responses, columns)
        infos = [
            {
                "prompt": prompts[i].text,
                "response": responses[i],
                "ended": bool(self.ids[s, self.length[s] - 1] == self.tokenizer.eos_id) or self._stopped(raw[i]),
                "response_length": int(self.length[s] - self.prompt_length[s]),
                "reward_terms": {name: float(values[i]) for name, values in scored.terms.items()},
            }
            for i, s in enumerate(slots)
        ]
        return scored, infos

    def action_masks(self) -> Mask:
        """bool ``[N, V]``, True where a token may be written now: never padding, no EOS before the minimum length."""
        masks = np.ones((len(self.length), self.tokenizer.vocab_size), dtype=np.bool_)
        masks[:, list(self.banned)] = False
        early = (self.length - self.prompt_length) < self.task.min_response_tokens
        masks[early, self.tokenizer.eos_id] = False
        return masks


def slot_generator(seed: int | None, slot: int) -> np.random.Generator:
    """The random numbers of one slot: streams of neighbouring seeds and slots never overlap."""
    return np.random.default_rng(None if seed is None else np.random.SeedSequence((seed, slot)))
