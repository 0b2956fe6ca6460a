"""What conversations and tool environments share: a prompt, the policy's message, the other side's, the next message, ...

A step has two halves, so that many environments may take it together: :meth:`DialogueEnv.prepare` has the other side answer (it
may be slow, and changes nothing), and :meth:`DialogueEnv.commit` goes on once the message is scored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from rlhf_gym.envs.dialogue_formats import dialogue_format
from rlhf_gym.envs.picture import Frame
from rlhf_gym.envs.prompt_weights import plain_draws
from rlhf_gym.envs.rendering import RENDER_MODES, Painter, check_render_mode, conversation_frame
from rlhf_gym.envs.scoring import score_texts
from rlhf_gym.envs.task_parts import as_task, reward_of
from rlhf_gym.envs.turn_spaces import with_tokens
from rlhf_gym.envs.vector_api import chosen_prompt, row_of
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import AnyTokenizer
from rlhf_gym.rewards.base import TermReward
from rlhf_gym.rewards.service.overlap import is_slow
from rlhf_gym.tasks import Task
from rlhf_gym.tasks.chat import Message
from rlhf_gym.tasks.samples import Prompt, column_names, columns_of
from rlhf_gym.text import visible

_ONLY = np.zeros(1, dtype=np.intp)  # the slot of a single environment
_USER = 1  # of the entropy of users' random numbers


@dataclass(frozen=True)
class Continuation:
    """What follows a message of the policy.

    Attributes:
        message: the other side's next message; None where there is none.
        ended_by: why the episode ends; empty where it goes on.
        info: the step's further ``info``.
        columns: further columns of the reward, one value each.
        state: what the environment keeps if the step is committed.
    """

    message: Message | None
    ended_by: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    state: Any = None


@dataclass(frozen=True)
class PreparedStep:
    """A step that is not taken yet.

    Attributes:
        response: the policy's message.
        turn: its number, from 1.
        messages: the conversation after the step.
        ended_by: why the episode ends; empty where it goes on.
        scored: the prompt and the response to score; None where this step is not scored.
        columns: the reward's columns, one value each.
        follows: what the other side did.
    """

    response: str
    turn: int
    messages: list[Message]
    ended_by: str
    scored: tuple[str, str] | None
    columns: dict[str, Any]
    follows: Continuation


class DialogueEnv(gym.Env[Any, Any]):
    """The base of :class:`~rlhf_gym.envs.conversation_env.ConversationEnv` and :class:`~rlhf_gym.envs.tool_env.ToolEnv`.

    A subclass says what follows a message (:meth:`follow`), what is scored (:meth:`to_score`) and what a prompt begins with
    (:meth:`opening`).

    Args:
        task: a task or the name of one.
        tokenizer: only the format ``"tokens"`` uses it.
        max_turns: the most messages of the policy in an episode.
        reward_at: ``"turn"`` or ``"end"``.
        format: ``"text"`` or ``"tokens"``.
        template: how the policy is shown the conversation.
        reward: replaces the task's reward.
        task_options: options of a task given by name.
        max_characters: longest message as a text.
        max_context: longest conversation that is shown.
        prompt_order: ``"epochs"`` or ``"random"``, as for the turn level.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.

    Raises:
        TaskError, ConfigError: the task or the template cannot be used, with the reason.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 1}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        task: Task | str,
        tokenizer: AnyTokenizer | str | None,
        *,
        max_turns: int,
        reward_at: Literal["turn", "end"],
        format: Literal["text", "tokens"],  # noqa: A002 - what Gymnasium's users write
        template: str | None,
        reward: Callable[..., Any] | None,
        task_options: dict[str, Any] | None,
        max_characters: int | None,
        max_context: int | None,
        prompt_order: Literal["random", "epochs"],
        render_mode: str | None,
    ) -> None:
        check_render_mode(render_mode)
        if reward_at not in ("turn", "end"):
            raise ConfigError(f"reward_at must be 'turn' or 'end', got {reward_at!r}")
        if max_turns < 1:
            raise ConfigError(f"max_turns must be at least 1, got {max_turns}")
        self.task = as_task(task, task_options)
        self.reward = reward_of(reward, self.task)
        self.max_turns, self.reward_at, self.render_mode = max_turns, reward_at, render_mode
        self._format = dialogue_format(
            format,
            self.task,
            [self.opening(prompt) for prompt in self.task.prompts],
            tokenizer=tokenizer,
            max_turns=max_turns,
            template=template,
            max_characters=max_characters,
            max_context=max_context,
        )
        self.observation_space, self.action_space = self._format.observation_space, self._format.action_space
        self._columns = column_names(self.task.prompts)
        self.prompt_order = prompt_order
        self._draws = plain_draws(prompt_order, 1, len(self.task.prompts))
        self.prompt = self.task.prompts[0]
        self.messages: list[Message] = []
        self.turn = 0
        self._running = False
        self._last_reward: float | None = None  # of the last turn, for pictures
        self._painter = Painter()

    @property
    def slow(self) -> bool:
        """True where a step waits for something else than this process: a service, a person, a process of its own."""
        return is_slow(self.reward)

    def opening(self, prompt: Prompt) -> list[Message]:
        """The messages that a prompt begins with."""
        return first_messages(prompt)

    def follow(self, messages: list[Message], turn: int) -> Continuation:
        """What follows the policy's message, with which the messages end.

        It may be slow, and must change nothing but random numbers.

        Args:
            messages: the conversation.
            turn: the message's number, from 1.
        """
        raise NotImplementedError

    def to_score(
        self, messages: list[Message], turn: int, follows: Continuation, *, ended: bool
    ) -> tuple[str, str] | None:
        """The prompt and the response that this step's reward scores; None for a step without one.

        Args:
            messages: the conversation; it ends with the policy's message.
            turn: the message's number, from 1.
            follows: what follows it.
            ended: True if the episode ends.
        """
        raise NotImplementedError

    def begin(self, state: Any) -> None:
        """Take over a step's state; None begins an episode."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a prompt; ``info["messages"]`` is the conversation so far.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: ``prompt``, the number of the task's prompt to begin with, in the place of one that is drawn.

        Raises:
            ConfigError: there is no such prompt.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.seed_slot(seed, 0)
        self._draws.seed([seed], np.ones(1, dtype=np.bool_))
        chosen = chosen_prompt(options, len(self.task.prompts))
        self.prompt = self.task.prompts[self._draws.take(_ONLY)[0] if chosen is None else chosen]
        self.messages = self.opening(self.prompt)
        self.turn, self._running, self._last_reward = 0, True, None
        self.begin(None)
        self._print(self.messages)
        return self.observe(), {"messages": copied(self.messages)}

    def seed_slot(self, seed: int, slot: int) -> None:
        """Begin the random numbers of a slot's user; prompts are drawn from others, which tell nothing of these.

        Args:
            seed: the vector environment's.
            slot: the slot's number; 0 is what a single environment has.
        """
        # Setting `np_random` would forget the seed.
        self._np_random = np.random.default_rng(np.random.SeedSequence((seed, slot, _USER)))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Write a message; the other side follows, unless the episode has ended.

        If the other side or the reward fails, the conversation is still where it was before the message.

        Raises:
            ResetNeeded: no episode was started, or it has ended.
            InvalidAction: the action is outside the action space.
            TaskError: the other side said something other than a text.
            RewardError: the reward failed.
        """
        prepared = self.prepare(self.read(action))
        [(reward, info)] = score_steps(self.reward, [prepared])
        return self.commit(prepared, reward, info)

    def read(self, action: Any) -> str:
        """The message in an action, cut at the task's stop sequences.

        Raises:
            ResetNeeded: no episode was started, or it has ended.
            InvalidAction: the action is outside the action space.
        """
        if not self._running:
            raise gym.error.ResetNeeded(
                f"step() where {'the episode has ended' if self.messages else 'no episode was started'}: call reset()"
            )
        return with_tokens(action, self.task.cut(self._format.read(action)))

    def prepare(self, response: str) -> PreparedStep:
        """The first half of a step: the other side's message, and whether the episode ends.

        Raises:
            TaskError: the other side said something other than a text.
        """
        turn = self.turn + 1
        answered = messages = [*self.messages, {"role": "assistant", "content": response}]
        follows = self.follow(answered, turn)
        ended_by = follows.ended_by
        if follows.message is not None:
            messages = [*answered, follows.message]
            if not self._format.fits(messages):
                ended_by, messages = "room", answered
        scored = self.to_score(answered, turn, follows, ended=bool(ended_by))
        columns = {name: values[0] for name, values in columns_of([self.prompt], self._columns).items()}
        columns |= {"messages": copied(answered), "turn": turn, **follows.columns}
        return PreparedStep(response, turn, messages, ended_by, scored, columns, follows)

    def commit(
        self, prepared: PreparedStep, reward: float, info: dict[str, Any]
    ) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The second half of a step: go on; returns what ``step`` returns.

        Args:
            prepared: the first half.
            reward: the step's reward.
            info: what ``info`` says of the reward.
        """
        new = prepared.messages[len(self.messages) :]
        self.turn, self.messages, self._last_reward = prepared.turn, prepared.messages, reward
        self._running = not prepared.ended_by
        self.begin(prepared.follows.state)
        self._painter.note(0, reward)
        info = {"response": prepared.response, "turn": self.turn, **info, **prepared.follows.info}
        info["messages"] = copied(self.messages)
        if prepared.ended_by:
            info["ended_by"] = prepared.ended_by
        self._print(new)
        return self.observe(), reward, bool(prepared.ended_by), False, info

    def observe(self) -> Any:
        """The conversation as the policy is shown it."""
        return self._format.observe(self.messages)

    @property
    def running(self) -> bool:
        """True while an episode waits for a message."""
        return self._running

    def twin(self) -> DialogueEnv:
        """An environment of the same task, user, tools and reward, with an episode and random numbers of its own."""
        other = copy.copy(self)
        other._np_random = other._np_random_seed = None
        other._draws = plain_draws(self.prompt_order, 1, len(self.task.prompts))
        other.messages, other.turn, other._running, other._painter = [], 0, False, Painter()
        other.begin(None)
        return other

    def render(self) -> str | Frame | None:
        """The conversation so far: a message a line (``ansi``) or a picture; None before the first reset and for ``human``."""
        if not self.messages or self.render_mode in (None, "human"):
            return None
        if self.render_mode == "ansi":
            return _lines(self.messages)
        return conversation_frame(self.messages, self._last_reward, self._painter)

    def _print(self, messages: list[Message]) -> None:
        if self.render_mode == "human":
            print(_lines(messages))


def score_steps(reward: TermReward, steps: Sequence[PreparedStep]) -> list[tuple[float, dict[str, Any]]]:
    """The rewards of steps, by one call of the reward; 0 for those that are not scored.

    Args:
        reward: the environment's.
        steps: of any number of episodes.

    Returns:
        Of each step its reward, and what ``info`` says of it.

    Raises:
        RewardError: the reward failed.
    """
    out: list[tuple[float, dict[str, Any]]] = [(0.0, {"reward_terms": {}}) for _ in steps]
    places = [i for i, step in enumerate(steps) if step.scored is not None]
    if not places:
        return out
    pairs = [pair for step in steps if (pair := step.scored) is not None]
    prompts, responses = [prompt for prompt, _ in pairs], [response for _, response in pairs]
    columns = {name: [steps[i].columns[name] for i in places] for name in steps[places[0]].columns}
    scored, infos = score_texts(reward, prompts, responses, columns)
    for row, i in enumerate(places):
        out[i] = float(scored.values[row]), row_of(infos, row)
    return out


def first_messages(prompt: Prompt) -> list[Message]:
    """The messages that a prompt begins with: its column ``messages``, or its text as the user's."""
    given = prompt.columns.get("messages")
    return [dict(m) for m in given] if given else [{"role": "user", "content": prompt.text}]


def copied(messages: list[Message]) -> list[Message]:
    """The messages, each a new mapping: what is handed out may be changed."""
    return [dict(m) for m in messages]


def _lines(messages: list[Message]) -> str:
    return visible("\n".join(f"{m['role']}: {m['content']}" for m in messages))
