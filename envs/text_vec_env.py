"""Any Gymnasium environment over texts as one that agents learn in, token by token and turn by turn: :func:`wrap_text_env`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Text
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from rlhf_gym.envs.picture import Frame
from rlhf_gym.envs.rendering import Painter, check_render_mode, conversation_frame
from rlhf_gym.envs.side_by_side import side_by_side
from rlhf_gym.envs.talk_prompts import TalkPrompts
from rlhf_gym.envs.talk_scoring import Played, score_conversations
from rlhf_gym.envs.talks import Overflow, Reply, Talk, TalkRules
from rlhf_gym.envs.token_rows import token_spaces
from rlhf_gym.envs.token_rules import PromptOrder
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.sampling import Limits
from rlhf_gym.lm.tokenizer import AnyTokenizer, Tokenizer, load_tokenizer, never_drawn, wrap_tokenizer
from rlhf_gym.rewards.base import AnyReward, TermReward, as_term
from rlhf_gym.tasks import Task, load_task
from rlhf_gym.tasks.turn_template import TurnTemplate

AnyTextEnv = gym.Env[Any, Any] | Callable[[], gym.Env[Any, Any]] | str
"""An environment, a function (or class) that makes one, or the id of a registered one."""


class TextVecEnv(VecEnv):
    """Text environments as a stable-baselines3 ``VecEnv`` over tokens, for agents that talk with them.

    :func:`wrap_text_env` makes it. Agents hand over whole turns, by :attr:`talks`. Stepped token by token it gives the same:
    an action is a token id, an observation ``Dict(ids int64 [L], length int64 [1], prompt_length int64 [1])`` holds what the
    policy reads, of which the first ``prompt_length`` ids came before the turn that it is in. A turn ends by EOS, a stop
    sequence or ``max_new_tokens``; then the environment answers.

    Args:
        envs: the environments, each with texts as observations and actions.
        rules: the rules of the conversations.
        reward: scores whole conversations, in the place of the environments' rewards; None for those.
        prompts: says which prompt each of an agent's episodes begins with; None for environments that have no prompts.
        slow: the environments wait for something: agents go on decoding other slots until they answer, and stepped, those whose
            turn it is at the same token answer at the same time, each in a thread. None: as their attribute ``slow`` says.
        render_mode: ``"rgb_array"`` draws the conversations of environments that make no pictures themselves.

    Raises:
        UnsupportedMode: another ``render_mode``.

    Attributes:
        talks: the conversations, one for each environment.
        rules: as given.
        reward: as given.
        prompts: as given.
        slow: True where environments answer in threads.
    """

    def __init__(
        self,
        envs: Sequence[gym.Env[Any, Any]],
        rules: TalkRules,
        reward: TermReward | None = None,
        prompts: TalkPrompts | None = None,
        *,
        slow: bool | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode, ("rgb_array",))
        self.envs, self.rules, self.reward, self.prompts = list(envs), rules, reward, prompts
        self.slow = any(getattr(env.unwrapped, "slow", False) for env in self.envs) if slow is None else slow
        self.talks = [Talk(env, rules) for env in self.envs]
        room = rules.max_context
        super().__init__(len(self.envs), *token_spaces(rules.tokenizer.vocab_size, room, room))
        self._draws, self._painter = render_mode is not None, Painter()
        self.render_mode = render_mode or self.render_mode  # stable-baselines3's is the first environment's
        self._turns: list[list[int]] = [[] for _ in self.envs]
        self._returns = np.zeros(len(self.envs))
        self._lengths = np.zeros(len(self.envs), dtype=np.int64)
        self._actions: NDArray[Any] = np.zeros(len(self.envs), dtype=np.int64)

    def reset(self) -> dict[str, NDArray[np.int64]]:
        """Start an episode in every environment, with the seeds that :meth:`seed` gave.

        Returns:
            ``ids`` int64 ``[N, L]``, ``length`` and ``prompt_length`` int64 ``[N, 1]``.
        """
        for slot, talk in enumerate(self.talks):
            talk.begin(seed=self._seeds[slot], options=self._options[slot] or None)
            self._turns[slot] = []
        self._returns[:], self._lengths[:] = 0.0, 0
        self._reset_seeds()
        self._reset_options()
        return self._observe()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Each environment's picture, uint8 ``[height, width, 3]``; None where neither it nor ``render_mode`` makes one."""
        return [self._picture(env, talk) for env, talk in zip(self.envs, self.talks, strict=True)]

    def _picture(self, env: gym.Env[Any, Any], talk: Talk) -> Frame | None:
        if env.render_mode == "rgb_array":
            shown = env.render()
            return shown if isinstance(shown, np.ndarray) else None
        if not self._draws:
            return None
        return conversation_frame(talk.messages, talk.total if talk.turns else None, self._painter)

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions until :meth:`step_wait`.

        Args:
            actions: int64 ``[N]``, token ids.
        """
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Append a token in every slot; where it ends a turn, the environment answers."""
        rewards, dones = np.zeros(self.num_envs, dtype=np.float32), np.zeros(self.num_envs, dtype=np.bool_)
        infos: list[dict[str, Any]] = [{} for _ in self.talks]
        self._lengths += 1
        turns: dict[int, list[int]] = {}
        for slot, talk in enumerate(self.talks):
            turn = self._turns[slot]
            turn.append(int(self._actions[slot]))
            if talk.ended(turn) or len(turn) >= self.rules.limits.max_new_tokens:
                turns[slot], self._turns[slot] = turn, []
        read = {slot: [*self.talks[slot].ids, *turn] for slot, turn in turns.items()}
        for slot, reply in self.answer(turns).items():
            talk, said = self.talks[slot], read[slot]
            infos[slot], dones[slot] = reply.info, bool(reply.end)
            if self.reward is None:
                rewards[slot] = reply.reward
                self._returns[slot] += reply.reward
            if reply.end:
                cut = reply.end != "terminated" and self.reward is None  # a score of the whole leaves nothing to come
                infos[slot] |= {"TimeLimit.truncated": cut, "terminal_observation": self._row(said, len(said))}
                talk.begin()
        over = np.flatnonzero(dones).tolist()
        if self.reward is not None and over:
            scored, of_scores = score_conversations(self.reward, [Played.of(infos[slot]) for slot in over])
            rewards[over] = self._returns[over] = scored.values
            for slot, info in zip(over, of_scores, strict=True):
                infos[slot].pop("reward_skipped", None)  # the environment's
                infos[slot] |= info
        for slot in over:
            infos[slot]["episode"] = {"r": float(self._returns[slot]), "l": int(self._lengths[slot]), "t": 0.0}
            self._returns[slot], self._lengths[slot] = 0.0, 0
        return self._observe(), rewards, dones, infos

    def answer(self, turns: Mapping[int, Sequence[int]]) -> dict[int, Reply]:
        """What the environments say to turns of the policy; slow ones say it at the same time.

        Args:
            turns: the turns' ids, by slot.

        Returns:
            The replies, by slot in the same order.
        """
        work = [partial(self.talks[slot].answer, turn) for slot, turn in turns.items()]
        replies = side_by_side(work) if self.slow and work else [do() for do in work]
        return dict(zip(turns, replies, strict=True))

    def _row(self, ids: Sequence[int], before: int) -> dict[str, NDArray[np.int64]]:
        """One slot's observation."""
        row = np.full(self.rules.max_context, self.rules.tokenizer.pad_id, dtype=np.int64)
        row[: len(ids)] = ids
        return {"ids": row, "length": np.array([len(ids)]), "prompt_length": np.array([before])}

    def _observe(self) -> dict[str, NDArray[np.int64]]:
        rows = [
            self._row([*talk.ids, *turn], len(talk.ids)) for talk, turn in zip(self.talks, self._turns, strict=True)
        ]
        return {key: np.stack([row[key] for row in rows]) for key in ("ids", "length", "prompt_length")}

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each chosen environment.

        Args:
            attr_name: the attribute's name.
            indices: slots; None: all.
        """
        return [self.envs[i].get_wrapper_attr(attr_name) for i in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each chosen environment.

        Args:
            attr_name: the attribute's name.
            value: the new value.
            indices: slots; None: all.
        """
        for i in self._chosen(indices):
            setattr(self.envs[i], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of each chosen environment.

        Args:
            method_name: the method's name.
            method_args: its arguments.
            indices: slots; None: all.
            method_kwargs: its keyword arguments.
        """
        return [
            self.envs[i].get_wrapper_attr(method_name)(*method_args, **method_kwargs) for i in self._chosen(indices)
        ]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for each chosen environment that is wrapped so; every one is as good as in a ``Monitor``.

        Args:
            wrapper_class: a wrapper.
            indices: slots; None: all.
        """
        from stable_baselines3.common.monitor import Monitor

        def wrapped(env: gym.Env[Any, Any]) -> bool:
            return isinstance(env, wrapper_class) or (isinstance(env, gym.Wrapper) and wrapped(env.env))

        return [wrapper_class is Monitor or wrapped(self.envs[i]) for i in self._chosen(indices)]

    def _chosen(self, indices: VecEnvIndices) -> Iterable[int]:
        return self._get_indices(indices)


def wrap_text_env(
    env: AnyTextEnv,
    num_envs: int = 1,
    *,
    tokenizer: AnyTokenizer | str = "embedded",
    chat: bool = True,
    template: str | None = None,
    system: str = "",
    stop: Sequence[str] = (),
    vocabulary: Sequence[str] = (),
    max_new_tokens: int = 32,
    min_new_tokens: int = 0,
    max_turns: int = 16,
    max_context: int = 256,
    on_overflow: Overflow = "end",
    reward: AnyReward | None = None,
    prompt_order: PromptOrder | None = None,
    difficulty_every: int | None = None,
    slow: bool | None = None,
    render_mode: str | None = None,
) -> TextVecEnv:
    r"""Make an environment over texts one that agents learn in: every turn of the policy is an action of the environment's.

    Args:
        env: a ``gymnasium.Env`` whose observations and actions are texts, a function (or class) that makes one, or an id for
            ``gymnasium.make``. One that is given as an object is copied for every further slot.
        num_envs: the number of environments, whose conversations are generated side by side.
        tokenizer: the policy's, or the name of its model.
        chat: True: each observation is the next message of one conversation (of an environment whose
            ``info["messages"]`` holds the conversation, the messages that are new). False: each observation is all that the
            policy reads.
        template: writes messages as token ids: a name of :data:`~rlhf_gym.tasks.chat.TEMPLATES`, or Jinja. None: the
            tokenizer's chat template, or ``"continuation"`` where it has none.
        system: a message of the system's that begins every conversation.
        stop: texts that end a turn where they appear.
        vocabulary: texts; only their tokens, and those that end a turn, are ever drawn. Empty allows every token.
        max_new_tokens: the most tokens of a turn.
        min_new_tokens: no EOS before this many tokens of a turn.
        max_turns: the most turns of an episode, which is truncated then.
        max_context: the most tokens that the policy reads and writes in one sequence; at most its own context.
        on_overflow: what becomes of a conversation with no room left for a turn: ``"end"`` truncates it,
            ``"drop_oldest"`` takes out its oldest turns, but for the first messages, ``"refuse"`` raises an error.
        reward: scores whole conversations at their end (a reward model, a function), in the place of the environment's rewards;
            see :func:`~rlhf_gym.envs.talk_scoring.score_conversations` for what it is given.
        prompt_order: the order in which an agent's episodes get the environment's prompts, as for the token level; None: the
            environment's own (attribute ``prompt_order``). Only for environments that have prompts:
            see :func:`~rlhf_gym.envs.talk_prompts.prompts_inside`.
        difficulty_every: with ``prompt_order="difficulty"``: iterations of an agent after which the next difficulty joins.
        slow: True for environments that wait for something (a tool, a model, a service, a person): each answers in a thread,
            and the other slots are decoded meanwhile. The conversations are the same, if environments share nothing that
            changes. None: as the environment's attribute ``slow`` says; without one they are not.
        render_mode: ``"rgb_array"`` draws the conversations, for stable-baselines3's ``VecVideoRecorder``, where the
            environment makes no pictures itself.

    Raises:
        UnsupportedMode: another ``render_mode``.
        RewardError: the reward's parameters fit no form.
        ConfigError: the environment's spaces are not texts, a number is out of range, or it has no prompts to order.
        ModelError: the tokenizer cannot be loaded.

    >>> from rlhf_gym.envs import TurnEnv
    >>> talk = wrap_text_env(TurnEnv("sentiment"), 2)
    >>> talk.num_envs, talk.reset()["ids"].shape
    (2, (2, 256))
    """
    if num_envs < 1 or max_turns < 1:
        raise ConfigError(f"num_envs and max_turns must be at least 1, got {num_envs} and {max_turns}")
    if on_overflow not in get_args(Overflow):
        raise ConfigError(f"on_overflow must be one of {', '.join(get_args(Overflow))}, got {on_overflow!r}")
    loaded = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else wrap_tokenizer(tokenizer)
    limits = Limits.of(loaded, min_new_tokens, max_new_tokens)
    if vocabulary:
        limits = replace(limits, suppress_tokens=_all_but(vocabulary, loaded, limits))
    if max_context <= max_new_tokens:
        raise ConfigError(
            f"max_context ({max_context}) must exceed max_new_tokens ({max_new_tokens}): the policy reads something first"
        )
    rules = TalkRules(
        tokenizer=loaded, limits=limits, stop=(stop,) if isinstance(stop, str) else tuple(stop),
        template=TurnTemplate(loaded, template, stop), chat=chat, system=system, max_turns=max_turns, max_context=max_context,
        on_overflow=on_overflow,
    )  # fmt: skip
    envs = [_made(env, slot) for slot in range(num_envs)]
    _check_spaces(envs[0])
    prompts = TalkPrompts.of(envs[0], prompt_order, difficulty_every)
    return TextVecEnv(
        envs, rules, None if reward is None else as_term(reward), prompts, slow=slow, render_mode=render_mode
    )


def make_conversation_env(
    num_envs: int = 1, *, task: Task | str, tokenizer: AnyTokenizer | str = "embedded", **options: Any
) -> TextVecEnv:
    """The conversations of a task of the catalogue (``"guess_number"``, ``"book_table"``), or of one of your own.

    Args:
        num_envs: the number of environments.
        task: a task with a :class:`~rlhf_gym.tasks.Conversation`, or its name.
        tokenizer: the policy's, or the name of its model.
        options: of :func:`wrap_text_env`, in the place of the task's.

    Raises:
        TaskError: there is no such task.
        ConfigError: it is no conversation, or an option is out of range.
    """
    task = load_task(task) if isinstance(task, str) else task
    if (talk := task.conversation) is None:
        raise ConfigError(f"task {task.name!r} is no conversation: take make_sb3_env({num_envs}, task={task.name!r})")
    own: dict[str, Any] = {
        "chat": talk.chat, "template": talk.template, "stop": task.stop, "vocabulary": talk.vocabulary,
        "max_new_tokens": task.max_new_tokens, "min_new_tokens": task.min_new_tokens, "max_turns": talk.max_turns,
        "max_context": talk.max_context, "slow": talk.slow, "on_overflow": talk.on_overflow,
    }  # fmt: skip
    return wrap_text_env(talk.environment, num_envs, tokenizer=tokenizer, **(own | options))


def _all_but(vocabulary: Sequence[str], tokenizer: Tokenizer, limits: Limits) -> tuple[int, ...]:
    """All ids but the ends and those of some texts: of each its shortest spellings, at a line's start or behind a space."""
    kept = {*limits.eos_ids}
    for text in vocabulary:
        spellings = [tokenizer.encode(text)]
        if hasattr(tokenizer, "hub"):  # the others may know no space
            spellings.append(tokenizer.encode(f" {text}"))
        fewest = min(map(len, spellings))
        kept |= {token for ids in spellings if len(ids) == fewest for token in ids}
    kept -= {*never_drawn(tokenizer)}
    return tuple(i for i in range(tokenizer.vocab_size) if i not in kept)


def _made(env: AnyTextEnv, slot: int) -> gym.Env[Any, Any]:
    if isinstance(env, str):
        return gym.make(env)
    if isinstance(env, gym.Env):
        try:
            return env if slot == 0 else copy.deepcopy(env)
        except Exception as error:  # whatever it holds that cannot be copied
            raise ConfigError(
                f"the environment {type(env).__name__} cannot be copied for further slots ({type(error).__name__}: "
                f"{error}): give a function that makes one"
            ) from error
    made = env() if callable(env) else env
    if not isinstance(made, gym.Env):
        raise ConfigError(f"expected a gymnasium.Env, a function that makes one or an id; got {type(made).__name__}")
    return made


def _check_spaces(env: gym.Env[Any, Any]) -> None:
    for what, space in (("observations", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, Text):
            raise ConfigError(
                f"the {what} of {type(env.unwrapped).__name__} are {space}, expected texts (gymnasium.spaces.Text): wrap "
                "it in a gymnasium.ObservationWrapper or ActionWrapper that turns them into texts and back (of a TurnEnv or "
                "ConversationEnv, take format='text')"
            )
