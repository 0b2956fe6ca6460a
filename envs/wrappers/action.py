"""A small action vocabulary: some of the tokens as actions, for algorithms that cannot handle fifty thousand actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlhf_gym.envs.masks import refuse_empty
from rlhf_gym.envs.token_rows import Mask
from rlhf_gym.envs.wrappers.base import AnyEnv, VectorTokenWrapper, episodes_of, find_attribute
from rlhf_gym.errors import ConfigError


def token_list(env: AnyEnv, tokens: Sequence[int | str]) -> NDArray[np.int64]:
    """EOS, then these tokens' ids in order.

    Args:
        env: a token environment.
        tokens: ids, or texts that are one token each.

    Returns:
        int64 ``[1 + tokens]``.

    Raises:
        ConfigError: no tokens, one twice, an id outside the vocabulary, or a text that is not one token.
    """
    tokenizer = episodes_of(env, "SmallVocabulary").tokenizer
    if isinstance(tokens, str) or not len(tokens):
        raise ConfigError(f"SmallVocabulary needs a list of tokens, e.g. [' good', ' bad']; got {tokens!r}")
    ids = [tokenizer.eos_id]
    for token in tokens:
        encoded = tokenizer.encode(token) if isinstance(token, str) else [int(token)]
        if len(encoded) != 1:
            raise ConfigError(f"{token!r} is {len(encoded)} tokens of {tokenizer.name!r}, expected one: {encoded}")
        if not 0 <= encoded[0] < tokenizer.vocab_size:
            raise ConfigError(f"{token!r} is not a token id; expected 0..{tokenizer.vocab_size - 1}")
        if encoded[0] in ids:
            raise ConfigError(f"{token!r} is in the list twice (EOS, id {tokenizer.eos_id}, is there in any case)")
        ids += encoded
    return np.array(ids, dtype=np.int64)


def checked_actions(actions: Any, count: int) -> NDArray[np.int64]:
    """Actions as int64.

    Args:
        actions: as the environment got them, any shape ``[...]``.
        count: the size of the action space.

    Returns:
        int64 of the same shape.

    Raises:
        InvalidAction: one is outside ``0..count - 1``.
    """
    given = np.asarray(actions)
    if given.dtype.kind not in "iu" or given.min(initial=0) < 0 or given.max(initial=0) >= count:
        raise gym.error.InvalidAction(f"got {given.tolist()}; expected whole numbers in 0..{count - 1}")
    return given.astype(np.int64, copy=False)


class SmallVocabulary(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """Choose among some tokens: action 0 is EOS, action ``i`` is the ``i``-th of ``tokens``.

    It costs no time, but no other token can be generated. Observations keep the whole vocabulary's ids.

    Args:
        env: a :class:`~rlhf_gym.envs.token_env.TokenEnv`.
        tokens: ids, or texts that are one token each; EOS is there in any case.

    Raises:
        ConfigError: no tokens, one twice, or one that the tokenizer does not have.
    """

    def __init__(self, env: gym.Env[Any, Any], tokens: Sequence[int | str]) -> None:
        RecordConstructorArgs.__init__(self, tokens=list(tokens))
        gym.ActionWrapper.__init__(self, env)
        self.tokens = token_list(env, tokens)
        self.action_space = gym.spaces.Discrete(len(self.tokens))

    def action(self, action: Any) -> np.int64:
        """The id that an action stands for."""
        return np.int64(self.tokens[int(checked_actions(action, len(self.tokens)))])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._narrow(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See the environment's."""
        observation, reward, terminated, truncated, info = self.env.step(self.action(action))
        return observation, reward, terminated, truncated, self._narrow(info)

    def _narrow(self, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" in info:
            info["action_mask"] = info["action_mask"][self.tokens]
        return info

    def action_masks(self) -> Mask:
        """bool ``[actions]``, True where an action is allowed now.

        Raises:
            TaskError: of the tokens that the environment's mask allows, none is in the small vocabulary.
        """
        masks: Mask = self.env.get_wrapper_attr("action_masks")()[self.tokens]
        refuse_empty(masks[None])
        return masks


class VectorSmallVocabulary(VectorTokenWrapper):
    """:class:`SmallVocabulary` of a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.

    Args:
        env: a :class:`~rlhf_gym.envs.token_vector_env.TokenVectorEnv`.
        tokens: ids, or texts that are one token each; EOS is action 0 in any case.

    Raises:
        ConfigError: as :class:`SmallVocabulary`.
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], tokens: Sequence[int | str]) -> None:
        super().__init__(env)
        self.tokens = token_list(env, tokens)
        self.single_action_space = gym.spaces.Discrete(len(self.tokens))
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See the environment's.

        Args:
            seed: of the random numbers from here on; None goes on with those there are.
            options: see the environment inside.
        """
        observations, infos = self.env.reset(seed=seed, options=options)
        return observations, self._narrow(infos)

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step every slot with one of the few tokens.

        Args:
            actions: int ``[N]``, numbers in the small vocabulary.

        Returns:
            Observations, rewards ``[N]``, terminations ``[N]``, truncations ``[N]``, and infos.
        """
        observations, rewards, terminations, truncations, infos = self.env.step(
            self.tokens[checked_actions(actions, len(self.tokens))]
        )
        return observations, rewards, terminations, truncations, self._narrow(infos)

    def _narrow(self, infos: dict[str, Any]) -> dict[str, Any]:
        for part in (infos, infos.get("final_info", {})):
            if "action_mask" in part:
                part["action_mask"] = part["action_mask"][:, self.tokens]
        return infos

    def action_masks(self) -> Mask:
        """bool ``[N, actions]``, True where an action is allowed now.

        Raises:
            TaskError: of the tokens that a slot's mask allows, none is in the small vocabulary.
        """
        masks: Mask = find_attribute(self.env, "action_masks")()[:, self.tokens]
        return refuse_empty(masks)
