"""Conversations with text environments, as token ids: what a policy reads before each turn, and what its turn brings."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym

from rlhf_gym.errors import ConfigError, RewardError, TaskError
from rlhf_gym.lm.response_text import ResponseText
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.tasks.chat import Message
from rlhf_gym.tasks.turn_template import TurnTemplate

End = Literal["", "terminated", "truncated", "turn_limit", "token_limit"]
"""Why an episode ended: the environment terminated or truncated it, or the turns or the context ran out; empty while
it runs."""

Overflow = Literal["end", "drop_oldest", "refuse"]
"""What becomes of a conversation with no room for another turn in the context: it ends (``"token_limit"``), it loses its
oldest turns but for the first messages, or an error is raised."""


@dataclass(frozen=True)
class TalkRules:
    """The fixed rules of a conversation.

    Attributes:
        tokenizer: the policy's.
        limits: of each of the policy's turns.
        stop: texts that end a turn.
        template: writes the messages as token ids.
        chat: True where observations are messages of one conversation; False where each is all that the policy is to read.
        system: a message of the system's that begins every conversation; empty for none.
        max_turns: the most turns in an episode.
        max_context: the most tokens that the policy reads and writes in one sequence.
        on_overflow: see :data:`Overflow`.
    """

    tokenizer: Tokenizer
    limits: Limits
    stop: tuple[str, ...]
    template: TurnTemplate
    chat: bool
    system: str
    max_turns: int
    max_context: int
    on_overflow: Overflow


@dataclass(frozen=True)
class Reply:
    """What a turn of the policy brings.

    Attributes:
        context: the ids that come before the policy's next turn; where the episode was cut, those that would have come,
            as far as they fit; empty where the environment terminated it.
        fresh: True where ``context`` is all that the policy reads from now on; False where it follows what was read before.
        rewards: one number for each token of the turn.
        earlier: one number for each of the policy's tokens in earlier turns, where the environment pays these now; else empty.
        end: why the episode ended; empty where it goes on.
        info: the environment's.
    """

    context: list[int]
    fresh: bool
    rewards: list[float]
    end: End
    info: dict[str, Any]
    earlier: list[float] = field(default_factory=list)

    @property
    def reward(self) -> float:
        """All that the environment pays after the turn."""
        return sum(self.rewards) + sum(self.earlier)


class Talk:
    """One environment's conversation with the policy.

    Args:
        env: a Gymnasium environment whose observations and actions are texts.
        rules: the rules.

    Attributes:
        messages: the conversation so far.
        ids: what the policy has read and written in the sequence that it is in.
        turns: the policy's turns so far.
        written: the policy's tokens so far.
        opening: messages before the policy's first turn.
        total: the sum of the environment's rewards so far.
    """

    def __init__(self, env: gym.Env[Any, Any], rules: TalkRules) -> None:
        self.env, self.rules = env, rules
        self.messages: list[Message] = []
        self.ids: list[int] = []
        self.turns = self.opening = self.written = 0
        self.total = 0.0
        self.failed = ""  # the first reward of the environment's that failed
        self.running = False
        # What was read before the first turn, and each turn with what came after it: the units that may be dropped.
        self._first: list[int] = []
        self._units: list[list[int]] = []
        self._text = ResponseText(rules.tokenizer, rules.stop)
        # Ctrl-C may leave an answer behind in its thread: the next episode waits for it.
        self._busy = threading.Lock()

    def begin(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> list[int]:
        """Start an episode; returns the ids that the policy's first turn starts from.

        Args:
            seed: of the environment's random numbers; None goes on with those there are.
            options: of the environment's ``reset``.

        Raises:
            ConfigError: the observation is not a text.
            TaskError: it leaves no room for a turn in the context.
        """
        with self._busy:
            return self._begin(seed, options)

    def _begin(self, seed: int | None, options: dict[str, Any] | None) -> list[int]:
        observation, info = self.env.reset(seed=seed, options=options)
        self.messages = [{"role": "system", "content": self.rules.system}] if self.rules.system else []
        self.messages += self._new_messages(observation, info, 0)
        context = self._whole()
        room, needed = self.rules.max_context, len(context) + self.rules.limits.max_new_tokens
        if needed > room:
            raise TaskError(
                f"the environment's first observation takes {len(context)} tokens, which leaves no room for a turn of "
                f"{self.rules.limits.max_new_tokens} in max_context={room}: raise max_context (to {needed} at least) or lower "
                "max_new_tokens"
            )
        self.ids, self._first, self._units = list(context), context, []
        self.turns, self.opening, self.total, self.failed = 0, len(self.messages), 0.0, ""
        self.written = 0
        self.running = True
        return context

    def ended(self, turn: Sequence[int]) -> bool:
        """True where EOS or a stop sequence is complete with a turn's last token.

        Args:
            turn: ids of the turn so far.
        """
        return turn[-1] in self.rules.limits.eos_ids or self._text.stopped(turn, self.ids)

    def answer(self, turn: Sequence[int]) -> Reply:
        """Give a turn of the policy to the environment.

        Args:
            turn: its ids, with the EOS or the stop sequence that ended it.

        Raises:
            ResetNeeded: no episode is running.
            ConfigError: the environment's answer is not a text, or the context is full and ``on_overflow`` is ``"refuse"``.
            RewardError: its reward is not a finite number.
        """
        with self._busy:
            return self._answer(turn)

    def _answer(self, turn: Sequence[int]) -> Reply:
        if not self.running:
            raise gym.error.ResetNeeded("a turn where no episode is running: call reset()")
        rules, before = self.rules, list(self.messages)
        text = self._text.generated(turn, self.ids)
        observation, reward, terminated, truncated, info = self.env.step(text)
        info = dict(info)
        earlier, rewards = _spread(reward, info.get("token_rewards"), self.written, len(turn))
        self.written += len(turn)
        self.total += sum(rewards) + sum(earlier)
        self.failed = self.failed or str(info.get("reward_skipped") or "")
        self.messages.append({"role": "assistant", "content": text})
        new = self._new_messages(observation, info, len(before) + 1)
        self.messages += new
        self.turns += 1
        end: End = "terminated" if terminated else "truncated" if truncated else ""
        if not end and self.turns >= rules.max_turns:
            end = "turn_limit"
        context: list[int] = []
        fresh = not rules.chat
        if end != "terminated" and (new or not end):
            context = self._whole() if fresh else rules.template.go_on(before, new, turn)
            context, fresh, end = self._fit(turn, context, fresh, end)
        self.ids = list(context) if fresh else [*self.ids, *turn, *context]
        self.running = not end
        if end:
            info |= {
                "end": end, "turns": self.turns, "opening": self.opening, "environment_reward": self.total,
                "messages": [dict(m) for m in self.messages],
            }  # fmt: skip
            if "reward_skipped" in info:
                info["reward_skipped"] = self.failed
        return Reply(context, fresh, rewards, end, info, earlier)

    def read(self, turn: Sequence[int]) -> str:
        """The text of a turn, cut before a stop sequence, special tokens left out.

        Args:
            turn: its ids.
        """
        return self._text.read(turn, self.ids)[0]

    def _fit(self, turn: Sequence[int], context: list[int], fresh: bool, end: End) -> tuple[list[int], bool, End]:
        """What the policy reads after a turn, if it is the whole of it, and why the episode ends, as its room allows.

        Args:
            turn: ids of the policy's turn.
            context: ids of the environment's answer.
            fresh: True where the answer is all that the policy is to read.
            end: why the episode ends, as far as the environment and the number of turns say.
        """
        rules = self.rules
        units = [*self._units, [*turn, *context]]
        needed = len(context) if fresh else len(self._first) + sum(map(len, units))
        if end:  # only the value of what would have come is of interest
            return (context, fresh, end) if needed <= rules.max_context else ([], False, end)
        room = rules.max_context - rules.limits.max_new_tokens
        if needed <= room:
            self._units = [] if fresh else units
            return context, fresh, end
        if rules.on_overflow == "refuse":
            raise ConfigError(
                f"after {self.turns} turns the conversation takes {needed} tokens, which leaves no room for a turn of "
                f"{rules.limits.max_new_tokens} in max_context={rules.max_context}, and on_overflow is 'refuse': raise "
                "max_context, or give on_overflow='end' or 'drop_oldest'"
            )
        if rules.on_overflow == "drop_oldest" and not fresh:
            while len(units) > 1 and needed > room:
                needed -= len(units.pop(0))
            if needed <= room:
                self._units = units
                return [*self._first, *(token for unit in units for token in unit)], True, end
        return [], False, "token_limit"

    def _whole(self) -> list[int]:
        """The ids of what the policy is shown, as if nothing had been read before."""
        if self.rules.chat:
            return self.rules.template.begin(self.messages)
        system = self.messages[:1] if self.messages[0]["role"] == "system" else []
        return self.rules.template.begin([*system, self.messages[-1]])

    def _new_messages(self, observation: Any, info: dict[str, Any], known: int) -> list[Message]:
        """The messages that the environment has added to the first ``known`` ones."""
        given = info.get("messages")
        if self.rules.chat and isinstance(given, Sequence) and not isinstance(given, str) and given:
            added = [{"role": str(m["role"]), "content": str(m["content"])} for m in given]
            return added[known - (1 if self.rules.system and known else 0) :]
        if not isinstance(observation, str):
            raise ConfigError(
                f"the environment {type(self.env.unwrapped).__name__} gave an observation of type "
                f"{type(observation).__name__}, "
                "expected a text: wrap it in a gymnasium.ObservationWrapper that writes observations as texts"
            )
        return [{"role": "user", "content": observation}]


def _spread(reward: Any, token_rewards: Any, before: int, length: int) -> tuple[list[float], list[float]]:
    """A turn's reward on its last token, or where the environment says how on each of them.

    Args:
        reward: the environment's.
        token_rewards: ``info["token_rewards"]``, which add up to the reward, of the turn or of all turns so far; or None.
        before: the policy's tokens in earlier turns.
        length: tokens of the turn.

    Returns:
        The rewards of the tokens of earlier turns, empty where these are paid nothing; and those of the turn.
    """
    value = float(reward)
    if not math.isfinite(value):
        raise RewardError(f"the environment gave the reward {value}, expected a finite number")
    rewards = [0.0] * length
    if token_rewards is not None:
        if len(token_rewards) not in (length, before + length):
            raise RewardError(
                f"info['token_rewards'] has {len(token_rewards)} numbers for a turn of {length} tokens; expected one for each"
                + (f", or {before + length} with those of the turns before" if before else "")
            )
        rewards = [float(r) for r in token_rewards]
        value -= sum(rewards)
    rewards[-1] += value
    return rewards[:-length], rewards[-length:]
