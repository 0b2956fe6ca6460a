"""The slots of an environment, asked for through whatever wraps it: rules, groups of slots with the same prompts, rounds.

All questions go through stable-baselines3's own ``get_attr``, ``set_options`` and ``reset``, so that the answers do not depend
on wrappers or on how the slots are made; see :mod:`rlhf_gym.envs.token_rules` for what environments promise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rlhf_gym.agents.common.rollout import Rollout
from rlhf_gym.envs.sb3 import TokenVecEnv, group_seeds, group_shares
from rlhf_gym.envs.sb3_vector import VectorVecEnv
from rlhf_gym.envs.text_vec_env import TextVecEnv
from rlhf_gym.envs.token_rules import ROUND, WEIGHTED, TokenRules
from rlhf_gym.errors import ConfigError
from rlhf_gym.lm.tokenizer import Tokenizer
from rlhf_gym.rewards.adaptive import restore_reward, reward_state


def rules_of(env: VecEnv) -> TokenRules | None:
    """The rules of an environment's episodes, however it is wrapped; None for environments that do not say.

    Raises:
        ConfigError: the slots have different rules.
    """
    if not env.has_attr("token_rules"):
        return None
    rules: list[TokenRules] = env.get_attr("token_rules")
    if different := [slot for slot, theirs in enumerate(rules) if theirs != rules[0]]:
        raise ConfigError(
            f"the environment's slots have different rules: slot 0 has {rules[0]}, slot {different[0]} has "
            f"{rules[different[0]]}; an agent needs slots of one task and one tokenizer"
        )
    return rules[0]


def tokenizer_of(env: VecEnv | gym.Env[Any, Any]) -> Tokenizer | None:
    """The tokenizer of an environment, however it is wrapped; None where it has none."""
    if isinstance(env, TextVecEnv):
        return env.rules.tokenizer
    try:
        episodes = env.get_attr("episodes", 0)[0] if isinstance(env, VecEnv) else env.get_wrapper_attr("episodes")
    except AttributeError:
        return None
    tokenizer: Tokenizer = episodes.tokenizer
    return tokenizer


def reward_of(env: VecEnv) -> Callable[..., Any] | None:
    """The reward of an environment, however it is wrapped; None where it has none that can be called by itself."""
    try:
        reward: Callable[..., Any] = env.get_attr("episodes", 0)[0].reward
    except AttributeError:
        return None
    return reward


def token_env_inside(env: VecEnv) -> TokenVecEnv | None:
    """The token environment inside wrappers, if there is one."""
    inner = env.unwrapped
    return inner if isinstance(inner, TokenVecEnv) else None


class Slots:
    """What an agent asks of the slots of a token environment, through whatever wraps it.

    Args:
        env: the environment.

    Attributes:
        can_share_prompts: True where slots can be given the same prompts.
        draws_by_weights: True where the environment is to be told how responses have done, since it draws prompts by weights.
        on_every_rank: True where all processes that learn together play every episode; else the first one does.
    """

    on_every_rank = False

    def __init__(self, env: VecEnv) -> None:
        self._env, self._rules = env, rules_of(env)
        self.can_share_prompts = self._rules is not None
        self.draws_by_weights = self._rules is not None and self._rules.prompt_order in WEIGHTED

    def note_outcomes(self, rollout: Rollout) -> None:
        """Tell the environment how the responses to its prompts have done; the advantages are filled in."""
        prompts = [e.prompt_ids for e in rollout.episodes]
        self._env.env_method("note_outcomes", prompts, *_outcomes(rollout), indices=[0])

    def group(self, size: int) -> None:
        """Give every ``size`` slots in a row the same prompts: a :class:`TokenVecEnv` at once, others by :func:`seed_slots`.

        Raises:
            ConfigError: the environment cannot do that.
        """
        env = self._env
        if size > env.num_envs and self.can_share_prompts:
            raise ConfigError(
                f"group_size ({size}) is the number of environments that answer one prompt, and there are only {env.num_envs}: "
                f"take make_sb3_env({size}, ...), or a multiple of it"
            )
        if (inside := token_env_inside(env)) is not None:
            inside.set_group_size(size)
        elif size > 1 and not self.can_share_prompts:
            raise ConfigError(
                f"group_size={size} needs an environment whose slots can be given the same prompts: make_sb3_env(...), a "
                f"VecEnv of TokenEnv, wrapped or not, or wrap_text_env(...); got {type(env.unwrapped).__name__}"
            )
        elif env.num_envs % size:
            raise ConfigError(
                f"group_size ({size}) must divide the number of environments ({env.num_envs}): a group is that many slots in a "
                "row with the same prompt"
            )

    def state(self) -> list[dict[str, Any]] | None:
        """The states that a checkpoint keeps, one for each slot or one for all; None where the environment has none to give."""
        if self._rules is None or not self._env.has_attr("state"):
            return None
        states: list[dict[str, Any]] = self._env.env_method("state", indices=_holders(self._env))
        return states

    def restore(self, states: Sequence[Mapping[str, Any]] | None) -> bool:
        """Restore :meth:`state`, of an environment of the same task; False where it is none of one with the same slots."""
        env, holders = self._env, _holders(self._env)
        generators = sum(len(state["generators"]) for state in states or ())
        if states is None or len(states) != len(holders) or generators != env.num_envs or not env.has_attr("restore"):
            return False
        for slot, state in zip(holders, states, strict=True):
            env.env_method("restore", state, indices=[slot])
        env.unwrapped._reset_seeds()  # those that the agent gave when it was made are not for the next reset
        return True


class TalkSlots(Slots):
    """Likewise of conversations, whose episodes have seeds of their own: only a reward and the order of prompts may learn.

    Args:
        env: the environment.
    """

    on_every_rank = True

    def __init__(self, env: TextVecEnv) -> None:
        super().__init__(env)
        self._reward, self._prompts = env.reward, env.prompts
        self._weights = None if env.prompts is None else env.prompts.weights
        self.can_share_prompts, self.draws_by_weights = True, self._weights is not None

    def note_outcomes(self, rollout: Rollout) -> None:
        """See :meth:`Slots.note_outcomes`."""
        assert self._weights is not None
        self._weights.note([e.info["prompt_number"] for e in rollout.episodes], *_outcomes(rollout))

    def state(self) -> list[dict[str, Any]]:
        """See :meth:`Slots.state`."""
        state = {} if self._reward is None else {"reward": reward_state(self._reward)}
        return [state if self._prompts is None else state | {"prompts": self._prompts.state()}]

    def restore(self, states: Sequence[Mapping[str, Any]] | None) -> bool:
        """False, as slots stand nowhere between episodes; see :meth:`Slots.restore`."""
        state = states[0] if states else {}
        if self._reward is not None and "reward" in state:
            restore_reward(self._reward, state["reward"])
        if self._prompts is not None and "prompts" in state:
            self._prompts.restore(state["prompts"])
        return False


def slots_of(env: VecEnv) -> Slots:
    """What an agent asks of the slots of this environment."""
    return TalkSlots(env) if isinstance(env, TextVecEnv) else Slots(env)


def _outcomes(rollout: Rollout) -> tuple[list[float], list[float]]:
    """How responses have done: the score of each, and the mean size of its advantages."""
    sizes = (rollout.advantages.abs() * rollout.mask).sum(1) / rollout.mask.sum(1)
    return [e.score for e in rollout.episodes], sizes.tolist()


def seed_slots(env: VecEnv, seed: int, group_size: int) -> None:
    """Seed the slots at the next reset; the same seed gives the same prompts in every kind of environment.

    Args:
        env: the environment.
        seed: group ``i`` of slots gets the ``i``-th number of its stream.
        group_size: slots in a group.
    """
    rules = rules_of(env)
    if rules is None or token_env_inside(env) is not None:
        env.seed(seed)
        return
    order = rules.prompt_order
    # What the next reset of any VecEnv gives its slots. `seed()` counts up from a number: no group could share one.
    env.unwrapped._seeds = group_seeds(seed, env.num_envs, group_size, order)
    if order == "epochs":
        parts, of = group_shares(env.num_envs, group_size)
        holders = _holders(env)
        for slot in holders:
            mine = parts if len(holders) == 1 else [parts[slot]]
            env.env_method("share_prompts", mine, of, indices=[slot])


_LENIENT = "give Monitor(env, allow_early_resets=True), which is its default"


class Rounds:
    """Begins the rounds of an environment: every slot stands at the beginning of an episode, whoever has moved it before.

    Args:
        env: any VecEnv of token observations.
        group_size: slots in a group.
        seed: of the agent.

    Attributes:
        rules: the environment's; None where it cannot begin rounds.
        seed: as given.

    Raises:
        ConfigError: the environment has a TimeLimit inside a Monitor that refuses early resets, or around one.
    """

    def __init__(self, env: VecEnv, group_size: int, seed: int) -> None:
        self.env, self.group_size, self.seed = env, group_size, seed
        self.rules = rules_of(env)
        # stable-baselines3's Monitor may refuse a reset before an episode's end. A time limit needs it, as it counts waiting.
        self._spares_resets = env.has_attr("allow_early_resets") and not all(env.get_attr("allow_early_resets"))
        if self._spares_resets and env.has_attr("_max_episode_steps"):
            raise ConfigError(
                "a TimeLimit needs a reset of every slot before each round, as it counts the steps in which a slot waits, and "
                f"Monitor(..., allow_early_resets=False) refuses resets: {_LENIENT}, or leave the TimeLimit out (the task's "
                "max_new_tokens limits episodes)"
            )

    def begin(self, first_episode: int, last: dict[str, Any] | None = None) -> dict[str, Any]:
        """The first observations of a round, ``ids [N, L]``, ``length [N, 1]``, ``prompt_length [N, 1]``.

        Args:
            first_episode: the number of the round's first episode.
            last: the observation that the caller has last got of the environment, if any.
        """
        if last and self._spares_resets and self._stands_at(last):
            return last
        self.env.set_options(dict(ROUND))
        observation = self.reset()
        if not _together(observation["ids"], self.group_size):
            # Somebody has moved the slots of a group apart: give the groups new random numbers.
            fresh = np.random.SeedSequence((self.seed, 2, first_episode)).generate_state(1)
            seed_slots(self.env, int(fresh[0]), self.group_size)
            self.env.set_options(dict(ROUND))
            observation = self.reset()
        return observation

    def _stands_at(self, last: dict[str, Any]) -> bool:
        """True if every slot stands where it was observed last, at the beginning of an episode, and no seed waits."""
        if any(seed is not None for seed in self.env.unwrapped._seeds) or not self.env.has_attr("unbegun_prompt"):
            return False
        seen = [row[: int(n)].tolist() for row, n in zip(last["ids"], last["length"][:, 0], strict=True)]
        return self.env.get_attr("unbegun_prompt") == seen and _together(last["ids"], self.group_size)

    def reset(self) -> dict[str, Any]:
        """The observations of new episodes in all slots.

        Raises:
            ConfigError: a Monitor refuses to leave an episode that somebody has begun.
        """
        try:
            observation = self.env.reset()
        except RuntimeError as error:
            if self._spares_resets and "before done" in str(error):
                raise ConfigError(
                    "the environment stands within an episode, or needs new prompts, and "
                    f"Monitor(..., allow_early_resets=False) refuses the reset: {_LENIENT}"
                ) from error
            raise
        assert isinstance(observation, dict)
        return observation


def _together(ids: NDArray[np.int64], group_size: int) -> bool:
    """True if every group of slots has one prompt.

    Args:
        ids: int64 ``[N, L]``.
        group_size: slots in a group, divides ``N``.
    """
    groups = ids.reshape(-1, group_size, ids.shape[-1])
    return bool((groups == groups[:, :1]).all())


def _holders(env: VecEnv) -> list[int]:
    """The slots to ask for their state: one where all share an environment."""
    return [0] if isinstance(env.unwrapped, VectorVecEnv) else list(range(env.num_envs))
